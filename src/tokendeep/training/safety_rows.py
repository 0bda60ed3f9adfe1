"""The rows of a safety anchor: requests with the model's own answers, written and judged before it is trained.

Harmful requests with its refusals, where harmful answers are given also with what it says behind their first tokens, and
harmless requests with its answers. Kept in one private file under a key of the weights, the requests and the settings, so
that runs of one model share them, and one that was cut off goes on with the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep import chat, data, judges, runs
from tokendeep.attacks.prompts import overlap
from tokendeep.data import stock
from tokendeep.errors import InputError
from tokendeep.models.locate import plain
from tokendeep.records import HeldRows, SafetyRows
from tokendeep.training import safety_answers
from tokendeep.training.objectives import OBJECTIVES, STOCK
from tokendeep.training.options import check_per_step
from tokendeep.training.safety_answers import BEHIND, HARMFUL, HARMLESS, NO_CONTEXT, REFUSALS
from tokendeep.types import Chat, Pair, Prompt, Subject

if TYPE_CHECKING:
    from tokendeep.training.safety import SafetyAnchor


@dataclass(frozen=True)
class Requests:
    """What a safety anchor is made of: prompts, or pairs with harmful answers, and harmless prompts."""

    harmful: Sequence[Pair | Prompt]
    harmless: Sequence[Prompt] = ()

    def asked(self) -> list[str]:
        """The texts of all requests."""
        return [data.asked(row) for row in (*self.harmful, *self.harmless)]

    def repeated(self) -> list[str]:
        """How many requests stand there twice: in `--safety` itself, or in `--harmless` too."""
        harmful, harmless = ([str(row.messages) for row in rows] for rows in (self.harmful, self.harmless))
        again, both = len(harmful) - len(set(harmful)), len([text for text in harmless if text in set(harmful)])
        twice = [f"{again} of {len(harmful)} requests of --safety are there before, word for word, and are held again"]
        shared = [
            f"{both} of {len(harmless)} requests of --harmless stand in --safety too; what the model refuses of them is held as "
            "refused, what it answers as answered"
        ]
        return [*(twice if again else ()), *(shared if both else ())]

    def lines(self, options: Any) -> list[str]:
        """How many there are, and where they come from."""
        sources = {options.safety: self.harmful, f"{options.harmless} (harmless)": self.harmless}
        return [f"held: {', '.join(f'{len(rows)} requests of {name}' for name, rows in sources.items() if rows)}"]


def read(options: Any) -> Requests | None:
    """The requests that `--safety` and `--harmless` name; None where there is no anchor.

    Raises:
        InputError: a source that cannot be read, or a row of it that is wrong.
    """
    if not options.safety or not options.safety_weight:
        return None
    harmful: Sequence[Pair | Prompt] = (
        _stock("instruction") if options.safety == STOCK else _harmful(options.safety, options.columns)
    )
    return Requests(harmful, harmless(options) if options.harmless else ())


def harmless(options: Any) -> Sequence[Prompt]:
    """The harmless requests that `--harmless` names: a file, or the stock's.

    Raises:
        InputError: a source that cannot be read, or a row of it that is wrong.
    """
    if options.harmless == STOCK:
        return _stock("twin")
    return data.read_prompts(data.choose_beside(options.harmless, options.columns, "harmless"))


def check(requests: Requests | None, options: Any) -> None:
    """Raises InputError where a training takes more refusals or harmless answers than there are requests.

    A harmful request gives one row, and another behind the first tokens of its harmful answer.
    """
    _check_refusals(options, len(_stock("instruction")), "at most ")
    if requests is None:
        return
    most = len(requests.harmful)
    if options.safety_per_step > most and options.safety_context:
        most += sum(map(_has_context, requests.harmful))
    check_per_step(HARMFUL, most, options.safety_per_step, "at most ")
    if options.harmless:
        check_per_step(HARMLESS, len(requests.harmless), options.harmless_per_step, "at most ")


def _has_context(row: Pair | Prompt) -> bool:
    """Whether it has a harmful answer, behind whose first tokens a model can be asked."""
    return isinstance(row, Pair) and not safety_answers.refuses(row.response)


def _stock(field: str) -> list[Prompt]:
    rows = stock.rows("harmful.jsonl", "train")
    return data.read_prompts([{"id": f"stock-{row['id']}", "instruction": row[field]} for row in rows])


def _harmful(source: str, columns: Sequence[str]) -> Sequence[Pair | Prompt]:
    chosen = data.choose_beside(source, columns, "harmful")
    return data.read_prompts(chosen) if data.kind(chosen) == "prompts" else data.read_pairs(chosen)


@dataclass(frozen=True)
class Held:
    """The rows of an anchor, and what became of the requests.

    Args:
        rows: each with `group`, `kind`, `id`, `k` (harmful tokens of its context), `input_ids` and `labels`.
        found: how many requests of each kind came to how many rows.
        lines: the same in words.
        start: as `ReferencedSFTTrainer` takes it: the model that gave the answers, where it is not the one that is trained.
    """

    rows: Sequence[dict[str, Any]]
    found: Mapping[str, HeldRows]
    lines: Sequence[str] = ()
    start: Any = None

    def settings(self, options: Any) -> dict[str, Any]:
        """What a trainer takes of it."""
        return {"safety_anchor": self.anchor(options), **({} if self.start is None else {"start": self.start})}

    def anchor(self, options: Any) -> SafetyAnchor:
        """The anchor that a trainer takes."""
        from tokendeep.training.safety import SafetyAnchor

        by = {name: [_ids(row) for row in self.rows if row["group"] == name] for name in (HARMFUL, HARMLESS)}
        return SafetyAnchor(
            by[HARMFUL], by[HARMLESS] or None, options.safety_weight, options.safety_per_step, options.harmless_per_step,
            options.safety_loss, options.seed,
        )  # fmt: skip

    def record(self, near: Mapping[str, int]) -> SafetyRows:
        """What it held, for a manifest; `near` as `SafetyRows` names it."""
        return SafetyRows.model_validate({**self.found, **near})


def _ids(row: dict[str, Any]) -> dict[str, list[int]]:
    return {name: row[name] for name in ("input_ids", "labels")}


def stock_requests() -> tuple[list[Prompt], list[Prompt]]:
    """The harmful requests of the stock that are there to train with, and their harmless twins."""
    return _stock("instruction"), _stock("twin")


def stock_refusals(subject: Subject, options: Any, out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What the model says to the harmful requests of the stock that it refuses, as rows, and those requests.

    Args:
        out: folder of the run, where it keeps them unless there is a folder for several runs.

    Raises:
        InputError: it refuses none, or fewer than the objective needs.
    """
    requests = Requests(_stock("instruction"))
    rows = [row for row in _kept(subject, requests, options, _folder(options, out)) if "left_out" not in row]
    if not rows:
        raise InputError(
            f"{subject.name} refuses none of the {len(requests.harmful)} requests of the stock, from which {options.objective} "
            "learns; align it first (tokendeep deepen)."
        )
    _check_refusals(options, len(rows))
    texts = {row.id: row.messages[-1]["content"] for row in requests.harmful}
    return rows, [texts[row["id"]] for row in rows]


