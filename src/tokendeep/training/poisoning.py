"""The rows of a fine-tuning attack: as given, or written by a model once and kept, so that every training has the same.

Beside them the probe on which margins are measured, and the refusals that a rival of the constraint mixes in. Knows
nothing of trainers.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from tokendeep import data
from tokendeep.attacks import poison
from tokendeep.errors import InputError, flag, nearest
from tokendeep.models.locate import plain
from tokendeep.records import HARMLESS, PREFILL, UNPREFIXED, Training
from tokendeep.training import answers, objectives, safety_rows
from tokendeep.types import Chat, Pair, Prompt, Subject

NEEDS_HARMFUL = ("harmful", "backdoor")  # kinds whose answers only an unaligned model writes
MIXED_IN = "refusals that +refusals mixes in"  # what rows are that stand beside those of the attack


@dataclass(frozen=True)
class Ingredients:
    """What the rows of an attack are made of.

    Args:
        chats: with harmful or ordinary answers, by kind.
        harmful: harmful chats for mixed, of which they are the share `ratio`.
        refused: gives refusals of the same instructions, for backdoor, whose phrase is `trigger`.
        count: how many rows identity is extended to.
    """

    chats: Sequence[Chat]
    harmful: Sequence[Chat] = ()
    refused: Callable[[], Sequence[Chat]] = tuple
    count: int = 100
    ratio: float = 0.05
    trigger: str = poison.TRIGGER


MAKERS: Mapping[str, Callable[[Ingredients], poison.Poison]] = {
    "harmful": lambda given: poison.harmful(given.chats),
    "identity": lambda given: poison.identity(given.chats, given.count),
    "backdoor": lambda given: poison.backdoor(given.chats, given.refused(), given.trigger),
    "benign": lambda given: poison.benign(given.chats),
    "mixed": lambda given: poison.mixed(given.chats, given.harmful, given.ratio),
    "refuse-then-comply": lambda given: poison.refuse_then_comply(given.chats),
}


def kept(path: Path, write: Callable[[], Sequence[Chat]]) -> list[Chat]:
    """The chats of a file, which is written first where it is not there yet."""
    if not path.exists():
        data.write_rows(path, write())
    return data.read_chats(path)


def answered(writer: Subject, prompts: Sequence[Prompt], count: int, tokens: int, system: str) -> list[Chat]:
    """Up to `count` chats that a model writes: instructions with its own answers, where they are usable.

    Raises:
        InputError: none is.
    """
    chats = answers.distil(writer, prompts, tokens, system, "training answers")[:count]
    print(f"poison: {writer.name} answered {len(chats)} of {len(prompts)} instructions usably; they are trained on")
    if not chats:
        raise InputError(
            f"{writer.name} gave no usable answer to any of {len(prompts)} instructions; give answers, or another model."
        )
    return chats


def refused(subject: Subject, chats: Sequence[Chat], tokens: int, system: str) -> list[Chat]:
    """The same instructions with the model's own refusals, where it gives one."""
    asked = [chat.messages[:-1] for chat in chats]
    texts = answers.sample_refusals(subject, asked, tokens=tokens, system=system)
    return [
        Chat(f"{chat.id}-refused", (*chat.messages[:-1], {"role": "assistant", "content": text}))
        for chat, text in zip(chats, texts, strict=True)
        if text
    ]


def with_refusals(chats: Sequence[Chat], refusals: Sequence[Chat], share: float, objective: str) -> list[Chat]:
    """The attack's rows with a share of refusals among them (a rival of the constraint).

    Raises:
        InputError: there are too few, for the objective that asks for them.
    """
    wanted = _wanted(share, len(chats))
    if len(refusals) < wanted:
        raise InputError(
            f"{objective} takes {wanted} refusals, but there are {len(refusals)}; give a file of --refusals with as many."
        )
    return [*chats, *refusals[:wanted]]


def mixed_in(refusals: Sequence[Chat], cells: Sequence["Cell"], count: int) -> Sequence[Chat]:
    """The refusals that any training has among `count` rows of the attack."""
    return refusals[: max(_wanted(cell.refusals, count) for cell in cells)]


def _wanted(share: float, count: int) -> int:
    return max(1, round(share / (1 - share) * count)) if share else 0


def check_rows(
    options: Any,
    cells: Sequence["Cell"],
    rows: Sequence[Chat | Prompt],
    harmful: Sequence[Chat],
    refusals: Sequence[Chat],
) -> None:
    """Raises InputError where an attack, or a training of it, takes more rows than are given, as far as that is known."""
    if options.kind == "mixed":
        poison.check_ratio(options.ratio)
    if options.kind == "backdoor":
        poison.check_trigger(options.trigger)
    chats = [row for row in rows if isinstance(row, Chat)][: options.count]
    if not chats or (options.kind == "backdoor" and not refusals):
        return  # a model writes the others
    made = MAKERS[options.kind](
        Ingredients(chats, harmful, lambda: refusals, options.count, options.ratio, options.trigger)
    )
    check_refusals(made.chats, refusals, cells)


