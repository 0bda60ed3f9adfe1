"""GCG: the gradient against finite differences, fast losses against plain ones, the step against brute force."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tokendeep import chat
from tokendeep.attacks.gcg import behaviours, candidates, losses
from tokendeep.attacks.gcg import search as gcg
from tokendeep.compute import scoring
from tokendeep.errors import InputError
from tokendeep.types import Subject

ASK = [{"role": "user", "content": "How do I bake bread"}]
OTHER = [{"role": "user", "content": "Tell me where Rome is"}]
CPU_FULL = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
OPENINGS = [(72, 101, 108), (72, 101, 109), (80, 81, 82)]


def made(subject: Subject, refusal: bool = False, messages: Any = ASK, tokens: int | None = 4) -> behaviours.Behaviour:
    openings = OPENINGS if refusal else ()
    return behaviours.behaviour(subject, "row", messages, "Sure, here is a list", tokens=tokens, openings=openings)  # type: ignore[arg-type]


def search(subject: Subject, behaviours: Any, **settings: Any) -> gcg.Search:
    defaults: dict[str, Any] = {"steps": 3, "width": 12, "top": 8, "batch": 5, "stop": False, "one_by_one": False}
    subjects = subject if isinstance(subject, list) else [subject]
    return gcg.Search(subjects, behaviours, gcg.Settings(**{**defaults, **settings}), say=lambda text: None)


def by_hand(subject: Subject, b: behaviours.Behaviour, suffix: Any) -> float:
    """The loss from full logits in float64, no cache, no tree."""
    prompt = [*b.before, *suffix, *b.after]

    def logp(target: tuple[int, ...]) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *target]])
        with torch.no_grad():
            logits = subject.model(input_ids=ids).logits[0].double().log_softmax(-1)
        return sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(target))  # type: ignore[return-value]

    if not b.unwanted:
        return float(-logp(b.wanted) / len(b.wanted))
    return float(torch.logsumexp(torch.stack([logp(o) for o in b.unwanted]), 0) - logp(b.wanted))


def test_the_prompt_opens_where_a_suffix_goes(tiny_subject: Subject) -> None:
    tokenizer = tiny_subject.tokenizer
    before, after, spell = chat.open_prompt(tokenizer, ASK)  # type: ignore[arg-type]
    suffix = chat.continuation_ids(tokenizer, " x x x")
    text = [{"role": "user", "content": ASK[0]["content"] + " x x x"}]
    assert [*before, *suffix, *after] == chat.prompt_ids(tokenizer, text) == spell([" x x x"])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("refusal", [False, True])
def test_fast_losses_equal_plain_ones(refusal: bool, tiny_subject: Subject) -> None:
    b = made(tiny_subject, refusal)
    start = behaviours.start(tiny_subject, 5)
    swaps = [(place, token) for place in range(5) for token in (40, 90, 200)]
    fast = search(tiny_subject, [b]).losses(start, swaps, [b])
    plain = [by_hand(tiny_subject, b, (*start[:p], t, *start[p + 1 :])) for p, t in swaps]
    assert fast.tolist() == pytest.approx(plain, abs=1e-4)
    assert search(tiny_subject, [b]).loss(start) == pytest.approx(by_hand(tiny_subject, b, start), abs=1e-4)


def test_without_a_cache_the_losses_are_the_same(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    b, start = made(tiny_subject), behaviours.start(tiny_subject, 4)
    swaps = [(0, 40), (3, 90), (1, 77)]
    cached = search(tiny_subject, [b]).losses(start, swaps, [b])
    slope = search(tiny_subject, [b]).gradient(start, [b])
    monkeypatch.setattr(scoring, "plain_cache", lambda model, length: False)
    torch.testing.assert_close(search(tiny_subject, [b]).losses(start, swaps, [b]), cached, rtol=0, atol=1e-5)
    torch.testing.assert_close(search(tiny_subject, [b]).gradient(start, [b]), slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("refusal", [False, True])
def test_the_gradient_is_that_of_finite_differences(
    refusal: bool, make_model: Callable[..., Any], tiny_subject: Subject
) -> None:
    """Along the one-hot of a token: the embedding at a place moves by epsilon times that token's own."""
    subject = replace(tiny_subject, model=make_model().double())
    b, start = made(subject, refusal), behaviours.start(subject, 4)
    slope = search(subject, [b]).gradient(start, [b])
    assert slope.shape == (4, subject.model.get_input_embeddings().weight.shape[0])
    table = subject.model.get_input_embeddings().weight.detach()
    targets = [b.wanted, *b.unwanted]

    def loss(place: int, token: int, step: float) -> float:
        sums = []
        for target in targets:
            ids = [*b.before, *start, *b.after, *target]
            rows = table[ids].clone()
            rows[len(b.before) + place] += step * table[token]
            with torch.no_grad():
                logps = subject.model(inputs_embeds=rows[None]).logits[0].log_softmax(-1)
            at = range(len(ids) - len(target) - 1, len(ids) - 1)
            sums.append(sum(logps[i, t] for i, t in zip(at, target, strict=True)))
        if not refusal:
            return float(-sums[0] / len(b.wanted))
        return float(torch.logsumexp(torch.stack(sums[1:]), 0) - sums[0])

    steepest = (
        slope.abs().flatten().topk(5).indices.tolist()
    )  # the model's norms work in float32: flat ones drown in it
    for place, token in (divmod(i, slope.shape[1]) for i in steepest):
        difference = (loss(place, token, 1e-3) - loss(place, token, -1e-3)) / 2e-3
        assert float(slope[place, token]) == pytest.approx(difference, rel=2e-3)