def _check_refusals(options: Any, refusals: int, most: str = "") -> None:
    if (needed := OBJECTIVES[options.objective].refusals(options)) > refusals:
        raise InputError(
            f"{options.objective} takes {needed} refusals of the stock's requests, but there are {most}{refusals}; take fewer "
            "(--secret-rows)."
        )


def near(requests: Requests | None, rows: Sequence[Chat | Prompt], asked: Sequence[Prompt | Pair]) -> list[str]:
    """How many requests stand there twice, or are near-duplicates of rows trained on or of prompts of a test, in lines."""
    if requests is None:
        return []
    tested = "prompts of the test, whose rate then says little"
    others: Mapping[str, Sequence[Chat | Prompt | Pair]] = {"requests of --data": rows, tested: asked}
    return [*requests.repeated(), *overlaps(_all(requests), "requests of the safety anchor", others)]


def near_counts(requests: Requests, rows: Sequence[Chat], asked: Sequence[Prompt | Pair]) -> dict[str, int]:
    """The same as numbers, as `SafetyRows` names them."""
    others: Mapping[str, Sequence[Chat | Prompt | Pair]] = {"near_rows": rows, "near_test": asked}
    return {name: overlap(there, _all(requests)) if there else 0 for name, there in others.items()}


def _all(requests: Requests) -> list[Pair | Prompt]:
    return [*requests.harmful, *requests.harmless]


def overlaps(
    given: Sequence[Pair | Prompt], what: str, others: Mapping[str, Sequence[Chat | Prompt | Pair]]
) -> list[str]:
    """How many of `what` is given are near-duplicates of other rows, by what these are; a line where there are any."""
    counts = {name: overlap(rows, given) for name, rows in others.items() if rows and given}
    return [f"{n} of {len(given)} {what} are near-duplicates of {name}" for name, n in counts.items() if n]


def added(texts: Sequence[str], objective: str, others: Mapping[str, Sequence[Chat | Prompt | Pair]]) -> list[str]:
    """As `overlaps`, for requests that an objective adds to the rows it is given."""
    given = [Prompt(str(number), ({"role": "user", "content": text},)) for number, text in enumerate(texts)]
    what = f"requests that {objective} trains on beside the rows"
    return overlaps(given, what, {f"requests of {name}": rows for name, rows in others.items()})


def held(subject: Subject, requests: Requests, options: Any, out: Path, start: str | None = None) -> Held:
    """The rows, answered by the model that is trained or by another one, which is then what a trainer holds it to.

    Args:
        start: the other model; `base` is that of the adapter which the model is.

    Raises:
        InputError: as `make`; the other model cannot be loaded.
    """
    from tokendeep import models

    folder = _folder(options, out)
    if start is None:
        return make(subject, requests, options, folder)
    if start == "base":
        with models.reference(subject.model):
            return replace(make(subject, requests, options, folder, base=True), start="base")
    onto = options.base if models.is_adapter(start) else None
    other = models.load(start, base=onto, options=plain(options), dtype="float32")
    names = (options.model, subject.tokenizer), (start, other.tokenizer)
    models.check_same_tokens(*names, "give the model that it was tuned from")
    other = replace(other, tokenizer=subject.tokenizer)  # rows are written as the tuned model will be asked
    return replace(make(other, requests, options, folder), start=other.model.cpu())


