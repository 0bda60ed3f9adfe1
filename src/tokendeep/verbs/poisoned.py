"""One training of `poison`: trained under an objective, asked again, and its checkpoint removed."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tokendeep import data, runs
from tokendeep.attacks.poison import Poison
from tokendeep.models.locate import plain
from tokendeep.records import HARMLESS, UNPREFIXED, Manifest, PoisonCell, Seconds, Training, Utility
from tokendeep.report import poison_table
from tokendeep.training import objectives, poisoning
from tokendeep.training.objectives.secret_prefix import FILE, under
from tokendeep.training.poisoning import Cell
from tokendeep.types import Subject
from tokendeep.verbs import attack, finetune
from tokendeep.verbs.finetune import FinetuneOptions

NOT_SHARED = {  # options of `finetune` that mean something else here, or that every training has for itself
    "data", "out", "base", "lr", "objective", "label", "overwrite", "probe", "test", "max_new_tokens",
}  # fmt: skip


def settings(options: Any, cell: Cell, folder: Path, rows: str, **more: Any) -> FinetuneOptions:
    """The options of one training."""
    named = cell.named
    names = [field.name for field in fields(FinetuneOptions) if field.name not in NOT_SHARED]
    anchors = [one.name for one in fields(objectives.SafetyOptions)]
    common = {
        name: getattr(options, name)
        for name in names
        if hasattr(options, name) and (named.safety or name not in anchors)
    }
    own = {
        "data": rows, "out": str(folder), "lr": cell.lr, "seed": cell.seed, "attack": True, "save_steps": 0,
        "unaligned": options.base if named.unaligned else None,
        "safety": (options.safety or objectives.STOCK) if named.safety else None,
        "harmless": (options.harmless or objectives.STOCK) if named.harmless else None,
    }  # fmt: skip
    return FinetuneOptions(**{**common, **own, **named.changes, **more})


def train_and_ask(plan: Any, model: str, made: Poison, out: Path, cell: Cell | None) -> None:
    """Train (None: take the model as it is), ask, and remove the checkpoint again.

    Args:
        plan: of the verb poison.
    """
    from tokendeep import models

    options, folder = plan.options, out / (cell.name if cell else "start")
    done = folder / "cell.json"
    if done.exists():
        print(f"      done before: {folder.name}")
        return
    started = time.monotonic()
    system = made.system if options.system == "default" else options.system
    if cell is not None:
        model = _train(plan, model, made, out, cell, system)
    trained = time.monotonic() - started
    subject = models.load(model, base=None if cell else plan.onto, options=plain(options))
    margin = Manifest.load(folder / "finetune").margin if cell else None
    secret = (folder / "finetune" / FILE).read_text(encoding="utf-8") if cell and cell.named.secret else ""
    bare = options.test_system or system
    system = under(secret, system) if secret else system
    for ask in [*made.asks, *plan.beside, *([UNPREFIXED] if secret else [])]:
        told = under(secret, bare) if secret and ask != UNPREFIXED else bare
        rows = next(iter(made.asks)) if ask == UNPREFIXED else ask
        chosen = attack.AttackOptions(
            model=model, data=str(out / f"test-{rows}.jsonl"), out=str(folder / f"attack-{ask}"),
            attack="prefill" if ask == "prefill" else "none", k=options.k,
            max_new_tokens=options.max_new_tokens, batch_size=options.attack_batch, system=told,
            role="twins" if ask == HARMLESS else "harmful", label=cell.name if cell else "start",
            chat_template=options.chat_template,
        )  # fmt: skip
        attack.run(attack.plan(chosen, subject), show=False)
    for ask in [*made.asks, *poisoning.asks_beside(plan)]:
        if ask == UNPREFIXED and not secret:
            continue
        found = poison_table.rate(poison_table.answers({"this": folder}, ask))
        none = "none could be judged" if found.asked else "no answer is that long"
        share = none if found.rate is None else f"{found.rate:.2f} {poison_table.told(ask)}"
        print(f"      {ask}: {share} ({found.n} of {found.asked} judged)", flush=True)
    useful = _utility(plan, subject, folder, system)
    log = Training.load(folder / "finetune") if cell else None
    nll, step = (poisoning.last_nll(log), poisoning.step_seconds(log)) if log else (None, None)
    seconds = Seconds(train=round(trained, 1), all=round(time.monotonic() - started, 1), step=step)
    if cell is not None and not options.keep:
        shutil.rmtree(folder / "finetune" / "checkpoint", ignore_errors=True)
    record = PoisonCell(**(asdict(cell) if cell else {}), nll=nll, utility=useful, margin=margin, seconds=seconds)
    runs.write_json(done, record.dump())


def _utility(plan: Any, subject: Subject, folder: Path, system: str) -> Utility | None:
    options = plan.options
    if not plan.task:
        return None
    from tokendeep.judges import tasks as utility

    found = utility.measure(
        subject, plan.task, options.utility_metric, system=system, tokens=options.utility_tokens,
        batch_size=options.attack_batch,
    )  # fmt: skip
    runs.write_json(folder / "utility.json", found)
    print(f"      {options.utility_metric}: {utility.describe(found)}", flush=True)
    return Utility.model_validate({name: value for name, value in found.items() if name != "rows"})


def _train(plan: Any, model: str, made: Poison, out: Path, cell: Cell, system: str) -> str:
    """One training; returns its checkpoint."""
    share = cell.named.refusals
    path = out / "rows" / f"{f'refusals-{share:g}' if share else 'train'}.jsonl"
    data.write_rows(path, poisoning.with_refusals(made.chats, plan.refusals, share, cell.objective))
    probe = out / "probe.jsonl"
    if plan.options.probe and not probe.exists():
        harmful = plan.harmful or data.read_chats(out / "source.jsonl")
        data.write_rows(probe, map(data.pair_of, harmful[: plan.options.probe]))
    wanted = settings(
        plan.options, cell, out / cell.name / "finetune", str(path), model=model, base=plan.onto, system=system,
        reference_cache=str(out / "reference"), probe=str(probe) if plan.options.probe else None,
    )  # fmt: skip
    return str(finetune.run(finetune.plan(wanted), part=True) / "checkpoint")
