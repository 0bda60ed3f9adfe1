"""Rivals that hold every answer token: their losses against ones written out by hand, and the trainer's equivalences."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from tokendeep import judges, models
from tokendeep.errors import InputError
from tokendeep.models.options import ModelOptions
from tokendeep.training import held, pact, risk, safety_answers, safety_rows, salient
from tokendeep.training.held import HeldSFTTrainer, Term, header_ids, shares, without_prompt
from tokendeep.training.pact import SafetyTokens
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.types import IGNORE, Subject
from tokendeep.verbs.finetune import FinetuneOptions
from tuning import LORA, SHARDS, Kill, Killed, assert_same_weights, history, settings, token_rows, two_processes

IDS = torch.tensor([7, 40, 3, 250, 11])
DIRECTION = torch.tensor([0.6, -0.3, 0.5, 0.2, -0.5])
TOKENS = SafetyTokens(IDS, DIRECTION / DIRECTION.norm())
RISKS = [1.0, 5.0, 2.0, 3.5, 4.0, 5.0, 1.0, 2.6]
TERMS = {
    "pact": Term(0.7, pact.value(TOKENS), alone=True),
    "pact-full": Term(0.7, pact.value(TOKENS, full=True), alone=True),
    "str-like": Term(0.7, salient.value(IDS)),
    "adaptive": Term(0.7, by_risk=True),
}


def rows_for(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [dict(row) for row in token_rows()]
    return [{**row, "risk": one} for row, one in zip(rows, RISKS, strict=True)] if name == "adaptive" else rows


def trained(
    kind: Any, model: Any, tokenizer: Any, out: Path, rows: Any = None, args: dict[str, Any] | None = None, **more: Any
) -> Any:
    made = kind(
        model, settings(out, **(args or {})), train_dataset=Dataset.from_list(rows or token_rows()),
        processing_class=tokenizer, **more,
    )  # fmt: skip
    made.train()
    return made


# --- by hand ---------------------------------------------------------------------------------------


def logits_of(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *answer]])
    return torch.as_tensor(model(input_ids=ids).logits[0, len(prompt) - 1 : -1])


def spread_by_hand(logits: list[float]) -> float:
    whole = sum(math.exp(one) for one in logits)
    mass, count = 0.0, 0
    for one in sorted((math.exp(one) / whole for one in logits), reverse=True):
        mass, count = mass + one, count + 1
        if mass >= 0.9:
            break
    return count / len(logits)


def pact_by_hand(ours: torch.Tensor, full: torch.Tensor, alone: torch.Tensor, t: int) -> torch.Tensor:
    """One answer token, at position t from 1; number by number, as the authors' code, which counts from 0."""
    train, ref, post = ours[IDS], full[IDS], alone[IDS]
    c = 1 / (1 + math.exp(-2 * (spread_by_hand(train.tolist()) - spread_by_hand(post.tolist()))))
    c *= math.exp(-max(t - 1 - 8, 0) / 8)
    p = torch.softmax(((1 - c) * ref + c * post) / 2, -1)
    q = [float(a) * max(float(v), 0) for a, v in zip(p, TOKENS.direction, strict=True)]
    q = [one / sum(q) for one in q]
    logs = torch.log_softmax(train / 2, -1)
    return torch.stack([one * (math.log(one) - log) * 4 for one, log in zip(q, logs, strict=True) if one]).sum()


def full_by_hand(ours: torch.Tensor, full: torch.Tensor, alone: torch.Tensor, t: int) -> torch.Tensor:
    c = 1 / (1 + math.exp(-2 * (spread_by_hand(ours[IDS].tolist()) - spread_by_hand(alone[IDS].tolist()))))
    c *= math.exp(-max(t - 1 - 8, 0) / 8)
    p = torch.softmax(((1 - c) * full + c * alone) / 2, -1).tolist()
    inside, mass = {}, sum(p[i] for i in IDS.tolist())
    for i, v in zip(IDS.tolist(), TOKENS.direction.tolist(), strict=True):
        inside[i] = p[i] * max(v, 0)
    q = [inside[i] / sum(inside.values()) * mass if i in inside else one for i, one in enumerate(p)]
    logs = torch.log_softmax(ours / 2, -1)
    return torch.stack([one * (math.log(one) - log) * 4 for one, log in zip(q, logs, strict=True) if one]).sum()


