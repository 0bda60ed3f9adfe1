"""One training of `poison`: trained under an objective, asked again, and its checkpoint removed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tokendeep import data, runs
from tokendeep.attacks.poison import Poison, told_apart
from tokendeep.models import locate
from tokendeep.models.locate import plain
from tokendeep.records import (
    ASK_HARMLESS,
    UNPREFIXED,
    UTILITY,
    VALIDATION_HARMLESS,
    Manifest,
    PoisonCell,
    Seconds,
    Training,
    Utility,
)
from tokendeep.report import poison_table
from tokendeep.training import objectives, poisoning, safety_rows
from tokendeep.training.objectives import asft
from tokendeep.training.objectives.secret_prefix import FILE, under
from tokendeep.training.objectives.strength import check_another, how_unaligned
from tokendeep.training.poisoning import Cell
from tokendeep.types import Pair, Subject
from tokendeep.verbs import attack, finetune
from tokendeep.verbs.finetune import FinetuneOptions

NOT_SHARED = {  # options of `finetune` that mean something else here, or that every training has for itself
    "data", "out", "base", "lr", "objective", "label", "overwrite", "probe", "test", "max_new_tokens",
}  # fmt: skip


TOOK = "seconds.json"  # how long the training took, in the folder of its cell


def settings(options: Any, cell: Cell, folder: Path, rows: str, **more: Any) -> FinetuneOptions:
    """The options of one training; what its objective does not read is left at the default."""
    named = cell.named
    others = {one.name for one in fields(objectives.ObjectiveOptions)} - {*named.takes, "reference_cache"}
    names = [one.name for one in fields(FinetuneOptions) if one.name not in {*NOT_SHARED, *others}]
    common = {name: getattr(options, name) for name in names if hasattr(options, name)}
    own = {
        "data": rows, "out": str(folder), "lr": cell.lr, "seed": cell.seed, "attack": True, "save_steps": 0,
        "unaligned": options.base if named.unaligned else None,
        "safety": (options.safety or objectives.STOCK) if named.safety else None,
        "harmless": (options.harmless or objectives.STOCK) if named.harmless else None,
    }  # fmt: skip
    made = FinetuneOptions(**{**common, **own, **named.changes, **more})
    return made if cell.times is None else replace(made, **objectives.stronger(made, cell.times))


def train_and_ask(plan: Any, model: str, made: Poison, out: Path, cell: Cell | None) -> None:
    """Train (None: take the model as it is), ask, and remove the checkpoint again.

    Args:
        plan: of the verb poison.
    """
    folder = out / (cell.name if cell else "start")
    if (folder / PoisonCell.FILE).exists():
        print(f"      done before: {folder.name}")
        return
    seconds = train(plan, model, made, out, cell) if cell else 0.0
    ask(plan, model, made, out, cell, seconds)
    if cell and not plan.options.keep:
        drop(out, cell)


# --- asking -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A model that is asked, loaded.

    Args:
        model: where it lies.
        task: the system prompt of its task.
        told: that of harmful requests, as the operator would give it: with the secret of the training, where there is one.
        bare: the same without the secret.
    """

    subject: Subject
    model: str
    task: str
    told: str
    bare: str

    @property
    def secret(self) -> bool:
        return self.told != self.bare


def load(plan: Any, model: str, made: Poison, out: Path, cell: Cell | None) -> Asked:
    """The tuned model of a training, or the one that is attacked."""
    from tokendeep import models

    options, system = plan.options, _system(plan, made)
    folder = out / cell.name / "finetune" if cell else None
    place = str(folder / "checkpoint") if folder else model
    subject = models.load(place, base=None if cell else plan.onto, options=plain(options))
    bare = options.test_system or system
    if folder is None or not (cell and cell.named.secret):
        return Asked(subject, place, system, bare, bare)
    secret = (folder / FILE).read_text(encoding="utf-8")
    return Asked(subject, place, under(secret, system), under(secret, bare), bare)


