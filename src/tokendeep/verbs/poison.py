"""VERB poison: one fine-tuning attack, trained under several objectives, learning rates and seeds, then asked again.

Every training starts from the same model, on the same rows, and shares the pre-computed reference. What is done is on
disk and is not done twice; the table is written anew after every training, with what has not been run yet left empty.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokendeep import data, models, runs
from tokendeep.attacks import poison
from tokendeep.errors import InputError, check_known, check_least
from tokendeep.models.options import ModelOptions
from tokendeep.records import Manifest, PoisonCell, PoisonTable, Seconds, Training, Utility
from tokendeep.report import poison_table
from tokendeep.types import Subject
from tokendeep.verbs import attack, finetune, poison_rows
from tokendeep.verbs.options import FinetuneConfig, PoisonConfig

NAMED: dict[str, dict[str, Any]] = {  # objective: what it changes in the settings of `finetune`
    "sft": {"objective": "sft", "warmup_steps": 0},
    "sft-warmup": {"objective": "sft"},
    "constrained": {"objective": "constrained", "warmup_steps": 0},
    "constrained-warmup": {"objective": "constrained"},
    "anchored": {"objective": "anchored"},
    "anchored-all": {"objective": "anchored", "anchor_positions": 10**6},
}
SCHEDULED: dict[str, Any] = {  # objective=VALUE: the same
    "beta": lambda value: {"objective": "constrained", "beta_head": [], "beta_tail": float(value)},
    "head": lambda value: {"objective": "constrained", "beta_head": [2.0] * int(value)},
    "anchored": lambda value: {"objective": "anchored", "anchor": float(value)},
}


NOT_SHARED = {  # settings of `finetune` that mean something else here, or that every training has for itself
    "data", "out", "lr", "objective", "label", "overwrite", "probe", "test", "max_new_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

    objective: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{re.sub('[=@+]', '-', self.objective)}-lr{self.lr:g}-seed{self.seed}"


def run(config: PoisonConfig) -> Path:
    """Train and evaluate every cell that has not been; writes table.json and table.md. Returns the folder.

    Raises:
        InputError: a setting or a row that cannot be used, before anything is trained.
    """
    cells = check(config)
    sources = {n: s for n in ("data", "test", "harmful", "refusals", "utility_data") if (s := getattr(config, n))}
    prompts = data.read_prompts(config.test)
    kinds = {name: data.kind(source) for name, source in sources.items()}
    poison_rows.check(config, kinds)
    models.check_spec(config.model, config)
    if config.base:
        models.check_spec(config.base, ModelOptions())
    state = runs.open_run(config.out, "poison", asdict(config), sources, overwrite=config.overwrite)
    out = state.out
    if state.finished:
        print(f"poison: {out} already holds this finished run\n\n{(out / 'table.md').read_text(encoding='utf-8')}")
        return out
    if config.overwrite and not (out / "source.jsonl").exists():
        _remove_trainings(out)
    runs.private_dir(out)
    made = poison_rows.make(config, kinds, out)
    print(f"poison ({config.kind}): {len(made.chats)} rows to train on, {len(prompts)} prompts to ask")
    near = poison_rows.overlap(made.chats, prompts)
    if near:
        print(f"poison: {near} of the {len(prompts)} prompts are near-duplicates of rows that are trained on")
    for ask, change in made.asks.items():
        data.write_rows(out / f"test-{ask}.jsonl", map(change, prompts))
    todo = [None, *cells]
    for number, cell in enumerate(todo):
        title = cell.name if cell else "before the attack"
        print(f"\n[{number + 1}/{len(todo)}] {title}", flush=True)
        _cell(config, made, out, cell)
        table = write_table(config, made, out, cells)
    print(f"\n{table}")
    state.finish(near_duplicates=near, label=config.label or f"{config.kind} rows", cells=[cell.name for cell in cells])
    return out


def _remove_trainings(out: Path) -> None:
    """What an earlier run wrote below the folder: only runs of ours, each known by its manifest."""
    for manifest in [*out.glob("*/finetune/manifest.json"), *out.glob("*/attack-*/manifest.json")]:
        if "tokendeep" in json.loads(manifest.read_text(encoding="utf-8")):
            shutil.rmtree(manifest.parent)
    for cell in out.glob("*/cell.json"):
        cell.unlink()


def check(config: PoisonConfig) -> list[Cell]:
    """The trainings to run, seed by seed, so that a table cut off is complete for its first seeds.

    Raises:
        InputError: a setting out of its range.
    """
    check_known(config, {"kind": poison.KINDS})
    for name in ("objectives", "lr", "seeds"):
        if not getattr(config, name):
            raise InputError(f"--{name} is empty; give at least one.")
        if len(set(getattr(config, name))) < len(getattr(config, name)):
            raise InputError(f"--{name} names something twice; a training counts once.")
    if config.utility_limit is not None and config.utility_limit < 1:
        raise InputError(f"--utility_limit is {config.utility_limit}, but must be at least 1.")
    check_least(config, {"count": 1, "max_new_tokens": 1, "attack_batch": 1, "utility_tokens": 1, "probe": 0})
    cells = [Cell(o, lr, seed) for seed in config.seeds for lr in config.lr for o in config.objectives]
    for cell in cells:
        finetune.check(settings(config, cell, Path("checked"), "checked"))
    if any("+refusals" in cell.objective for cell in cells) and not config.refusals:
        raise InputError("An objective with +refusals needs --refusals, a file with refusals to mix in.")
    if config.utility_data:
        from tokendeep.judges import tasks as utility

        utility.check(config.utility_metric)
    return cells


def objective(name: str) -> tuple[dict[str, Any], float]:
    """What an objective changes in the settings of `finetune`, and the share of refusals mixed in.

    Raises:
        InputError: an unknown name.
    """
    whole, _, part = name.partition("@")
    plain, *more = whole.split("+")
    change: dict[str, Any] = {"supervise": part} if part else {}
    share = 0.0
    try:
        if plain in NAMED:
            change |= NAMED[plain]
        else:
            kind, _, value = plain.partition("=")
            change |= SCHEDULED[kind](value)
        for extra in more:
            kind, _, value = extra.partition("=")
            if kind == "refusals":
                share = float(value)
                if not 0 < share < 1:
                    raise ValueError(value)
            elif kind == "lora":
                change["lora"] = int(value)
            else:
                raise KeyError(kind)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"There is no objective {name!r}; the known ones are {', '.join(NAMED)}, beta=B, head=N and anchored=LAMBDA, "
            "each also with +refusals=SHARE, +lora=RANK, @head or @tail."
        ) from error
    return change, share


def settings(config: PoisonConfig, cell: Cell, folder: Path, rows: str) -> FinetuneConfig:
    """The settings of one training."""
    change, _ = objective(cell.objective)
    common = {
        f.name: getattr(config, f.name)
        for f in fields(FinetuneConfig)
        if hasattr(config, f.name) and f.name not in NOT_SHARED
    }
    return FinetuneConfig(
        **{
            **common, "data": rows, "out": str(folder), "lr": cell.lr, "seed": cell.seed, "attack": True, "save_steps": 0,
            **change,
        }
    )  # fmt: skip


# --- one training ------------------------------------------------------------------------------------


def _cell(config: PoisonConfig, made: poison.Poison, out: Path, cell: Cell | None) -> None:
    """Train (None: take the model as it is), ask, and remove the checkpoint again."""
    folder = out / (cell.name if cell else "start")
    done = folder / "cell.json"
    if done.exists():
        print(f"      done before: {folder.name}")
        return
    started, model, system = time.monotonic(), config.model, config.system
    if system == "default":
        system = made.system
    if cell is not None:
        rows = out / "rows" / f"{_mixed_name(cell)}.jsonl"
        mixed = poison_rows.with_refusals(config, made.chats, objective(cell.objective)[1], cell.objective)
        data.write_rows(rows, mixed)
        wanted = settings(config, cell, folder / "finetune", str(rows))
        probe = str(poison_rows.probe(config, out)) if config.probe else None
        wanted = replace(wanted, system=system, reference_cache=str(out / "reference"), probe=probe)
        model = str(finetune.run(wanted) / "checkpoint")
    trained = time.monotonic() - started
    subject = models.load(model, options=poison_rows.options(config))
    margin = Manifest.load(folder / "finetune").margin if cell else None
    for ask in made.asks:
        chosen = attack.AttackOptions(
            model=model, data=str(out / f"test-{ask}.jsonl"), out=str(folder / f"attack-{ask}"), attack="none",
            max_new_tokens=config.max_new_tokens, batch_size=config.attack_batch, system=config.test_system or system,
            role="harmful", label=cell.name if cell else "start", chat_template=config.chat_template,
        )  # fmt: skip
        attack.run(attack.plan(chosen, subject), show=False)
        found = poison_table.rate(poison_table.answers({"this": folder}, ask))
        share = "none could be judged" if found.rate is None else f"{found.rate:.2f} not refused"
        print(f"      {ask}: {share} ({found.n} of {found.asked} judged)", flush=True)
    useful = _utility(config, subject, folder, system)
    nll = _last_nll(folder / "finetune") if cell else None
    seconds = Seconds(train=round(trained, 1), all=round(time.monotonic() - started, 1))
    if cell is not None and not config.keep:
        shutil.rmtree(folder / "finetune" / "checkpoint", ignore_errors=True)
    record = PoisonCell(**(asdict(cell) if cell else {}), nll=nll, utility=useful, margin=margin, seconds=seconds)
    runs.write_json(done, record.dump())


def _utility(config: PoisonConfig, subject: Subject, folder: Path, system: str) -> Utility | None:
    if not config.utility_data:
        return None
    from tokendeep.judges import tasks as utility

    found = utility.measure(
        subject, config.utility_data, config.utility_metric, system=system, tokens=config.utility_tokens,
        limit=config.utility_limit, batch_size=config.attack_batch,
    )  # fmt: skip
    runs.write_json(folder / "utility.json", found)
    print(f"      {config.utility_metric}: {utility.describe(found)}", flush=True)
    return Utility.model_validate({name: value for name, value in found.items() if name != "rows"})


def _mixed_name(cell: Cell) -> str:
    share = objective(cell.objective)[1]
    return f"refusals-{share:g}" if share else "train"


def _last_nll(folder: Path) -> float | None:
    """Mean cross-entropy from the sixth answer token on, over the last quarter of the steps: what the rows taught.

    The first tokens are left out, which the objectives hold on purpose.
    """
    steps = [entry for entry in Training.load(folder).history if entry.loss is not None]
    later = [e.nll_later for e in steps[-max(1, len(steps) // 4) :] if e.nll_later is not None]
    return float(np.mean(later)) if later else None


# --- the table -----------------------------------------------------------------------------------------


def write_table(config: PoisonConfig, made: poison.Poison, out: Path, cells: Sequence[Cell]) -> str:
    """table.json and table.md: a line per objective and learning rate, over the seeds that are done."""
    asks = list(made.asks)
    first = config.objectives[0]
    lines = PoisonTable([poison_table.line("start", None, {"start": out / "start"}, asks, None)])
    for lr in config.lr:
        done = {name: _done(out, cells, name, lr) for name in config.objectives}
        lines += [
            poison_table.line(name, lr, folders, asks, done[first] if name != first else None)
            for name, folders in done.items()
        ]
    runs.write_json(out / "table.json", lines.dump())
    text = poison_table.markdown(lines, asks, first, config.utility_metric if config.utility_data else None)
    runs.write_text(out / "table.md", text)
    return text


def _done(out: Path, cells: Sequence[Cell], name: str, lr: float) -> dict[str, Path]:
    """The folders of the trainings of one line that are finished, by seed."""
    own = {str(c.seed): out / c.name for c in cells if (c.objective, c.lr) == (name, lr)}
    return {seed: folder for seed, folder in own.items() if (folder / "cell.json").exists()}