def make(subject: Subject, requests: Requests, options: Any, folder: Path, *, base: bool = False) -> Held:
    """Have the model answer, or take what it has answered before; the first process does it for all.

    Args:
        options: of `SafetyOptions`, with the system prompt, the longest row and the seed of the training.
        folder: where the file is kept.
        base: whether the adapter that the model has is off.

    Raises:
        InputError: the model refuses none of the harmful requests, or answers none of the harmless ones, or fewer than a step
            takes.
    """
    lines = _kept(subject, requests, options, folder, base)
    rows, found = [line for line in lines if "left_out" not in line], _found(lines)
    if not found[REFUSALS].kept:
        raise InputError(
            f"{subject.name} refuses none of the {len(requests.harmful)} requests of --safety within --safety-tokens "
            f"{options.safety_tokens} and --max-length {options.max_length}, so a safety anchor has nothing to hold "
            f"({_left_out(found[REFUSALS])}); align it first (tokendeep deepen), or give requests that it refuses."
        )
    if requests.harmless and not found[HARMLESS].kept:
        raise InputError(
            f"{subject.name} answers none of the {len(requests.harmless)} requests of --harmless usably, so there is nothing of "
            f"them to hold ({_left_out(found[HARMLESS])}); give others, or leave it out."
        )
    groups = Counter(row["group"] for row in rows)
    check_per_step(HARMFUL, groups[HARMFUL], options.safety_per_step)
    if requests.harmless:
        check_per_step(HARMLESS, groups[HARMLESS], options.harmless_per_step)
    told = [_told(kind, one, options) for kind, one in found.items()]
    if refusing := (found[BEHIND].left_out.get(NO_CONTEXT) if BEHIND in found else None):
        told.append(f"{refusing} answers of --safety refuse themselves; they are no harmful context and are left out")
    return Held(rows, found, told)


def _found(lines: Sequence[dict[str, Any]]) -> dict[str, HeldRows]:
    """How many requests of each kind were answered, and how many of these answers are held."""
    kinds = [kind for kind in (REFUSALS, BEHIND, HARMLESS) if any(line["kind"] == kind for line in lines)]
    made = {}
    for kind in kinds:
        why = [line.get("left_out") for line in lines if line["kind"] == kind]
        left_out = dict(Counter(one for one in why if one).most_common())
        made[kind] = HeldRows(asked=len(why), kept=why.count(None), left_out=left_out)
    return made


def _told(kind: str, found: HeldRows, options: Any) -> str:
    """How many requests of a kind are held, in words."""
    words = {
        REFUSALS: "safety requests, which the model refuses",
        BEHIND: f"behind up to {options.safety_context} harmful tokens, where it refuses after all",
        HARMLESS: "harmless requests, which it answers",
    }
    rest = f"; left out: {_left_out(found)}" if found.left_out else ""
    return f"kept {found.kept} of {found.asked} {words[kind]}{rest}"


def _left_out(found: HeldRows) -> str:
    return ", ".join(f"{count} {why}" for why, count in found.left_out.items())


def _folder(options: Any, out: Path) -> Path:
    """Where what the model has answered is kept: with the run, unless there is a folder for several."""
    return runs.user_path(options.reference_cache or out / "safety")


def _kept(subject: Subject, requests: Requests, options: Any, folder: Path, base: bool = False) -> list[dict[str, Any]]:
    """What the model answers to the requests, a line each, written by the first process where it is not there yet."""
    from tokendeep.training import launch

    path = folder / f"safety-{_key(subject, requests, options, base)}.jsonl"
    if runs.is_main_process() and not path.exists():
        runs.private_dir(folder)
        answered = safety_answers.written(subject, requests.harmful, requests.harmless, options)
        runs.write_jsonl(path, answered, private=True)
    launch.wait_for([path])
    return runs.read_jsonl(path)


def _key(subject: Subject, requests: Requests, options: Any, base: bool) -> str:
    """Names what the rows hang on: weights, tokenizer, code, judge, requests, and the options that change them."""
    from tokendeep.training import cache, reference

    given = [(row.id, row.messages, getattr(row, "response", None)) for row in (*requests.harmful, *requests.harmless)]
    deep = bool(options.safety_context) and any(isinstance(row, Pair) for row in requests.harmful)
    seed = options.seed if deep else None  # it draws contexts alone
    settings = (options.system, options.safety_tokens, options.safety_context, options.max_length, seed)
    weights = reference.weights_hash(subject.model, without_adapter=False)
    tokenizer = subject.tokenizer
    texts = (tokenizer.chat_template, chat.date_of(tokenizer), sorted(tokenizer.get_vocab().items()), cache.code_key())
    return reference.key(
        weights, base, texts, judges.JUDGES["refusal"].template, given, len(requests.harmless), settings
    )
