"""Decoding against `model.generate` on tiny random models of several architectures, and the engine's own promises."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3Config,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from decoded import VOCABULARY, Words, build, draw, same_up_to_ties, sweep
from tokendeep.engines import architecture, batching, rows, sampling
from tokendeep.engines.base import Completion, Request
from tokendeep.engines.batching import Batcher
from tokendeep.engines.linears import narrow_linears
from tokendeep.engines.local import LocalEngine, generate
from tokendeep.engines.rows import Row
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Subject

ARCHITECTURES: dict[str, tuple[Callable[[], Subject], str]] = {
    "llama with grouped queries": (lambda: build(LlamaConfig), "continuous"),
    "llama, eager attention": (lambda: build(LlamaConfig, attention="eager"), "continuous"),
    "gpt2": (lambda: build(GPT2Config, n_positions=256, n_embd=32, n_layer=2, n_head=4), "continuous"),
    "qwen3": (lambda: build(Qwen3Config, head_dim=8), "continuous"),
    "gemma2, wide window": (lambda: build(Gemma2Config, head_dim=8, sliding_window=256), "continuous"),
    "gemma2, narrow window": (lambda: build(Gemma2Config, head_dim=8, sliding_window=24), "continuous"),
    "bloom (ALiBi)": (lambda: build(BloomConfig, n_head=4, n_layer=2), "generate"),
    "mamba": (lambda: build(MambaConfig, state_size=4), "generate"),
}


@pytest.fixture
def llama() -> Subject:
    return build(LlamaConfig)


# -- equality ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_generate(name: str) -> None:
    make, kind = ARCHITECTURES[name]
    subject = make()
    requests = sweep(prompts=2 if kind == "generate" else 3, ks=(0, 5, 20))
    with LocalEngine(subject, batch_size=3) as engine:
        done = [future.result(30) for future in [engine.submit(request) for request in requests]]
    assert engine.kind == kind
    assert (engine.why is None) == (kind == "continuous")
    assert len({completion.ids for completion in done}) > len(done) // 2  # the model says different things
    wrong = [i for i, row in enumerate(done) if not same_up_to_ties(subject.model, requests[i], row)]
    assert not wrong


def test_a_row_longer_than_the_window_takes_generate() -> None:
    subject = build(Gemma2Config, head_dim=8, sliding_window=24)
    short = Request(tuple(draw(1, 10)), Decoding(max_new_tokens=14))
    long = Request(tuple(draw(2, 10)), Decoding(max_new_tokens=15))
    with LocalEngine(subject, batch_size=2) as engine:
        futures = [engine.submit(short), engine.submit(long)]
        assert all(
            same_up_to_ties(subject.model, request, future.result(30))
            for request, future in zip([short, long], futures, strict=True)
        )
        assert (engine.kind, engine.stats.plain) == ("continuous", 1)


def test_recurrent_models_never_see_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = build(MambaConfig, state_size=4)
    requests = [Request(tuple(draw(i, 4 + i % 3)), Decoding(max_new_tokens=3)) for i in range(7)]
    masks = []
    own: Any = subject.model.generate

    def spy(**settings: Any) -> Any:
        masks.append(settings["attention_mask"])
        return own(**settings)

    monkeypatch.setattr(subject.model, "generate", spy)
    assert len(generate(subject, requests, batch_size=4)) == 7
    assert sum(len(mask) for mask in masks) == 7
    assert len(masks) == 3
    assert all(bool(mask.all()) for mask in masks)


def test_an_adapter_stays_active(llama: Subject) -> None:
    from peft import LoraConfig, get_peft_model

    requests = sweep(prompts=2)
    before = generate(llama, requests)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model: Any = get_peft_model(llama.model, settings)
    done = generate(replace(llama, model=model), requests, batch_size=4)
    assert done != before
    assert all(same_up_to_ties(model, request, row) for request, row in zip(requests, done, strict=True))


def test_half_precision_is_continuous(llama: Subject) -> None:
    with LocalEngine(replace(llama, model=llama.model.bfloat16()), batch_size=2) as engine:
        assert engine.kind == "continuous"
        assert len(engine.submit(sweep()[0]).result(30).ids) == 3


# -- sharing and scheduling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding(temperature=0.9, top_p=0.8, seed=3)], ids=["greedy", "drawn"]
)
def test_batch_size_and_order_change_nothing(llama: Subject, decoding: Decoding) -> None:
    requests = [
        replace(request, decoding=replace(decoding, max_new_tokens=request.decoding.max_new_tokens))
        for request in sweep()
    ]
    expected = generate(llama, requests, batch_size=1)
    order = random.Random(1).sample(range(len(requests)), len(requests))
    for batch_size in (4, 32):
        done = generate(llama, [requests[i] for i in order], batch_size=batch_size)
        assert done == [expected[i] for i in order]


def test_nested_prefixes_share_one_forward_pass(llama: Subject) -> None:
    requests = sweep(prompts=1, new_tokens=(5,))
    alone = [generate(llama, [request])[0] for request in requests]
    batcher, results = drive(llama, requests, batch_size=8)
    assert results == alone
    longest = len(requests[-1].ids) - 1  # the last token is left to the first decoding step
    assert batcher.stats.prefilled == longest
    assert batcher.stats.reused == sum(len(request.ids) - 1 for request in requests[:-1])
    assert batcher.stats.steps == 5


def test_the_common_template_is_computed_once(llama: Subject) -> None:
    requests = sweep(prompts=6, ks=(0,), new_tokens=(4,))
    batcher, results = drive(llama, requests, batch_size=6)
    assert batcher.stats.prefilled == 20 + sum(len(request.ids) - 21 for request in requests)
    assert results == [generate(llama, [request])[0] for request in requests]


def test_a_later_request_reuses_a_slot_that_is_free(llama: Subject) -> None:
    short = Request(tuple(draw(1, 30)), Decoding(max_new_tokens=4))
    with LocalEngine(llama, batch_size=1) as engine:
        first = engine.submit(short).result(30)
        assert engine.stats.prefilled == 29
        long = Request((*short.ids, *first.ids), Decoding(max_new_tokens=4))  # its answer is in the slot as well
        second = engine.submit(long).result(30)
        assert engine.stats.prefilled == 29
    assert second == generate(llama, [long])[0]


def test_finished_rows_make_room(llama: Subject) -> None:
    lengths = [40, *[5] * 8]
    requests = [Request((90 - i, *draw(i, 12)), Decoding(max_new_tokens=n)) for i, n in enumerate(lengths)]
    batcher, results = drive(subject_without_end(llama), requests, batch_size=2)
    assert [len(row.ids) for row in results] == lengths
    assert batcher.stats.row_steps == sum(lengths)
    assert batcher.stats.steps <= 45  # fixed batches of two would take 40 + 4 x 5


def test_a_cache_that_grows_keeps_what_it_holds(llama: Subject) -> None:
    request = Request(tuple(draw(1, 5)), Decoding(max_new_tokens=230))
    subject = subject_without_end(llama)
    done = generate(subject, [request, *sweep(prompts=2)], batch_size=2)[0]
    assert len(done.ids) == 230
    subject.model.generation_config.eos_token_id = None
    model: Any = llama.model
    out = model.generate(
        input_ids=torch.tensor([request.ids]), max_new_tokens=230, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert done.ids == tuple(out[0, 5:].tolist())


def test_padding_stays_inside_the_context() -> None:
    """A row that starts late is prefilled beside a longer one: its padding must not ask for position 256 of 256."""
    subject = ARCHITECTURES["gpt2"][0]()
    base = draw(1, 220)
    first = Request(tuple(base), Decoding(max_new_tokens=2))
    late = Request((*base[:200], *draw(2, 41)), Decoding(max_new_tokens=2))
    fresh = Request(tuple(draw(3, 58)), Decoding(max_new_tokens=2))
    batcher = Batcher(subject, 2)
    results: dict[int, Any] = {}
    for index, batch in enumerate([[first], [late, fresh]]):
        for i, request in enumerate(batch):
            batcher.add(Row(index + i, request, results.__setitem__))
        while batcher.busy:
            batcher.step()
    assert batcher.stats.prefilled == 219 + 40 + 57
    assert [results[i] for i in range(3)] == [generate(subject, [request])[0] for request in (first, late, fresh)]


def test_long_prompts_are_computed_in_pieces(llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = sweep()
    expected = generate(llama, requests)
    monkeypatch.setattr(batching, "CHUNK", 7)
    assert generate(llama, requests, batch_size=5) == expected


def drive(subject: Subject, requests: list[Request], batch_size: int) -> tuple[Any, list[Completion]]:
    """Run all requests through a batcher in this thread, to look at what it did."""
    results: dict[int, Any] = {}
    batcher = Batcher(subject, batch_size)
    for i, request in enumerate(requests):
        batcher.add(Row(i, request, results.__setitem__))
    while batcher.busy:
        batcher.step()
    return batcher, [results[i] for i in range(len(requests))]


def subject_without_end(subject: Subject) -> Subject:
    tokenizer: Any = Words()
    tokenizer.eos_token_id = None
    subject.model.generation_config.eos_token_id = None
    return replace(subject, tokenizer=tokenizer)


# -- the engine ------------------------------------------------------------------------------------------------------


def test_requests_may_come_from_many_threads(llama: Subject) -> None:
    requests = sweep()
    expected = generate(llama, requests)
    futures: dict[int, Future[Completion]] = {}
    with LocalEngine(llama, batch_size=4) as engine:

        def send(start: int) -> None:
            for i in range(start, len(requests), 4):
                futures[i] = engine.submit(requests[i])

        threads = [threading.Thread(target=send, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [futures[i].result(30) for i in range(len(requests))] == expected


@pytest.mark.parametrize("kind", ["continuous", "generate"])
def test_an_error_in_the_worker_reaches_every_future(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = build(LlamaConfig) if kind == "continuous" else build(BloomConfig, n_head=4, n_layer=2)
    with LocalEngine(subject, batch_size=2) as engine:
        assert engine.kind == kind
        with monkeypatch.context() as patch:
            patch.setattr(subject.model, "forward", broken)
            futures = [engine.submit(request) for request in sweep(prompts=1)]
            for future in futures:
                with pytest.raises(RuntimeError, match="out of luck"):
                    future.result(30)
        assert len(engine.submit(sweep()[0]).result(30).ids) == 3  # and the next request is served


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("out of luck")


@pytest.mark.parametrize("config", [LlamaConfig, BloomConfig])
def test_closing_ends_what_is_unfinished(config: type) -> None:
    subject = subject_without_end(build(config, n_layer=2, n_head=4) if config is BloomConfig else build(config))
    engine = LocalEngine(subject, batch_size=1)
    passes = []
    subject.model.register_forward_hook(lambda *_: passes.append(1))
    futures = [engine.submit(Request(tuple(draw(i, 4)), Decoding(max_new_tokens=250))) for i in range(3)]
    engine.close()
    engine.close()
    assert len(passes) < 200  # not even the first answer is waited for
    for future in futures:
        with pytest.raises(RuntimeError, match="closed before"):
            future.result(30)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(sweep()[0])


def test_a_cancelled_request_is_dropped(llama: Subject) -> None:
    first = Request(tuple(draw(1, 4)), Decoding(max_new_tokens=200))
    with LocalEngine(subject_without_end(llama), batch_size=1) as engine:
        running = engine.submit(first)
        waiting = engine.submit(sweep()[0])
        assert waiting.cancel()
        assert len(running.result(30).ids) == 200
    assert engine.stats.row_steps == 200


def test_progress_is_told_and_interrupts_pass(llama: Subject) -> None:
    llama.model.train()
    seen: list[int] = []

    def stop(index: int, completion: Completion) -> None:
        seen.append(index)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(llama, sweep(), batch_size=2, on_done=stop)
    assert len(seen) == 3
    assert llama.model.training  # handed back as it was
    assert all("forward" not in vars(module) for module in llama.model.modules())
    told: dict[int, Completion] = {}
    done = generate(llama, sweep(), batch_size=2, on_done=told.__setitem__)
    assert [told[i] for i in range(len(done))] == done


# -- tokens and settings ------------------------------------------------------------------------------------------


def test_every_end_token_ends_an_answer(llama: Subject) -> None:
    request = Request(tuple(draw(1, 10)), Decoding(max_new_tokens=8))
    ids = generate(subject_without_end(llama), [request])[0].ids
    stop = next(i for i, token in enumerate(ids) if token not in ids[:i] and i > 2)
    llama.model.generation_config.eos_token_id = [95, ids[stop]]
    assert generate(llama, [request])[0] == Completion(ids[:stop], Words().decode(ids[:stop], True), truncated=False)
    llama.model.generation_config.eos_token_id = None
    tokenizer: Any = Words()
    tokenizer.eos_token_id = ids[0]
    assert generate(replace(llama, tokenizer=tokenizer), [request])[0] == Completion((), "", truncated=False)
    tokenizer.eos_token_id = None
    assert generate(replace(llama, tokenizer=tokenizer), [request])[0].truncated


@pytest.mark.parametrize("name", ["llama with grouped queries", "bloom (ALiBi)"])
def test_generation_config_does_not_leak(name: str) -> None:
    subject = ARCHITECTURES[name][0]()
    requests = sweep(prompts=2)
    expected = generate(subject, requests)
    settings: Any = subject.model.generation_config
    settings.update(
        repetition_penalty=5.0, do_sample=True, temperature=3.0, top_k=2, bad_words_ids=[[5]], min_length=90
    )
    assert generate(subject, requests) == expected
    assert subject.model.generation_config is settings


def test_draws_depend_on_seed_and_ids_alone() -> None:
    def first(index: int, ids: tuple[int, ...], seed: int) -> float:
        request = Request(ids, Decoding(temperature=1.0, seed=seed))
        return float(torch.rand((), generator=Row(index, request, print).generator))

    assert first(0, (5, 6), 1) == first(9, (5, 6), 1)
    assert len({first(0, (5, 6), 1), first(0, (5, 7), 1), first(0, (5, 6), 2)}) == 3


def test_samples_differ_between_seeds() -> None:
    decoding = Decoding(temperature=1.0, max_new_tokens=12, seed=1)
    for name in ("llama with grouped queries", "bloom (ALiBi)"):
        subject = ARCHITECTURES[name][0]()
        requests = [Request(tuple(draw(i % 3, 9)), replace(decoding, seed=i // 3)) for i in range(9)]
        done = generate(subject, requests, batch_size=4)
        assert done == generate(subject, requests, batch_size=2)
        assert len({row.ids for row in done}) == 9  # neither the seed nor the prompt alone decides


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.7, 0), (1.0, 5), (0.6, 9), (1e-6, 0)])
def test_draws_follow_the_distribution(top_p: float, top_k: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 700) * 1.5
    cut = logits
    if top_k:
        cut = TopKLogitsWarper(top_k)(None, cut)
    if top_p < 1:
        cut = TopPLogitsWarper(top_p)(None, cut)
    expected = cut.double().softmax(-1)[0]
    count = 10_000
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # an even grid: frequencies are exact to 1 / count
    tokens = torch.tensor(sampling.sample(logits.expand(count, -1), top_p, top_k, draws))
    frequency = torch.bincount(tokens, minlength=700) / count
    assert float((frequency - expected).abs().max()) < 2 / count


def test_a_broken_row_is_named_and_harms_no_other(llama: Subject) -> None:
    good = [Request((95, *draw(5, 45)), Decoding(max_new_tokens=40))]  # 95 comes first, and stays in its slot
    good += [Request((50, *draw(i, 10)), Decoding(max_new_tokens=6)) for i in range(4)]
    expected = generate(llama, good, batch_size=1)
    used = {token for request, row in zip(good, expected, strict=True) for token in (*request.ids, *row.ids)}
    bad = next(token for token in range(3, VOCABULARY) if token not in used)
    vectors: Any = llama.model.get_input_embeddings()
    with torch.no_grad():
        vectors.weight[bad] = float("nan")
    poisoned = Request((94, bad, *draw(8, 30)), Decoding(max_new_tokens=6))
    with pytest.raises(InputError, match=r"Request 2: .* NaN or infinite"):
        generate(llama, [*good[:2], poisoned, *good[2:]], batch_size=8)
    with LocalEngine(llama, batch_size=2) as engine:  # the short rows come into the poisoned slot, beside the long one
        futures = [engine.submit(request) for request in [poisoned, *good]]
        with pytest.raises(InputError, match="Request 0: "):
            futures[0].result(30)
        assert [future.result(30) for future in futures[1:]] == expected


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ((), {}, "Request 1 has no token ids"),
        ((5, 97), {}, "Request 1 has token ids outside the model's vocabulary of 97"),
        ((5, -1), {}, "outside"),
        ((5,) * 250, {"max_new_tokens": 7}, "250 prompt tokens .* max_new_tokens 7, .* of 256: .* to 6"),
        ((5,), {"max_new_tokens": 0}, "Request 1 has max_new_tokens 0"),
        ((5,), {"temperature": -1.0}, "temperature -1.0"),
        ((5,), {"temperature": float("nan")}, "temperature nan"),
        ((5,), {"top_p": 0.0}, "top_p 0.0"),
        ((5,), {"top_k": -1}, "top_k -1"),
    ],
)
def test_impossible_requests_are_refused_at_once(llama: Subject, ids: tuple, settings: dict, message: str) -> None:
    request = Request(ids, Decoding(**{"max_new_tokens": 4, **settings}))
    with pytest.raises(InputError, match=message):
        generate(llama, [sweep()[0], request])
    with LocalEngine(llama) as engine:
        engine.submit(sweep()[0])
        with pytest.raises(InputError, match=message):
            engine.submit(request)


def test_a_request_may_fill_the_context(llama: Subject) -> None:
    request = Request((5,) * 250, Decoding(max_new_tokens=6))
    assert len(generate(subject_without_end(llama), [request])[0].ids) == 6


def test_no_requests_and_impossible_batches(llama: Subject) -> None:
    assert generate(llama, []) == []
    with pytest.raises(InputError, match="batch_size is -1"):
        generate(llama, [], batch_size=-1)


@pytest.mark.parametrize("rows", [1, 3, 4, 16, 48, 49])
@pytest.mark.parametrize("bias", [True, False])
def test_narrow_products_equal_linear(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    forwards = narrow_linears(nn.Sequential(layer))
    x = torch.randn(rows, 1, 24)
    expected = layer(x)
    for forward in forwards.values():
        with torch.no_grad():
            torch.testing.assert_close(forward(x), expected)
        assert torch.autograd.grad(forward(x).sum(), layer.weight)[0].shape == (40, 24)


@pytest.mark.slow
def test_the_packaged_model_answers_as_generate_does() -> None:
    from tokendeep import models

    subject = models.load("smollm2")
    tokenizer: Any = subject.tokenizer
    requests = []
    start = tokenizer("Here is what I")["input_ids"]
    for text in ("Name three rivers.", "Write a haiku about rain."):
        chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        requests += [Request((*chat["input_ids"], *start[:k]), Decoding(max_new_tokens=16)) for k in (0, 4)]
    done = generate(subject, requests, batch_size=3)
    assert all(same_up_to_ties(subject.model, r, row) for r, row in zip(requests, done, strict=True))


# --- end tokens and memory -------------------------------------------------------------------------------------------


def conversing(tokenizer: Any, make_model: Callable[..., Any]) -> Subject:
    """A base model's: it and its tokenizer name <|endoftext|> as the end, the template ends turns with <|im_end|>."""
    tokenizer.eos_token = "<|endoftext|>"
    return Subject(make_model(eos_token_id=tokenizer.eos_token_id), tokenizer, "base")