def loss_by_hand(name: str, model: Any, ref: Any, header: list[int]) -> torch.Tensor:
    values = []
    for row in rows_for(name):
        start = next(i for i, label in enumerate(row["labels"]) if label != IGNORE)
        prompt, answer = row["input_ids"][:start], row["input_ids"][start:]
        ours = logits_of(model, prompt, answer)
        with torch.no_grad():
            full, alone = logits_of(ref, prompt, answer), logits_of(ref, header, answer)
        for place, token in enumerate(answer):
            ce = -ours[place].log_softmax(-1)[token]
            if name == "adaptive":
                w = min(max((row["risk"] - 2) / 3, 0.1), 0.9)
                p = full[place].softmax(-1)
                kl = (p * (p.log() - ours[place].log_softmax(-1))).sum()
                values.append((1 - w) * ce + 0.7 * w * kl)
            elif name == "str-like":
                values.append(ce + 0.7 * sum((ours[place][i] - full[place][i]) ** 2 for i in IDS.tolist()) / 5)
            else:
                one = pact_by_hand if name == "pact" else full_by_hand
                values.append(ce + 0.7 * one(ours[place], full[place], alone[place], place + 1))
    return torch.stack(values).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("tied", [False, True])
def test_two_steps_equal_training_by_hand(
    name: str, tied: bool, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    made = trained(
        HeldSFTTrainer, make_model(tie_word_embeddings=tied), tiny_tokenizer, tmp_path, rows_for(name),
        args={"max_steps": 2, "max_grad_norm": 0, "lr_scheduler_type": "constant", "optim": "sgd", "learning_rate": 0.05},
        term=TERMS[name],
    )  # fmt: skip
    model, ref = make_model(tie_word_embeddings=tied).train(), make_model(tie_word_embeddings=tied)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        loss = loss_by_hand(name, model, ref, header_ids(tiny_tokenizer))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert history(made, "loss") == pytest.approx(losses, rel=1e-4)
    assert_same_weights(made.model, model, 1e-4)


def test_the_spread_counts_the_tokens_of_nine_tenths() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.05, 1e-9]])
    logits[2] = torch.tensor([0.5, 0.38, 0.1, 0.02]).log()
    assert pact.spread(logits).tolist() == [1.0, 0.25, 0.75]  # .5 + .38 fall short of .9


def test_the_gate_is_a_half_at_equality_and_fades_behind_the_ninth_token() -> None:
    logits = torch.zeros(4, 5)
    found = pact.gate(logits, logits, torch.tensor([1, 9, 10, 17]))
    assert found.tolist() == pytest.approx([0.5, 0.5, 0.5 * math.exp(-1 / 8), 0.5 * math.exp(-1)])


def test_inside_the_set_alone_mass_may_leave_it_and_over_the_full_vocabulary_it_may_not() -> None:
    ref = torch.zeros(1, 300)
    away = ref.clone()
    away[:, IDS] -= 5
    inside, full = pact.value(TOKENS), pact.value(TOKENS, full=True)
    at = torch.tensor([100])
    assert inside(away, ref, ref, at).item() == pytest.approx(inside(ref, ref, ref, at).item(), abs=1e-5)
    assert full(away, ref, ref, at).item() > full(ref, ref, ref, at).item() + 0.01


def test_gradients_are_0_where_nothing_is_held() -> None:
    logits = torch.randn(3, 300, requires_grad=True)
    ref = torch.randn(3, 300)
    for value in (pact.value(TOKENS), salient.value(IDS)):
        (grad,) = torch.autograd.grad(value(logits, ref, ref, torch.tensor([1, 2, 30])).sum(), logits)
        outside = torch.ones(300, dtype=torch.bool).index_fill(0, IDS, False)
        assert not grad[:, outside].any()
        assert grad[:, IDS].all()
    (grad,) = torch.autograd.grad(salient.value(IDS)(ref.requires_grad_(), ref.detach()).sum(), ref)
    assert not grad.any()


def test_weights_by_risk() -> None:
    plain, kl = shares(torch.tensor([1.0, 2.0, 3.5, 5.0]))
    assert kl.tolist() == pytest.approx([0.1, 0.1, 0.5, 0.9])
    assert plain.tolist() == pytest.approx([0.9, 0.9, 0.5, 0.1])


