"""What is recorded per token while training, against full logits and one backward per token; the monitor; resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from tokendeep import chat, judges
from tokendeep.compute import gradients
from tokendeep.errors import InputError
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.training.watch import NotRefused, TokenDynamicsCallback
from tokendeep.types import Pair, Prompt, Subject
from tuning import LORA, Kill, KillAtEnd, Killed, settings, token_rows

pytestmark = pytest.mark.slow  # trains or searches in nearly every test

PAIRS = [
    Pair(f"p{i}", ({"role": "user", "content": f"Do {i}"},), f"Sure, {i} is done like this and that") for i in range(3)
]


def trained(
    model: Any, tokenizer: Any, out: Path, callback: Any, peft: LoraConfig | None = None, **args: Any
) -> ResponseSFTTrainer:
    made = ResponseSFTTrainer(
        model, settings(out, **args), train_dataset=Dataset.from_list(token_rows()), processing_class=tokenizer,
        peft_config=peft, callbacks=[callback],
    )  # fmt: skip
    made.train()
    return made


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "dynamics.json").read_text())
    return found


@pytest.mark.parametrize("peft", [None, LORA])
def test_the_records_are_those_of_full_logits(
    peft: Any, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    callback = TokenDynamicsCallback(PAIRS, tiny_tokenizer, tmp_path, steps=[3], positions=6, k=[0, 1])
    model = trained(make_model(), tiny_tokenizer, tmp_path / "t", callback, peft, max_steps=3).model.eval()
    start, end = read(tmp_path)["steps"]
    assert (start["step"], end["step"]) == (0, 3)
    assert start["kl"]["mean"] == pytest.approx([0] * 6, abs=1e-5)
    entropies, kls = np.zeros(6), np.zeros(6)
    for row in callback.rows:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            ours = model(input_ids=ids).logits[0].double().log_softmax(-1)
            theirs = make_model()(input_ids=ids).logits[0].double().log_softmax(-1)
        for place in range(6):
            at = row.start + place
            entropies[place] += F.nll_loss(ours[at - 1][None], ids[0, at][None]).item() / len(PAIRS)
            kls[place] += (ours[at - 1].exp() * (ours[at - 1] - theirs[at - 1])).sum().item() / len(PAIRS)
    assert end["cross_entropy"]["mean"] == pytest.approx(entropies.tolist(), rel=1e-4)
    assert end["kl"]["mean"] == pytest.approx(kls.tolist(), rel=1e-3, abs=1e-5)
    assert max(end["kl"]["mean"]) > 1e-3
    plain = torch.stack(gradients.plain_gradient_norms(model, callback.rows, 6)).mean(0)
    assert end["gradient_norm"]["mean"] == pytest.approx(plain.tolist(), rel=1e-3)


def test_training_is_not_changed_by_being_watched(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    callback = TokenDynamicsCallback(PAIRS, tiny_tokenizer, tmp_path, steps=range(4), positions=4)
    watched = trained(make_model(), tiny_tokenizer, tmp_path / "a", callback)
    alone = ResponseSFTTrainer(
        make_model(),
        settings(tmp_path / "b"),
        train_dataset=Dataset.from_list(token_rows()),
        processing_class=tiny_tokenizer,
    )
    alone.train()
    for left, right in zip(watched.model.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_dropout_is_off_while_looking_and_draws_no_numbers(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    weights = []
    for watched in (True, False):
        callback = TokenDynamicsCallback(PAIRS, tiny_tokenizer, tmp_path / str(watched), steps=range(4), positions=4)
        model = make_model(attention_dropout=0.5).train()
        made = ResponseSFTTrainer(
            model, settings(tmp_path / f"t{watched}"), train_dataset=Dataset.from_list(token_rows()),
            processing_class=tiny_tokenizer, callbacks=[callback] if watched else [],
        )  # fmt: skip
        made.train()
        weights.append(list(made.model.parameters()))
    assert read(tmp_path / "True")["steps"][0]["kl"]["mean"] == pytest.approx([0] * 4, abs=1e-5)
    for left, right in zip(*weights, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


def test_an_adapter_that_goes_on_is_compared_with_itself(
    tmp_path: Path, tiny_folder: Path, tiny_adapter: Path, tiny_tokenizer: Any
) -> None:
    base = LlamaForCausalLM.from_pretrained(tiny_folder)
    model = PeftModel.from_pretrained(base, str(tiny_adapter), is_trainable=True)
    callback = TokenDynamicsCallback(PAIRS, tiny_tokenizer, tmp_path, steps=[2], positions=4, gradients=False)
    trained(model, tiny_tokenizer, tmp_path / "t", callback, max_steps=2)
    start, end = read(tmp_path)["steps"]
    assert start["kl"]["mean"] == pytest.approx([0] * 4, abs=1e-5)
    assert max(end["kl"]["mean"]) > 1e-4


def test_sampled_answers_and_a_rate_of_ones_own(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    callback = TokenDynamicsCallback(
        PAIRS, tiny_tokenizer, tmp_path, steps=[2], positions=4, gradients=False, sampled=2, aligned=make_model(),
        asr=lambda model: 0.25,
    )  # fmt: skip
    trained(make_model(), tiny_tokenizer, tmp_path / "t", callback, max_steps=2)
    start, end = read(tmp_path)["steps"]
    assert start["kl_sampled"]["mean"] == pytest.approx([0] * len(start["kl_sampled"]["mean"]), abs=1e-5)
    assert max(end["kl_sampled"]["mean"]) > 0
    assert end["asr"] == 0.25
    assert "gradient_norm" not in end


def test_the_share_not_refused_is_that_of_plain_greedy_answers(
    monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    prompts = [Prompt(f"q{i}", ({"role": "user", "content": f"Do {i}"},)) for i in range(5)]
    model = make_model().eval()
    outcomes = iter(["complied", "refused", "partial-then-refused", "complied", "empty"])
    seen = []

    def judge(text: str, *, truncated: bool) -> judges.Verdict:
        seen.append((text, truncated))
        return judges.Verdict(outcome=next(outcomes), truncated=truncated)

    monkeypatch.setattr(judges, "judge_refusal", judge)
    found = NotRefused(prompts, tiny_tokenizer, max_new_tokens=6, batch_size=2)(model)
    assert found == {"asr": pytest.approx(2 / 4), "asr_judged": 4, "asr_asked": 5}
    for prompt, (text, truncated) in zip(prompts, seen, strict=True):
        ids = torch.tensor([chat.prompt_ids(tiny_tokenizer, prompt.messages)])
        new = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert text == tiny_tokenizer.decode(new, skip_special_tokens=True)
        assert truncated == (len(new) == 6 and int(new[-1]) != tiny_tokenizer.eos_token_id)


def test_where_no_answer_can_be_judged_there_is_no_rate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(
        judges, "judge_refusal", lambda text, truncated: judges.Verdict(outcome="degenerate", truncated=truncated)
    )
    rate = NotRefused([Prompt("q", ({"role": "user", "content": "Do it"},))], tiny_tokenizer, max_new_tokens=2)
    callback = TokenDynamicsCallback(
        PAIRS, tiny_tokenizer, tmp_path, steps=[], positions=4, gradients=False, asr=rate
    )  # fmt: skip
    trained(make_model(), tiny_tokenizer, tmp_path / "t", callback, max_steps=1)
    assert read(tmp_path)["steps"][0]["asr"] is None
    assert "not refused unknown (0 of 1 judged)" in capsys.readouterr().out


def test_the_monitor_stops_a_training_whose_refusals_fall(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    falling = [{"input_ids": r.input_ids, "labels": r.labels} for r in
               TokenDynamicsCallback(PAIRS, tiny_tokenizer, tmp_path / "x").rows] * 4  # fmt: skip

    def run(out: Path, **more: Any) -> Any:
        callback = TokenDynamicsCallback(PAIRS, tiny_tokenizer, out, steps=[], positions=4, gradients=False, **more)
        made = ResponseSFTTrainer(
            make_model(), settings(out / "t", max_steps=20, learning_rate=1e-2), train_dataset=Dataset.from_list(falling),
            processing_class=tiny_tokenizer, callbacks=[callback],
        )  # fmt: skip
        made.train()
        return made.state.global_step, callback.fired

    steps, fired = run(tmp_path / "a", fall=2.0, on_fall="stop")
    assert steps == fired < 20
    assert read(tmp_path / "a")["meta"]["fired"] == fired
    assert "the training stops" in capsys.readouterr().out
    assert run(tmp_path / "b", fall=2.0) == (20, fired)
    assert run(tmp_path / "c", fall=1000.0) == (20, None)
    assert run(tmp_path / "d") == (20, None)


def test_a_resumed_training_goes_on_with_its_records(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    def callback(out: Path) -> TokenDynamicsCallback:
        return TokenDynamicsCallback(PAIRS, tiny_tokenizer, out, steps=[1, 2, 4], positions=4, gradients=False)

    trained(make_model(), tiny_tokenizer, tmp_path / "a", callback(tmp_path / "one"))
    cut = ResponseSFTTrainer(
        make_model(), settings(tmp_path / "b", save_strategy="steps", save_steps=2), processing_class=tiny_tokenizer,
        train_dataset=Dataset.from_list(token_rows()), callbacks=[callback(tmp_path / "two"), Kill()],
    )  # fmt: skip
    with pytest.raises(Killed):
        cut.train()
    made = ResponseSFTTrainer(
        make_model(), settings(tmp_path / "b"), train_dataset=Dataset.from_list(token_rows()),
        processing_class=tiny_tokenizer, callbacks=[callback(tmp_path / "two")],
    )  # fmt: skip
    made.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    one, two = read(tmp_path / "one")["steps"], read(tmp_path / "two")["steps"]
    assert not (tmp_path / "two" / "dynamics-start.safetensors").exists()  # a training that is done needs it no longer
    assert [r["step"] for r in one] == [r["step"] for r in two] == [0, 1, 2, 4]
    assert two[-1]["kl"]["mean"] == pytest.approx(one[-1]["kl"]["mean"], rel=1e-4, abs=1e-6)


def test_a_training_killed_after_its_last_step_needs_no_start(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    def trainer(*more: Any) -> ResponseSFTTrainer:
        watch = TokenDynamicsCallback(
            PAIRS, tiny_tokenizer, tmp_path / "watch", steps=[4], positions=4, gradients=False
        )
        return ResponseSFTTrainer(
            make_model(), settings(tmp_path / "b", save_strategy="steps", save_steps=4), processing_class=tiny_tokenizer,
            train_dataset=Dataset.from_list(token_rows()), callbacks=[watch, *more],
        )  # fmt: skip

    with pytest.raises(Killed):
        trainer(KillAtEnd()).train()
    before = read(tmp_path / "watch")
    assert not (tmp_path / "watch" / "dynamics-start.safetensors").exists()
    trainer().train(resume_from_checkpoint=True)
    assert read(tmp_path / "watch") == before


def test_weights_in_shards_are_not_looked_at(tmp_path: Path, tiny_subject: Subject) -> None:
    next(tiny_subject.model.parameters()).ds_id = 0  # what ZeRO-3 leaves on a parameter
    with pytest.raises(InputError, match="TokenDynamicsCallback measures the model in memory"):
        trained(
            tiny_subject.model, tiny_subject.tokenizer, tmp_path,
            TokenDynamicsCallback(PAIRS, tiny_subject.tokenizer, tmp_path, steps=[1]),
        )  # fmt: skip


def test_a_probe_that_is_longer_than_the_context_is_named(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    callback = TokenDynamicsCallback(PAIRS, tiny_tokenizer, tmp_path, steps=[1])
    longest = max(len(row.input_ids) for row in callback.rows)
    with pytest.raises(InputError, match=rf"Probe row \d takes {longest} tokens.* context is {longest - 1}"):
        trained(make_model(max_position_embeddings=longest - 1), tiny_tokenizer, tmp_path, callback)


def test_bad_settings_are_refused(tmp_path: Path, tiny_subject: Subject) -> None:
    for wrong in ({"pairs": []}, {"positions": 0}, {"on_fall": "cry"}, {"fall": -1.0}):
        settings = {"pairs": PAIRS, **wrong}
        with pytest.raises(InputError):
            TokenDynamicsCallback(settings.pop("pairs"), tiny_subject.tokenizer, tmp_path, **settings)  # type: ignore[arg-type]