def ends(subject: Subject) -> list[str]:
    return sorted(subject.tokenizer.decode([end]) for end in Batcher(subject, 1).ends)


def test_the_end_of_a_turn_ends_an_answer(tiny_tokenizer: Any, make_model: Callable[..., Any]) -> None:
    subject = conversing(tiny_tokenizer, make_model)
    assert ends(subject) == ["<|endoftext|>", "<|im_end|>"]
    tiny_tokenizer.chat_template = None
    assert ends(subject) == ["<|endoftext|>"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content }}\n###\n{% endfor %}",  # ends turns in plain text
        "{{ raise_exception('no') }}",
    ],
)
def test_what_is_no_control_token_ends_no_answer(
    tiny_tokenizer: Any, make_model: Callable[..., Any], template: str
) -> None:
    subject = conversing(tiny_tokenizer, make_model)
    tiny_tokenizer.chat_template = template
    assert ends(subject) == ["<|endoftext|>"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_too_little_memory_names_the_setting(error: Exception, llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, rows: Any) -> None:
        raise error

    whole, requests = generate(llama, sweep(), batch_size=8), sweep()
    with monkeypatch.context() as patch:
        patch.setattr(Batcher, "_prefill", full)
        with pytest.raises(InputError, match=r"hold 8 row\(s\) .* lower --batch-size"):
            generate(llama, requests, batch_size=8)
        with (
            LocalEngine(llama, batch_size=1) as engine,
            pytest.raises(InputError, match=r"hold 1 row\(s\) .* shorter"),
        ):
            engine.submit(requests[0]).result(timeout=30)
    assert generate(llama, requests, batch_size=4) == whole


@pytest.mark.parametrize("plain", [False, True])
def test_the_time_of_a_batch_is_divided_among_its_rows(
    llama: Subject, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(rows.time, "perf_counter", lambda: float(next(ticks)))  # whatever is timed takes 1 s
    if plain:
        monkeypatch.setattr(architecture, "probe", lambda lm: "as if its architecture allowed no other way")
    lengths = [3, 3, 9, 9]
    requests = [Request(tuple(range(3, 10 + i)), Decoding(max_new_tokens=n)) for i, n in enumerate(lengths)]
    done = generate(llama, requests, batch_size=4)
    assert sum(one.seconds for one in done) == pytest.approx(next(ticks) / 2)
    if plain:
        assert [one.seconds for one in done] == [0.25] * 4
    else:
        assert sum(one.seconds for one in done) > max(len(one.ids) for one in done)  # a second a step, and the prefill