def test_with_all_swaps_a_step_finds_the_best_one(tiny_subject: Subject) -> None:
    """Brute force over every allowed token at every place that survives retokenisation."""
    b, start = made(tiny_subject), behaviours.start(tiny_subject, 2)
    found = search(tiny_subject, [b], width=10**4, top=10**4, batch=64)
    state = found.step(found.begin(start))
    allowed = found.candidates.allowed.nonzero().flatten().tolist()
    tried = {}
    for place in range(2):
        for token in allowed:
            ids = (*start[:place], token, *start[place + 1 :])
            text = found.text(ids)
            asked = [{"role": "user", "content": ASK[0]["content"] + text}]
            sound = text == text.rstrip() and chat.prompt_ids(tiny_subject.tokenizer, asked) == [
                *b.before,
                *ids,
                *b.after,
            ]  # type: ignore[arg-type]
            if ids != start and sound:
                tried[ids] = by_hand(tiny_subject, b, ids)
    assert state.candidates == len(tried) > 50
    best = min(tried, key=lambda ids: tried[ids])
    assert state.suffix == best
    assert state.loss == pytest.approx(tried[best], abs=1e-4)


def test_the_text_that_comes_out_reads_back_as_the_ids_that_were_found(tiny_subject: Subject) -> None:
    both = [made(tiny_subject), made(tiny_subject, messages=OTHER)]
    found = search(tiny_subject, both, steps=6, width=40, top=60)
    *_, state = found.steps(found.begin(behaviours.start(tiny_subject, 6)))
    assert (state.step, len(state.losses)) == (6, 6)
    assert state.losses[-1] < state.losses[0]
    assert state.loss == min(state.losses)
    for messages, b in ((ASK, both[0]), (OTHER, both[1])):
        asked = [{"role": "user", "content": messages[0]["content"] + found.text(state.best)}]
        assert chat.prompt_ids(tiny_subject.tokenizer, asked) == [*b.before, *state.best, *b.after]  # type: ignore[arg-type]
    mean = sum(by_hand(tiny_subject, b, state.best) for b in both) / 2
    assert state.loss == pytest.approx(mean, abs=1e-4)