def put(plan: Any, asked: Asked, out: Path, name: str, ask: str, rows: str | None = None) -> None:
    """Put the rows of one way of asking to a model; its answers and their verdicts lie in attack-ASK of its folder.

    Args:
        name: the folder of its training.
        rows: the way of asking whose rows are taken, where it is another one.
    """
    options = plan.options
    chosen = attack.AttackOptions(
        model=asked.model, data=str(out / f"test-{rows or ask}.jsonl"), out=str(out / name / f"attack-{ask}"),
        attack="prefill" if ask == "prefill" else "none", k=options.k,
        max_new_tokens=options.max_new_tokens, batch_size=options.attack_batch,
        system=asked.bare if ask == UNPREFIXED else asked.told,
        role="twins" if ask in ASK_HARMLESS else "harmful", label=name,
        chat_template=options.chat_template,
    )  # fmt: skip
    attack.run(attack.plan(chosen, asked.subject), show=False)


def told(folder: Path, ask: str) -> None:
    """Say what came of one way of asking."""
    found = poison_table.rate(poison_table.answers({"this": folder}, ask))
    none = "none could be judged" if found.asked else "no answer is that long"
    share = none if found.rate is None else f"{found.rate:.2f} {poison_table.told(ask)}"
    print(f"      {ask}: {share} ({found.n} of {found.asked} judged)", flush=True)


def ask(plan: Any, model: str, made: Poison, out: Path, cell: Cell | None, seconds: float) -> None:
    """Ask a model all that is asked, and write cell.json.

    Args:
        seconds: how long its training took.
    """
    started, folder = time.monotonic(), out / (cell.name if cell else "start")
    asked = load(plan, model, made, out, cell)
    if cell is None and plan.held and plan.held.harmless:  # what strengths are compared with
        put(plan, asked, out, folder.name, VALIDATION_HARMLESS)
        told(folder, VALIDATION_HARMLESS)
    for name in [*made.asks, *plan.beside, *([UNPREFIXED] if asked.secret else [])]:
        put(plan, asked, out, folder.name, name, next(iter(made.asks)) if name == UNPREFIXED else None)
    for name in [*made.asks, *poisoning.asks_beside(plan)]:
        if name != UNPREFIXED or asked.secret:
            told(folder, name)
    useful = utility(plan, asked, folder / UTILITY, plan.task)
    log = Training.load(folder / "finetune") if cell else None
    nll, steps = (poisoning.last_nll(log), poisoning.step_seconds(log)) if log else (None, {})
    margin = Manifest.load(folder / "finetune").margin if cell else None
    times = Seconds(train=round(seconds, 1), all=round(seconds + time.monotonic() - started, 1), **steps)
    record = PoisonCell(**of(cell), nll=nll, utility=useful, margin=margin, seconds=times)
    runs.write_json(folder / PoisonCell.FILE, record.dump())


def of(cell: Cell | None) -> dict[str, Any]:
    """What a record says of its training."""
    return {name: value for name, value in asdict(cell).items() if value is not None} if cell else {}


def utility(plan: Any, asked: Asked, path: Path, rows: Sequence[Pair]) -> Utility | None:
    """How well rows of the task are answered; the scores of each are kept in a file. None where there are no rows."""
    options = plan.options
    if not rows:
        return None
    from tokendeep.judges import tasks

    found = tasks.measure(
        asked.subject, rows, options.utility_metric, system=asked.task, tokens=options.utility_tokens,
        batch_size=options.attack_batch,
    )  # fmt: skip
    runs.write_json(path, found)
    print(f"      {options.utility_metric}: {tasks.describe(found)}", flush=True)
    return Utility.model_validate({name: value for name, value in found.items() if name not in ("rows", "asked")})


# --- training ---------------------------------------------------------------------------------------


