"""The safety anchor: its loss against one written out by hand, what it leaves alone, and the trainer's equivalences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tokendeep import models
from tokendeep.errors import InputError
from tokendeep.training import safety
from tokendeep.training.batches import ROW, supervised_count
from tokendeep.training.referenced import ReferencedSFTTrainer
from tokendeep.training.safety import SafetyAnchor, SafetyBatches
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tokendeep.types import IGNORE
from tuning import (
    LORA,
    PAPER,
    SHARDS,
    Kill,
    Killed,
    assert_same_weights,
    by_hand,
    history,
    settings,
    token_rows,
    two_processes,
)

SAFETY, HARMLESS = token_rows(6, seed=5), token_rows(5, seed=6)
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {  # beside what it stands
    "anchor": (ReferencedSFTTrainer, {}),
    "composed": (ConstrainedSFTTrainer, {"head_anchor": (0.7, 5)}),
}
SGD = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0, "lr_scheduler_type": "constant"}


def anchor(**more: Any) -> SafetyAnchor:
    return SafetyAnchor(**{"rows": SAFETY, "weight": 3.0, "rows_per_step": 4, **more})


def trained(kind: Any, model: Any, tokenizer: Any, out: Path, args: dict[str, Any] | None = None, **more: Any) -> Any:
    made = kind(
        model, settings(out, **(args or {})), train_dataset=Dataset.from_list(token_rows()), processing_class=tokenizer,
        **more,
    )  # fmt: skip
    made.train()
    return made


# --- which rows, when ------------------------------------------------------------------------------


def test_every_pass_takes_every_row_once_and_each_in_another_order() -> None:
    drawn = [place for step in range(12) for place in safety.draw(9, 3, step, seed=0)]
    passes = [drawn[i : i + 9] for i in range(0, 36, 9)]
    assert all(sorted(one) == list(range(9)) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert safety.draw(9, 3, 5, seed=0) != safety.draw(9, 3, 5, seed=1)
    assert safety.draw(9, 3, 5, seed=0) != safety.draw(9, 3, 5, seed=0, tag=1)


@pytest.mark.parametrize(
    ("ranks", "micro", "size"), [(1, 1, 1), (1, 4, 1), (1, 4, 8), (2, 1, 2), (3, 2, 1), (9, 1, 1), (16, 2, 1)]
)
def test_the_rows_of_a_step_are_the_same_however_it_is_cut(ranks: int, micro: int, size: int) -> None:
    numbered = [{**row, ROW: 100 + i} for i, row in enumerate(SAFETY)]
    rows = SafetyBatches(
        {"harmful": (numbered, 4)}, 0, inner=lambda batch: {"labels": torch.tensor([[0]])}, references={}
    )
    seen: list[dict[str, Any]] = []
    rows.collator = lambda part: seen.extend(part) or part  # type: ignore[assignment,func-returns-value]
    sizes = []
    for rank in range(ranks):
        batches: list[dict[str, Any]] = [{} for _ in range(micro)]
        rows.attach(batches, step=7, rank=rank, ranks=ranks, size=size)
        sizes.append([len(batch.get(safety.SAFETY, ())) for batch in batches])
    assert len(set(map(tuple, sizes))) == 1  # each process runs the model as often
    counted = [row for row in seen if row["weight"]]
    assert sorted(row[ROW] for row in counted) == sorted(100 + place for place in safety.draw(6, 4, 7, 0))
    assert sum(row["weight"] * supervised_count(row) for row in counted) == pytest.approx(1)


@pytest.mark.parametrize(
    ("more", "says"),
    [({"weight": -1}, "weight"), ({"weight": float("nan")}, "weight"), ({"rows_per_step": 0}, "rows_per_step"),
     ({"loss": "mse"}, "loss"), ({"rows": None}, "rows of the safety anchor must be"), ({"rows": "r.jsonl"}, "list of rows"),
     ({"rows": []}, "no rows for the safety anchor"), ({"weight": "3"}, "must be a number"),
     ({"rows_per_step": 2.5}, "whole number")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        anchor(**more)


@pytest.mark.slow
def test_columns_that_would_go_unused_are_refused(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    weighted = [{**row, "weight": 0.5} for row in SAFETY]
    with pytest.raises(InputError, match="have the column weight"):
        trained(ReferencedSFTTrainer, make_model(), tiny_tokenizer, tmp_path, safety_anchor=anchor(rows=weighted))


@pytest.mark.slow
def test_more_rows_a_step_than_there_are(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="takes 7 harmful rows of the safety anchor, but there are 6"):
        trained(ReferencedSFTTrainer, make_model(), tiny_tokenizer, tmp_path, safety_anchor=anchor(rows_per_step=7))


# --- the loss --------------------------------------------------------------------------------------


def plain_loss(model: Any, rows: list[dict[str, list[int]]]) -> torch.Tensor:
    """Mean cross-entropy of the supervised tokens, by full logits."""
    return torch.cat([-_logps(model, row).gather(1, _targets(row)[:, None])[:, 0] for row in rows]).mean()


def kl_loss(model: Any, ref: Any, rows: list[dict[str, list[int]]]) -> torch.Tensor:
    """Mean divergence from the reference at the supervised tokens, by full logits."""
    with torch.no_grad():
        theirs = torch.cat([_logps(ref, row) for row in rows])
    ours = torch.cat([_logps(model, row) for row in rows])
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()


def _logps(model: Any, row: dict[str, list[int]]) -> torch.Tensor:
    start = next(i for i, label in enumerate(row["labels"]) if label != IGNORE)
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
    return torch.as_tensor(logits[start - 1 : len(row["input_ids"]) - 1].log_softmax(-1))


def _targets(row: dict[str, list[int]]) -> torch.Tensor:
    return torch.tensor([label for label in row["labels"] if label != IGNORE])


def held_in(step: int) -> list[list[dict[str, list[int]]]]:
    """The four harmful rows of a step, and the three harmless ones."""
    groups = enumerate([(SAFETY, 4), (HARMLESS, 3)])
    return [[rows[i] for i in safety.draw(len(rows), count, step, 0, tag)] for tag, (rows, count) in groups]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("tied", [False, True])
def test_two_steps_equal_training_by_hand(
    loss: str, tied: bool, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """Each group has a mean of its own; the head of a tied model is trained, and the reference keeps the first one."""
    made = trained(
        ReferencedSFTTrainer, make_model(tie_word_embeddings=tied), tiny_tokenizer, tmp_path,
        args={"max_steps": 2, "max_grad_norm": 0, "lr_scheduler_type": "constant", "optim": "sgd", "learning_rate": 0.1},
        safety_anchor=anchor(loss=loss, harmless=HARMLESS, harmless_per_step=3),
    )  # fmt: skip
    plain, ref = make_model(tie_word_embeddings=tied).train(), make_model(tie_word_embeddings=tied)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)  # Adam makes whole steps of the rounding in a KL of 0
    losses, divergences = [], []
    for step in range(2):
        held = held_in(step)
        kls = [kl_loss(plain, ref, rows) for rows in held]
        beside = kls if loss == "kl" else [plain_loss(plain, rows) for rows in held]
        total = plain_loss(plain, token_rows()) + 3 * (beside[0] + beside[1])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
        divergences.append([one.item() for one in kls])
    assert history(made, "loss") == pytest.approx(losses, rel=1e-4)
    assert_same_weights(made.model, plain, 1e-4)
    if loss == "kl":
        assert history(made, "safety_kl") == pytest.approx([one[0] for one in divergences], rel=1e-3, abs=1e-6)
        assert history(made, "harmless_kl") == pytest.approx([one[1] for one in divergences], rel=1e-3, abs=1e-6)
        assert history(made, "safety_kl")[0] == pytest.approx(0, abs=1e-6)  # at step 0 it is its own reference
        assert history(made, "safety_kl_max")[1] > history(made, "safety_kl")[1] > 0.001
    else:
        assert not history(made, "safety_kl")


@pytest.mark.slow
def test_the_anchor_stays_out_of_the_figures_of_the_task(
    tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    one = trained(ReferencedSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "a")
    two = trained(ReferencedSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "b", safety_anchor=anchor())
    assert history(two, "nll")[0] == pytest.approx(history(one, "nll")[0], rel=1e-6)
    assert history(two, "nll_later")[0] == pytest.approx(history(one, "nll_later")[0], rel=1e-6)
    assert history(two, "safety_nll")[0] == pytest.approx(
        plain_loss(make_model(), [SAFETY[i] for i in safety.draw(6, 4, 0, 0)]).item(), rel=1e-4
    )


@pytest.mark.slow
def test_it_holds(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    ref = make_model()
    free = trained(ReferencedSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "a", args={"max_steps": 20})
    held = trained(
        ReferencedSFTTrainer,
        make_model(),
        tiny_tokenizer,
        tmp_path / "b",
        args={"max_steps": 20},
        safety_anchor=anchor(),
    )
    moved = [kl_loss(one.model, ref, SAFETY).item() for one in (free, held)]
    assert moved[1] < moved[0] / 5
    assert plain_loss(held.model, token_rows()) < plain_loss(ref, token_rows()) - 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ReferencedSFTTrainer, ConstrainedSFTTrainer])
def test_lambda_0_changes_nothing(
    kind: Any, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    without = trained(kind, make_model(), tiny_tokenizer, tmp_path / "a")
    zero = trained(kind, make_model(), tiny_tokenizer, tmp_path / "b", safety_anchor=anchor(weight=0))
    assert_same_weights(without.model, zero.model, 0)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("opening", [0.0, 0.7])
def test_beside_eq3_and_the_opening_anchor_it_equals_training_by_hand(
    opening: float, loss: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    made = trained(
        ConstrainedSFTTrainer, make_model(), tiny_tokenizer, tmp_path, head_anchor=(opening, 5),
        args={**SGD, "max_steps": 2}, safety_anchor=anchor(loss=loss, harmless=HARMLESS, harmless_per_step=3),
    )  # fmt: skip
    plain, ref = make_model().train(), make_model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    losses, divergences, task = [], [], []
    for step in range(2):
        held = held_in(step)
        kls = [kl_loss(plain, ref, rows) for rows in held]
        beside = kls if loss == "kl" else [plain_loss(plain, rows) for rows in held]
        task.append(by_hand(plain, ref, token_rows(), PAPER, 0.1).item())
        total = by_hand(plain, ref, token_rows(), PAPER, 0.1, opening) + 3 * (beside[0] + beside[1])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
        divergences.append(kls[0].item())
    assert history(made, "loss") == pytest.approx(losses, rel=1e-4)
    assert history(made, "constrained") == pytest.approx(task, rel=1e-4)
    assert_same_weights(made.model, plain, 1e-4)
    if loss == "kl":
        assert history(made, "safety_kl") == pytest.approx(divergences, rel=1e-3, abs=1e-6)
        assert divergences[1] > 0.001


# --- equivalences ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("loss", ["kl", "ce"])
@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation_changes_nothing(
    kind: str, loss: str, micro: int, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    trainer, more = KINDS[kind]
    more = {**more, "safety_anchor": anchor(loss=loss, harmless=HARMLESS, harmless_per_step=3)}
    whole = trained(trainer, make_model(), tiny_tokenizer, tmp_path / "a", **more)
    cut = trained(
        trainer, make_model(), tiny_tokenizer, tmp_path / "b", **more,
        args={"per_device_train_batch_size": micro, "gradient_accumulation_steps": 8 // micro},
    )  # fmt: skip
    for name in (
        "loss",
        "nll",
        "safety_nll",
        "harmless_nll",
        *(["safety_kl", "safety_kl_max"] if loss == "kl" else []),
    ):
        assert history(whole, name) == pytest.approx(history(cut, name), rel=2e-4, abs=1e-6), name
    assert_same_weights(whole.model, cut.model, 2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("peft", [None, LORA])
def test_packed_equals_padded(
    peft: Any, kind: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    trainer, more = KINDS[kind]
    more = {**more, "peft_config": peft, "safety_anchor": anchor(harmless=HARMLESS)}
    padded = trained(trainer, make_model(), tiny_tokenizer, tmp_path / "a", args={"max_steps": 2}, **more)
    packed = trained(
        trainer, make_model(), tiny_tokenizer, tmp_path / "b", **more,
        args={"max_steps": 2, "packing": True, "max_length": 32, "per_device_train_batch_size": 16},
    )  # fmt: skip
    assert history(packed, "safety_nll") == pytest.approx(history(padded, "safety_nll"), rel=1e-4)
    assert history(packed, "safety_kl") == pytest.approx(history(padded, "safety_kl"), rel=1e-3, abs=1e-6)
    assert_same_weights(padded.model, packed.model, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("peft", [None, LORA])
def test_resumed_equals_uninterrupted(
    peft: Any, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    args = {"save_strategy": "steps", "save_steps": 1}
    more: dict[str, Any] = {"peft_config": peft, "safety_anchor": anchor()}
    whole = trained(ReferencedSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "a", args=args, **more)
    with pytest.raises(Killed):
        trained(
            ReferencedSFTTrainer, make_model(), tiny_tokenizer, tmp_path / "b", args=args, callbacks=[Kill()], **more
        )
    again = ReferencedSFTTrainer(
        make_model(), settings(tmp_path / "b", **args), train_dataset=Dataset.from_list(token_rows()),
        processing_class=tiny_tokenizer, **more,
    )  # fmt: skip
    again.train(resume_from_checkpoint=True)
    assert_same_weights(whole.model, again.model, 1e-6)
    assert history(again, "safety_kl") == pytest.approx(history(whole, "safety_kl"), rel=1e-4, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "loss", "per_step", "rank", "weights"),
    [
        *(("anchor", "kl", rows, rank, weights)
          for rows in (3, 4) for rank in ("full", "lora") for weights in ("whole", "shards")),
        ("anchor", "ce", 3, "full", "whole"),
        ("anchor", "ce", 4, "lora", "shards"),
        ("composed", "kl", 3, "full", "whole"),
        ("composed", "kl", 3, "lora", "shards"),
        ("composed", "ce", 4, "full", "shards"),
    ],
)  # fmt: skip
def test_two_processes_equal_one(
    kind: str, loss: str, per_step: int, rank: str, weights: str, tmp_path: Path, make_model: Callable[..., Any],
    tiny_tokenizer: Any,
) -> None:  # fmt: skip
    """With three safety rows a step one process takes a row that does not count."""
    make_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    one = in_one_of(tmp_path, "one", kind, loss, per_step, rank, 8)
    script = (
        "import sys; from pathlib import Path; from test_safety import *\n"
        "folder, kind, loss, per_step, rank = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]\n"
        "made = in_one_of(folder, 'two', kind, loss, per_step, rank, 4)\n"
        "made.save_model(str(folder / 'tuned'))\n"
        "names = ('loss', 'nll', 'safety_nll', 'safety_kl', 'safety_kl_max', 'harmless_kl', 'constrained', 'anchor_kl')\n"
        "if made.accelerator.is_main_process:\n"
        "    (folder / 'two.json').write_text(json.dumps({name: history(made, name) for name in names}))\n"
    )
    two_processes(script, tmp_path, tmp_path, kind, loss, per_step, rank, **(SHARDS if weights == "shards" else {}))
    for name, values in json.loads((tmp_path / "two.json").read_text()).items():
        assert values == pytest.approx(history(one, name), rel=5e-4, abs=2e-6), name
    two = models.load(
        str(tmp_path / "tuned"), base=None if rank == "full" else str(tmp_path / "model"), dtype="float32"
    )
    assert_same_weights(one.model, two.model, 1e-4)
    start = models.load(str(tmp_path / "model"), dtype="float32").model
    assert kl_loss(start, two.model, SAFETY) > 1e-3  # and it has been trained


def in_one_of(folder: Path, name: str, kind: str, loss: str, per_step: int, rank: str, rows: int) -> Any:
    """A training of the model in a folder, by `rows` rows a process."""
    subject, (trainer, more) = models.load(str(folder / "model"), dtype="float32"), KINDS[kind]
    given = anchor(loss=loss, rows_per_step=per_step, harmless=HARMLESS, harmless_per_step=2)
    return trained(
        trainer, subject.model, subject.tokenizer, folder / name, peft_config=LORA if rank == "lora" else None,
        args={**SGD, "per_device_train_batch_size": rows}, safety_anchor=given, **more,
    )  # fmt: skip