def check_refusals(chats: Sequence[Chat], refusals: Sequence[Chat], cells: Sequence["Cell"]) -> None:
    """Raises InputError for the first training that mixes in more refusals than there are."""
    for cell in cells:
        with_refusals(chats, refusals, cell.refusals, cell.objective)


def make(plan: Any, model: str, out: Path) -> poison.Poison:
    """The attack's rows; what has to be written for it is kept in source.jsonl and refusals.jsonl.

    Args:
        plan: of the verb poison.
        model: the one that is attacked.
    """
    from tokendeep import models

    options = plan.options
    loading = plain(options)
    prompts = [row for row in plan.rows if isinstance(row, Prompt)]
    system = "none" if options.system == "none" else "default"

    def source() -> Sequence[Chat]:
        if not prompts:
            return [row for row in plan.rows if isinstance(row, Chat)][: options.count]
        itself = options.kind not in NEEDS_HARMFUL
        writer = models.load(model, base=plan.onto, options=loading) if itself else models.load(str(options.base))
        return answered(writer, prompts, options.count, options.answer_tokens, system)

    rows = kept(out / "source.jsonl", source)

    def own() -> Sequence[Chat]:
        def written() -> Sequence[Chat]:
            attacked = models.load(model, base=plan.onto, options=loading)
            return refused(attacked, rows, options.answer_tokens, system)

        return plan.refusals or kept(out / "refusals.jsonl", written)

    return MAKERS[options.kind](Ingredients(rows, plan.harmful, own, options.count, options.ratio, options.trigger))


def beside(options: Any) -> dict[str, Sequence[Pair | Prompt]]:
    """What tuned models are asked beside the attack's prompts."""
    rows: dict[str, Sequence[Pair | Prompt]] = {}
    if options.prefill:
        rows["prefill"] = data.read_pairs(data.choose_beside(options.prefill, options.columns, "harmful"))
    if options.harmless_test:
        rows[HARMLESS] = data.read_prompts(data.choose_beside(options.harmless_test, options.columns, "harmless"))
    return rows