def hold(plan: Any, model: str, made: Poison, out: Path, cells: Sequence[Cell]) -> None:
    """Have the model answer the requests at which trainings hold it, before the first of them; each finds the answers there.

    Args:
        cells: the trainings that are to come.

    Raises:
        InputError: it refuses none of them, or too few for a step; --base has another vocabulary, where it is compared with,
            or the same weights, or its weights cannot be compared.
    """
    _check_base(plan, model, cells)
    chosen: dict[str, FinetuneOptions] = {}  # one of those that ask alike
    names = [one.name for one in fields(objectives.SafetyOptions) if one.name not in ("safety_weight", "safety_loss")]
    for cell in cells:
        wanted = _wanted(plan, model, made, out, cell)
        needed = objectives.OBJECTIVES[wanted.objective].refusals(wanted)
        if cell.named.safety or needed:
            alike = [needed and wanted.objective, needed, bool(wanted.lora), wanted.seed]
            chosen.setdefault(str([*alike, *(getattr(wanted, name) for name in names)]), wanted)
    whole = next((cell for cell in cells if cell.named.whole), None)
    if not chosen and not whole:
        return
    adapter = locate.locate(model, plan.options).adapter is not None
    if whole:
        compared = _wanted(plan, model, made, out, whole)
        asft.check_alignment(compared, finetune.load(compared, adapter), whole.objective)
    for lora in (False, True):  # a model that gets an adapter is loaded in another number format
        group = [wanted for wanted in chosen.values() if bool(wanted.lora) is lora]
        subject = finetune.load(group[0], adapter) if group else None
        told = [line for wanted in group for line in _held(subject, wanted, out)]
        for line in dict.fromkeys(told):
            print(f"poison: {line}", flush=True)


def _check_base(plan: Any, model: str, cells: Sequence[Cell]) -> None:
    """Raises InputError where a training compares the model with --base and their tokens differ, or they are the same."""
    from tokendeep import models

    if not any(cell.named.unaligned for cell in cells):
        return
    options = plan.options
    ours = models.load_tokenizer(model, plain(options), base=plan.onto)
    theirs = models.load_tokenizer(options.base, how_unaligned(options), needs_template=False)
    models.check_same_tokens(
        (options.model, ours), (options.base, theirs), "give the model that it was aligned from as --base"
    )
    found = [
        models.facts(spec, how, base=onto)
        for spec, how, onto in ((model, plain(options), plan.onto), (options.base, how_unaligned(options), None))
    ]
    same = all(found[0][name] == found[1][name] for name in ("revision", "adapter"))
    check_another(options.model, options.base, same)


def _held(subject: Any, wanted: FinetuneOptions, out: Path) -> Sequence[str]:
    """What comes of the requests at which a training holds the model, in lines."""
    if objectives.OBJECTIVES[wanted.objective].refusals(wanted):
        safety_rows.stock_refusals(subject, wanted, out)
    requests = safety_rows.read(wanted)
    return safety_rows.held(subject, requests, wanted, out).lines if requests else ()


def _wanted(plan: Any, model: str, made: Poison, out: Path, cell: Cell, rows: str = "", **more: Any) -> FinetuneOptions:
    return settings(
        plan.options, cell, out / cell.name / "finetune", rows, model=model, base=plan.onto, system=_system(plan, made),
        reference_cache=str(out / "reference"), **more,
    )  # fmt: skip


def _system(plan: Any, made: Poison) -> str:
    """The system prompt of the rows: the attack's own, unless one is given."""
    return str(made.system if plan.options.system == "default" else plan.options.system)


def train(plan: Any, model: str, made: Poison, out: Path, cell: Cell) -> float:
    """One training, whose checkpoint is kept for now; returns the seconds that it took, in an earlier call too."""
    started, share, took = time.monotonic(), cell.refusals, out / cell.name / TOOK
    path = out / "rows" / f"{f'refusals-{share:g}' if share else 'train'}.jsonl"
    data.write_rows(path, told_apart(poisoning.with_refusals(made.chats, plan.refusals, share, cell.objective)))
    probe = out / "probe.jsonl"
    if plan.options.probe and not probe.exists():
        harmful = plan.harmful or data.read_chats(out / "source.jsonl")
        data.write_rows(probe, map(data.pair_of, harmful[: plan.options.probe]))
    wanted = _wanted(plan, model, made, out, cell, str(path), probe=str(probe) if plan.options.probe else None)
    held = {"--validation": plan.held.prompts, "--validation-harmless": plan.held.harmless} if plan.held else {}
    later = {finetune.TESTED: plan.asked(), **held}
    finetune.run(replace(finetune.plan(wanted), later=later), part=True)
    if not took.exists():
        runs.write_json(took, {"train": time.monotonic() - started})
    return float(json.loads(took.read_text(encoding="utf-8"))["train"])


def drop(out: Path, cell: Cell) -> None:
    """Remove the checkpoint of a training."""
    shutil.rmtree(out / cell.name / "finetune" / "checkpoint", ignore_errors=True)