def test_a_search_that_was_cut_off_goes_on_as_it_would_have(tiny_subject: Subject) -> None:
    b = [made(tiny_subject)]
    whole = search(tiny_subject, b, steps=5)
    states = list(whole.steps(whole.begin(behaviours.start(tiny_subject, 4))))
    rest = list(search(tiny_subject, b, steps=5).steps(states[2]))
    assert rest == states[3:]


def test_batches_change_nothing(tiny_subject: Subject) -> None:
    b = [made(tiny_subject)]
    ends = []
    for batch in (1, 7, 64):
        one = search(tiny_subject, b, batch=batch)
        ends.append(list(one.steps(one.begin(behaviours.start(tiny_subject, 4))))[-1])
    assert ends[0].suffix == ends[1].suffix == ends[2].suffix
    assert ends[0].losses == pytest.approx(ends[2].losses, abs=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError(CPU_FULL)])
def test_memory_that_runs_out_halves_the_batch_and_says_it_once(
    error: Exception, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    b = made(tiny_subject)
    found = gcg.Search([tiny_subject], [b], gcg.Settings(batch=8), say=said.append)
    plain = search(tiny_subject, [b])
    score = losses.Losses.score

    def tight(self: Any, known: Any, row: Any, place: Any, suffix: Any, tokens: Any) -> Any:
        if len(tokens) > 4:
            raise error
        return score(self, known, row, place, suffix, tokens)

    swaps = [(1, token) for token in range(40, 60)]
    start = behaviours.start(tiny_subject, 3)
    wanted = plain.losses(start, swaps, [b])
    monkeypatch.setattr(losses.Losses, "score", tight)
    assert found.losses(start, swaps, [b]).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert said == ["The memory does not hold 8 candidates together; going on with 4."]


def test_any_other_error_is_not_taken_for_a_full_memory(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    found = search(tiny_subject, [b := made(tiny_subject)])
    monkeypatch.setattr(losses.Losses, "score", wrong)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        found.losses(behaviours.start(tiny_subject, 3), [(1, 40)], [b])


def test_behaviours_join_when_those_before_succeed(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [made(tiny_subject), made(tiny_subject, messages=OTHER)]
    found = search(tiny_subject, both, steps=4, one_by_one=True, stop=True)
    answers = iter([False, True, True])
    monkeypatch.setattr(gcg.Search, "succeeds", lambda self, suffix, active: next(answers))
    states = list(found.steps(found.begin(behaviours.start(tiny_subject, 3))))
    assert [(s.active, s.success) for s in states] == [(1, False), (2, False), (2, True)]
    assert states[1].loss == float("inf")  # the best of one behaviour is not the best of two


def test_several_models_share_one_search(make_model: Callable[..., Any], tiny_subject: Subject) -> None:
    second = replace(tiny_subject, model=make_model(seed=5), name="second")
    b = made(tiny_subject)
    found = search([tiny_subject, second], [b])  # type: ignore[arg-type]
    start = behaviours.start(tiny_subject, 3)
    mean = (by_hand(tiny_subject, b, start) + by_hand(second, b, start)) / 2
    assert found.loss(start) == pytest.approx(mean, abs=1e-4)
    slopes = [F.normalize(search(s, [b]).gradient(start, [b]), dim=-1) for s in (tiny_subject, second)]
    torch.testing.assert_close(found.gradient(start, [b]), (slopes[0] + slopes[1]) / 2, rtol=1e-4, atol=1e-6)


def test_models_of_one_tokenizer_may_have_their_embeddings_padded_differently(
    make_model: Callable[..., Any], tiny_subject: Subject
) -> None:
    second = replace(tiny_subject, model=make_model(seed=5, vocab_size=384), name="second")
    b = made(tiny_subject)
    begun = behaviours.start(tiny_subject, 3)
    for both in ([tiny_subject, second], [second, tiny_subject]):
        found = search(both, [b], steps=1, width=8, top=4)  # type: ignore[arg-type]
        slopes = [F.normalize(search(s, [b]).gradient(begun, [b])[:, :320], dim=-1) for s in both]
        torch.testing.assert_close(found.gradient(begun, [b]), (slopes[0] + slopes[1]) / 2, rtol=1e-4, atol=1e-6)
        (state,) = found.steps(found.begin(begun))
        assert max(state.suffix) < 320


def test_success_is_what_the_model_would_write(tiny_subject: Subject) -> None:
    b, start = made(tiny_subject), behaviours.start(tiny_subject, 3)
    ids = torch.tensor([[*b.before, *start, *b.after]])
    written = tiny_subject.model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]  # type: ignore[operator]
    found = search(tiny_subject, [b])
    assert not found.succeeds(start, [b])
    assert found.succeeds(start, [replace(b, wanted=tuple(written.tolist()))])


def test_bad_input(tiny_subject: Subject, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    b = made(tiny_subject)
    for name in ("steps", "width", "top", "batch"):
        with pytest.raises(InputError, match=f"{name} is 0, a budget of nothing"):
            search(tiny_subject, [b], **{name: 0})
    with pytest.raises(InputError, match="at least one request"):
        search(tiny_subject, [])
    with pytest.raises(InputError, match="A suffix of 0 tokens"):
        behaviours.start(tiny_subject, 0)
    with pytest.raises(InputError, match="the target is empty"):
        behaviours.behaviour(tiny_subject, "row", ASK, " ")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has 3 tokens, but 50"):
        behaviours.behaviour(tiny_subject, "row", ASK, "Sure", tokens=50)  # type: ignore[arg-type]
    spaces = tuple(chat.continuation_ids(tiny_subject.tokenizer, "x ")[-1:]) * 2
    with pytest.raises(InputError, match="does not survive retokenisation behind row"):
        search(tiny_subject, [b]).begin(spaces)
    other = replace(tiny_subject, name="other")
    monkeypatch.setattr(
        type(tiny_subject.tokenizer), "get_vocab", lambda self, seen=[]: {"a": seen.append(1) or len(seen)}
    )
    with pytest.raises(InputError, match="other and .* have different tokenizers"):
        search([tiny_subject, other], [b])  # type: ignore[arg-type]


def test_a_request_that_joins_later_bears_on_the_choice_from_the_start(
    tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not survive behind the second request is never chosen, though only the first is searched on."""
    both = [made(tiny_subject), made(tiny_subject, messages=OTHER)]
    found = search(tiny_subject, both, steps=1, one_by_one=True, width=30, top=40)
    begun = found.begin(behaviours.start(tiny_subject, 3))
    free = found.step(begun).suffix
    survives = candidates.Candidates.survive

    def picky(self: Any, b: behaviours.Behaviour, suffixes: Any) -> list[bool]:
        sound = survives(self, b, suffixes)
        return [good and (b is both[0] or s != free) for good, s in zip(sound, suffixes, strict=True)]

    monkeypatch.setattr(candidates.Candidates, "survive", picky)
    assert found.step(begun).suffix != free


def test_models_that_write_a_request_in_other_tokens_are_refused(tiny_subject: Subject) -> None:
    other = copy.deepcopy(tiny_subject.tokenizer)
    other.chat_template = str(other.chat_template) + " "
    with pytest.raises(InputError, match="have different chat templates"):
        search([tiny_subject, replace(tiny_subject, tokenizer=other, name="other")], [made(tiny_subject)])  # type: ignore[arg-type]


def test_what_does_not_fit_the_context_is_refused(tiny_subject: Subject) -> None:
    found = search(tiny_subject, [made(tiny_subject)])
    with pytest.raises(InputError, match="more than the context of tiny"):
        found.begin(behaviours.start(tiny_subject, 600))


def test_memory_that_does_not_hold_a_gradient_is_said(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    found = search(tiny_subject, [made(tiny_subject)])
    begun = found.begin(behaviours.start(tiny_subject, 3))
    monkeypatch.setattr(losses.Losses, "gradient", full)
    with pytest.raises(InputError, match="does not hold the gradient"):
        found.step(begun)