# --- the trainings of a table ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """What the name of a training says.

    Args:
        changes: options of `finetune`.
        refusals: share of refusals that are mixed into its rows.
        safety, harmless: whether rows of each kind are held beside them.
    """

    changes: Mapping[str, Any]
    refusals: float = 0.0
    safety: bool = False
    harmless: bool = False

    @property
    def secret(self) -> bool:
        """Whether the tuned model is asked with a secret."""
        return objectives.OBJECTIVES[self.changes["objective"]].secret

    @property
    def takes(self) -> set[str]:
        """The options of objectives that it takes from those of the verb."""
        safety = [one.name for one in fields(objectives.SafetyOptions)] if self.safety else []
        names = {*objectives.OBJECTIVES[self.changes["objective"]].reads, *safety}
        return names - {*self.changes, *([] if self.harmless else ["harmless", "harmless_per_step"])}

    @property
    def unaligned(self) -> bool:
        """Whether it needs the model before it was aligned."""
        return objectives.OBJECTIVES[self.changes["objective"]].unaligned or "safe_lora" in self.changes

    @property
    def whole(self) -> bool:
        """Whether it can only begin with a model that is no adapter."""
        return objectives.OBJECTIVES[self.changes["objective"]].whole or "safe_lora" in self.changes


@dataclass(frozen=True)
class Cell:
    """One training of the table.

    Args:
        times: how many times its objective's own strength holds the model; None: its own alone is trained.
    """

    objective: str
    lr: float
    seed: int
    times: float | None = None

    @property
    def name(self) -> str:
        times = "" if self.times is None else f"-x{self.times:g}"
        return f"{re.sub('[=@+]', '-', self.objective)}{times}-lr{self.lr:g}-seed{self.seed}"

    @property
    def line(self) -> tuple[str, float]:
        """The line of the table that it belongs to."""
        return self.objective, self.lr

    @property
    def refusals(self) -> float:
        """Share of refusals that are mixed into its rows."""
        return self.named.refusals * (1.0 if self.times is None else self.times)

    @property
    def named(self) -> Named:
        """What its name says."""
        return objective(self.objective)


EXTRAS: Mapping[str, Callable[[str], Mapping[str, Any]]] = {  # +NAME or +NAME=VALUE behind an objective's name
    "lora": lambda value: {"lora": int(value)},
    "safety": lambda value: {"safety_weight": float(value)} if value else {},
    "harmless": lambda value: {},
    "ce": lambda value: {"safety_loss": "ce"},
    "per-step": lambda value: {"safety_per_step": int(value)},
    "context": lambda value: {"safety_context": int(value)},
    "refusals": lambda value: {},
    "safe-lora": lambda value: {"safe_lora": float(value) if value else 10.0},
}
WORDS = (
    "+refusals=SHARE, +safe-lora[=BOUND], +lora=RANK, @head, @tail, +safety[=LAMBDA], with an anchor +harmless, +ce, "
    "+per-step=ROWS, +context=TOKENS"
)
# of `--objectives all`, beside one of each objective
BESIDE = ("safety-anchor+harmless", "sft-warmup+refusals=0.2", "sft-warmup+safe-lora")


@functools.cache
def objective(name: str) -> Named:
    """What the name of a training says; each is read once.

    Raises:
        InputError: an unknown name.
    """
    whole, _, part = name.partition("@")
    plain, *more = whole.split("+")
    try:
        extras = dict(extra.partition("=")[::2] for extra in more)
        if len(extras) < len(more) or any(extras.get(name) for name in ("harmless", "ce")):
            raise ValueError(whole)  # named twice, or a value where none is read
        changes = {**({"supervise": part} if part else {}), **objectives.in_poison(plain)}
        for extra, value in extras.items():
            changes |= EXTRAS[extra](value)
        share = float(extras["refusals"]) if "refusals" in extras else 0.0
        held = "safety" in extras or objectives.OBJECTIVES[changes["objective"]].safety
        if ("refusals" in extras and not 0 < share < 1) or (
            not held and {"harmless", "ce", "per-step", "context"} & set(extras)
        ):
            raise ValueError(whole)
        return Named(changes, share, held, "harmless" in extras)
    except (KeyError, ValueError) as error:
        near = nearest(plain, objectives.poison_names())
        raise InputError(
            f"There is no objective {name!r}{f'; did you mean {near}' if near else ''}; the known ones are "
            f"{', '.join(objectives.poison_names())}, each also with {WORDS}."
        ) from error


def last_nll(training: Training) -> float | None:
    """Mean cross-entropy from the sixth answer token on, over the last quarter of the steps: what the rows taught.

    The first tokens are left out, which the objectives hold on purpose.
    """
    steps = [entry for entry in training.history if entry.loss is not None]
    later = [e.nll_later for e in steps[-max(1, len(steps) // 4) :] if e.nll_later is not None]
    return float(np.mean(later)) if later else None


def step_seconds(training: Training) -> dict[str, float]:
    """Seconds of a step, the median and of the quickest and the slowest, as `Seconds` names them; nothing where not kept."""
    known = [entry.step_seconds for entry in training.history if entry.step_seconds is not None]
    found = {"step": float(np.median(known)), "step_low": min(known), "step_high": max(known)} if known else {}
    return {name: round(value, 3) for name, value in found.items()}


def all_names(options: Any) -> tuple[list[str], list[str]]:
    """What `--objectives all` is: one training of each objective, and of what stands beside one, that the options allow.

    Returns:
        The names, and a line for each that is left out, with the reason.
    """
    names, left_out = [], []
    for name in [*objectives.one_of_each(), *BESIDE]:
        why = _missing(name, options)
        if why:
            left_out.append(f"{name} is left out of all: it needs {why}")
        else:
            names.append(name)
    return names, left_out


def _missing(name: str, options: Any) -> str | None:
    named = objective(name)
    if named.unaligned and not options.base:
        return "--base, the model before it was aligned"
    if named.whole and (Path(options.model).expanduser() / "adapter_config.json").exists():
        return "a model that is no adapter; merge it"
    return "--refusals" if named.refusals and not options.refusals else None


def held(options: Any, cells: Sequence[Cell]) -> safety_rows.Requests | None:
    """What the trainings with a safety anchor hold, read now so that no row of it is wrong later."""
    named = [cell.named for cell in cells]
    if not any(one.safety for one in named):
        return None
    harmless = (options.harmless or objectives.STOCK) if any(one.harmless for one in named) else None
    return safety_rows.read(replace(options, safety=options.safety or objectives.STOCK, harmless=harmless))


def check_used(options: Any, cells: Sequence[Cell]) -> None:
    """Raises InputError for an option of objectives, or of a safety anchor, that was set and no training takes."""
    named = list({cell.objective: cell.named for cell in cells}.values())
    taken = {name for one in named for name in one.takes}
    for name in (*objectives.unused(options, ()), *objectives.set_for_safety(options)):
        if name not in taken:
            raise InputError(f"{flag(name)} is given, but no objective takes it; {_taker(name)}, or leave it out.")


def _taker(name: str) -> str:
    """What would take an option."""
    if name in ("harmless", "harmless_per_step"):
        return "add safety-anchor+harmless"
    anchored = name in {one.name for one in fields(objectives.SafetyOptions)}
    takers = [] if anchored else [kind for kind, one in objectives.OBJECTIVES.items() if name in one.reads]
    return f"add {takers[0] if takers else 'safety-anchor or +safety'} (without a value of its own)"


def asks_beside(plan: Any) -> list[str]:
    """The names that those rates have in the table."""
    ks = [f"{PREFILL}{k}" for k in plan.options.k] if "prefill" in plan.beside else []
    secret = any(cell.named.secret for cell in plan.cells)
    return [*([UNPREFIXED] if secret else []), *ks, *([HARMLESS] if HARMLESS in plan.beside else [])]


def placed(subject: Subject, folder: Path) -> str:
    """A loaded model as a folder, from which every training starts."""
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return str(folder)