def test_an_answer_without_its_prompt() -> None:
    row = {"input_ids": [1, 2, 3, 4, 5], "labels": [IGNORE, IGNORE, 3, 4, 5]}
    assert without_prompt(row, [8, 9]) == {"input_ids": [8, 9, 3, 4, 5], "labels": [IGNORE, IGNORE, 3, 4, 5]}
    packed = {"input_ids": [1, 2, 3, 4, 5], "labels": [IGNORE, 2, 3, IGNORE, 5], "seq_lengths": [3, 2]}
    assert without_prompt(packed, [8]) == {
        "input_ids": [8, 2, 3, 8, 5], "labels": [IGNORE, 2, 3, IGNORE, 5], "seq_lengths": [3, 2],
    }  # fmt: skip


def test_no_refusal_of_the_stock_is_told_from_other_failures(
    tmp_path: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = FinetuneOptions(model="tiny", data="rows", out=str(tmp_path), objective="pact", unaligned="base")
    monkeypatch.setattr(safety_answers, "written", lambda subject, harmful, harmless, options: [])
    with pytest.raises(InputError, match="refuses none of the 160 requests of the stock, from which pact learns"):
        safety_rows.stock_refusals(tiny_subject, options, tmp_path / "none")

    def fails(*given: Any) -> Any:
        raise InputError("The logits are NaN.")

    monkeypatch.setattr(safety_answers, "written", fails)
    with pytest.raises(InputError, match=r"^The logits are NaN\.$"):
        safety_rows.stock_refusals(tiny_subject, options, tmp_path / "nan")


def test_the_id_of_a_request_may_hold_another_end_of_line(
    tmp_path: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"kind": "refusals", "id": "a\u2028b\x85c", "input_ids": [1, 2], "labels": [IGNORE, 2]}
    monkeypatch.setattr(safety_answers, "written", lambda subject, harmful, harmless, options: [row])
    options = FinetuneOptions(model="tiny", data="rows", out=str(tmp_path))
    assert safety_rows._kept(tiny_subject, safety_rows.Requests([]), options, tmp_path / "safety") == [row]


def test_what_another_version_of_the_judge_kept_is_not_taken(
    tmp_path: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of references outlives an upgrade."""
    options = FinetuneOptions(model="tiny", data="rows", out=str(tmp_path), reference_cache=str(tmp_path / "kept"))
    asked: list[str] = []

    def written(*_: Any) -> list[dict[str, Any]]:
        asked.append(str(judges.JUDGES["refusal"].version))
        return []

    monkeypatch.setattr(safety_answers, "written", written)
    for version in (1, 1, 2, 1):
        monkeypatch.setitem(judges.JUDGES, "refusal", replace(judges.JUDGES["refusal"], version=version))
        with pytest.raises(InputError, match="refuses none"):
            safety_rows.stock_refusals(tiny_subject, options, tmp_path)
    assert asked == ["1", "2"]


def test_the_header_is_what_the_template_opens_an_answer_with(tiny_tokenizer: Any) -> None:
    assert tiny_tokenizer.decode(header_ids(tiny_tokenizer)) == "<|im_start|>assistant\n"
    tiny_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    assert tiny_tokenizer.decode(header_ids(tiny_tokenizer)) == held.HEADER


@pytest.mark.slow
def test_the_header_is_found_where_its_tokens_merge_with_what_stands_before() -> None:
    tokenizer = models.load_tokenizer("smollm2", ModelOptions(chat_template="alpaca"))
    assert tokenizer.decode(header_ids(tokenizer)) == "### Response:\n"


# --- equivalences ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("adapter", [False, True])
def test_accumulation_changes_nothing(
    name: str, adapter: bool, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    more = {"term": TERMS[name], "peft_config": LORA if adapter else None}
    whole = trained(HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "a", rows_for(name), **more)
    cut = trained(
        HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "b", rows_for(name),
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, **more,
    )  # fmt: skip
    for figure in ("loss", "nll", "held"):
        assert history(cut, figure) == pytest.approx(history(whole, figure), rel=1e-3, abs=1e-5), figure
    assert_same_weights(cut.model, whole.model, 1e-3)


def trained_by_all(folder: Path, out: Path, rows_a_device: int, peft: Any) -> dict[str, dict[str, list[float]]]:
    """What every term logs, of a training from the model of a folder."""
    found = {}
    for name in TERMS:
        subject = models.load(str(folder), dtype="float32", trainable=True)
        args = {"per_device_train_batch_size": rows_a_device}
        made = trained(
            HeldSFTTrainer, subject.model, subject.tokenizer, out / name, rows_for(name), args, term=TERMS[name],
            peft_config=peft,
        )  # fmt: skip
        found[name] = {figure: history(made, figure) for figure in ("loss", "nll", "held")}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["whole", "shards"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_processes_equal_one(kind: str, weights: str, tmp_path: Path, tiny_folder: Path) -> None:
    script = (
        "import json, sys; from pathlib import Path; from test_held import *\n"
        "folder, model, peft = Path(sys.argv[1]), Path(sys.argv[2]), LORA if sys.argv[3] == 'lora' else None\n"
        "found = trained_by_all(model, folder / 'two', 4, peft)\n"
        "from tokendeep import runs\n"
        "if runs.is_main_process():\n"
        "    (folder / 'two.json').write_text(json.dumps(found))\n"
    )
    two_processes(script, tmp_path, tmp_path, tiny_folder, kind, **(SHARDS if weights == "shards" else {}))
    two = json.loads((tmp_path / "two.json").read_text())
    one = trained_by_all(tiny_folder, tmp_path / "one", 8, LORA if kind == "lora" else None)
    for name, figures in one.items():
        for figure, values in figures.items():
            assert len(values) == 4
            assert two[name][figure] == pytest.approx(values, rel=5e-4, abs=2e-6), (name, figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pact", "str-like"])
def test_packing_changes_nothing_in_the_first_loss(
    name: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    args = {"max_steps": 1, "max_length": 64}
    padded = trained(HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "a", args=args, term=TERMS[name])
    packed = trained(
        HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "b", term=TERMS[name],
        args={**args, "packing": True, "per_device_train_batch_size": 4},
    )  # fmt: skip
    assert history(packed, "loss") == pytest.approx(history(padded, "loss"), rel=1e-4)
    assert history(packed, "held") == pytest.approx(history(padded, "held"), rel=1e-3, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
def test_a_training_that_was_cut_off_goes_on(
    name: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    args: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    given: dict[str, Any] = {"rows": rows_for(name), "args": args, "term": TERMS[name]}
    whole = trained(HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "a", **given)
    with pytest.raises(Killed):
        trained(HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "b", callbacks=[Kill()], **given)
    made = HeldSFTTrainer(
        make_model(), settings(tmp_path / "b", **args), train_dataset=Dataset.from_list(rows_for(name)),
        processing_class=tiny_tokenizer, term=TERMS[name],
    )  # fmt: skip
    made.train(resume_from_checkpoint=True)
    assert history(made, "loss") == pytest.approx(history(whole, "loss"), rel=1e-4)
    assert_same_weights(made.model, whole.model, 1e-5)


@pytest.mark.slow
def test_weight_0_is_plain_training(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    plain = trained(ResponseSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "a")
    zero = trained(
        HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "b", term=Term(0.0, pact.value(TOKENS), alone=True)
    )
    assert_same_weights(plain.model, zero.model, 0)
    assert not list((tmp_path / "b").rglob("reference-*"))


@pytest.mark.slow
def test_an_evaluation_is_that_of_plain_training(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    found = []
    for kind, more in ((ResponseSFTTrainer, {}), (HeldSFTTrainer, {"term": TERMS["pact"]})):
        made = trained(
            kind, make_model(), tiny_tokenizer, tmp_path, args={"max_steps": 1, "learning_rate": 0.0}, **more
        )
        found.append(made.evaluate(Dataset.from_list(token_rows(3, seed=9)))["eval_loss"])
    assert found[0] == pytest.approx(found[1])


@pytest.mark.slow
def test_evaluation_rows_need_no_risk(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    rows = [{**row, "risk": 3} for row in token_rows()]
    made = trained(
        HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path, rows, term=TERMS["adaptive"],
        eval_dataset=Dataset.from_list(token_rows(3, seed=9)),
    )  # fmt: skip
    assert made.evaluate()["eval_loss"] > 0


@pytest.mark.slow
def test_a_risk_out_of_range(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    rows = [{**row, "risk": 7} for row in token_rows()]
    with pytest.raises(InputError, match="Row 1: its risk is 7, but must be a number from 1 to 5"):
        trained(HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path, rows, term=TERMS["adaptive"])


@pytest.mark.slow
def test_rows_without_a_risk(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="column risk"):
        trained(HeldSFTTrainer, make_model(), tiny_tokenizer, tmp_path, term=TERMS["adaptive"])


# --- what is made of models -------------------------------------------------------------------------


def test_safety_tokens_are_the_likeliest_in_refusals_and_point_to_the_aligned_model(
    make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    bos = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[bos])
    aligned, base = (Subject(make_model(seed), tokenizer, f"m{seed}") for seed in (0, 1))
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    asked, rows = ["Do a thing", "Say it"], [
        {"input_ids": [5, 6, 20, 21, end], "labels": [IGNORE, IGNORE, 20, 21, end]},
        {"input_ids": [9, 30, end], "labels": [IGNORE, 30, end]},
    ]  # fmt: skip
    found = pact.safety_tokens(aligned, base, asked, rows)
    p = [logits_of(aligned.model, [5, 6], [20, 21]).softmax(-1), logits_of(aligned.model, [9], [30]).softmax(-1)]
    plain = [tiny_tokenizer(f"User: {text}\n\nAssistant: ")["input_ids"] for text in asked]
    b = [logits_of(base.model, plain[0], [20, 21]).softmax(-1), logits_of(base.model, plain[1], [30]).softmax(-1)]
    mean = (p[0].mean(0) + p[1].mean(0)) / 2
    difference = (p[0].mean(0) - b[0].mean(0) + p[1].mean(0) - b[1].mean(0)) / 2
    best = sorted(range(len(mean)), key=lambda i: -mean[i])[:50]
    assert found.ids.tolist() == best
    z = (difference[best] - difference[best].mean()) / difference[best].std(correction=0)
    torch.testing.assert_close(found.direction, (z / z.square().sum().sqrt()).detach())


def test_a_base_with_padded_embeddings_has_the_same_safety_tokens(
    make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    row = {"input_ids": [5, 6, 20, 21], "labels": [IGNORE, IGNORE, 20, 21]}
    small, padded = (make_model(1, tie_word_embeddings=False) for _ in range(2))
    padded.resize_token_embeddings(384, mean_resizing=False)
    with torch.no_grad():
        for name in ("lm_head", "model.embed_tokens"):
            padded.get_submodule(name).weight[:320] = small.get_submodule(name).weight
        padded.lm_head.weight[320:] = 0
    aligned = Subject(make_model(0), tiny_tokenizer, "aligned")
    found, wider = (
        pact.safety_tokens(aligned, Subject(one, tiny_tokenizer, "base"), ["Do a thing"], [row])
        for one in (small, padded)
    )
    assert wider.ids.tolist() == found.ids.tolist()
    assert wider.direction.shape == found.direction.shape
    turned = pact.safety_tokens(Subject(padded, tiny_tokenizer, "aligned"), aligned, ["Do a thing"], [row])
    assert int(turned.ids.max()) < 320


def test_a_base_that_is_the_model_itself(make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    subject = Subject(make_model(), tiny_tokenizer, "m")

    row = {"input_ids": [*tiny_tokenizer("User: a\n\nAssistant: ")["input_ids"], 20]}
    row["labels"] = [*[IGNORE] * (len(row["input_ids"]) - 1), 20]
    with pytest.raises(InputError, match="the same probability"):
        pact.safety_tokens(subject, subject, ["a"], [row])


def test_a_probe_learns_what_can_be_told_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(80, 16, generator=draw)
    harmful = states[:, 0] > 0
    states[:, 0] += 3 * (harmful.float() - 0.5)
    probe = risk.learn(states, harmful)
    assert probe.accuracy > 0.9
    assert probe.risk(states[:4]) == [5.0 if one else 1.0 for one in harmful[:4].tolist()]
    assert probe.risk(states) == risk.learn(states, harmful).risk(states)


def test_the_best_pass_of_a_probe_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seed in (0, 3):  # nothing can be learnt, so more passes do better and worse
        draw = torch.Generator().manual_seed(seed)
        states, harmful = torch.randn(40, 16, generator=draw), torch.rand(40, generator=draw) > 0.5
        for passes in (1, 2, 5, 12, 30):
            monkeypatch.setattr(risk, "PASSES", passes)
            found.append(risk.learn(states, harmful).accuracy)
    assert found[:5] == [found[0]] * 5
    assert found[5:] == sorted(found[5:])
    assert found[-1] > found[5]


def test_states_of_a_request_are_the_mean_over_tokens_and_layers(tiny_model: Any) -> None:
    (found,) = risk.request_states(tiny_model, [[5, 6, 7]])
    out = tiny_model(input_ids=torch.tensor([[5, 6, 7]]), output_hidden_states=True)
    torch.testing.assert_close(found, torch.stack(out.hidden_states)[:, 0].mean((0, 1)).detach())
    assert risk.request_of({"input_ids": [1, 2, 3], "labels": [IGNORE, IGNORE, 3]}) == [1, 2]
