"""The rows of a safety anchor: requests with the model's own answers, written and judged before it is trained.

Harmful requests with its refusals, where harmful answers are given also with what it says behind their first tokens, and
harmless requests with its answers. Kept in one private file under a key of the weights, the requests and the settings, so
that runs of one model share them, and one that was cut off goes on with the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep import chat, data, judges, runs
from tokendeep.attacks.prompts import overlap
from tokendeep.data import stock
from tokendeep.errors import InputError, Unusable
from tokendeep.models.locate import plain
from tokendeep.training import answers, recovery
from tokendeep.training.objectives import STOCK
from tokendeep.types import Chat, Decoding, Encoded, Pair, Prompt, Subject

if TYPE_CHECKING:
    from tokendeep.training.safety import SafetyAnchor

HARMFUL, HARMLESS = "harmful", "harmless"


@dataclass(frozen=True)
class Requests:
    """What a safety anchor is made of: prompts, or pairs with harmful answers, and harmless prompts."""

    harmful: Sequence[Pair | Prompt]
    harmless: Sequence[Prompt] = ()

    def asked(self) -> list[str]:
        """The texts of all requests."""
        return [data.asked(row) for row in (*self.harmful, *self.harmless)]

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
    harmless: Sequence[Prompt] = ()
    if options.harmless:
        source = data.choose_beside(options.harmless, options.columns, "harmless")
        harmless = _stock("twin") if options.harmless == STOCK else data.read_prompts(source)
    return Requests(harmful, harmless)


def _stock(field: str) -> list[Prompt]:
    rows = stock.rows("harmful.jsonl", "train")
    return data.read_prompts([{"id": f"stock-{row['id']}", "instruction": row[field]} for row in rows])


def _harmful(source: str, columns: Sequence[str]) -> Sequence[Pair | Prompt]:
    chosen = data.choose_beside(source, columns, "harmful")
    return data.read_prompts(chosen) if data.kind(chosen) == "prompts" else data.read_pairs(chosen)


@dataclass(frozen=True)
class Held:
    """The rows of an anchor, and in lines how many requests came to how many rows.

    Args:
        rows: each with `group`, `id`, `k` (harmful tokens of its context), `input_ids` and `labels`.
        start: as `ReferencedSFTTrainer` takes it: the model that gave the answers, where it is not the one that is trained.
    """

    rows: Sequence[dict[str, Any]]
    lines: Sequence[str]
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

    def counts(self) -> dict[str, int]:
        """How many rows there are of each kind, for a manifest."""
        deep = sum(row["k"] > 0 for row in self.rows)
        harmful = sum(row["group"] == HARMFUL for row in self.rows)
        return {"refusals": harmful - deep, "behind_context": deep, HARMLESS: len(self.rows) - harmful}


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
        InputError: it refuses none.
    """
    requests = Requests(_stock("instruction"))
    rows = _kept(subject, requests, options, _folder(options, out))
    if not rows:
        raise InputError(
            f"{subject.name} refuses none of the {len(requests.harmful)} requests of the stock, from which {options.objective} "
            "learns; align it first (tokendeep deepen)."
        )
    texts = {row.id: row.messages[-1]["content"] for row in requests.harmful}
    return rows, [texts[row["id"]] for row in rows]


def near(requests: Requests | None, rows: Sequence[Chat], asked: Sequence[Prompt | Pair]) -> list[str]:
    """How many requests are near-duplicates of rows that are trained on, or of prompts of a test, in lines."""
    if requests is None:
        return []
    given = [*requests.harmful, *requests.harmless]
    tested = "prompts of the test, whose rate then says little"
    return overlaps(given, "requests of the safety anchor", {"requests of --data": rows, tested: asked})


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
    other = models.load(start, options=plain(options), dtype="float32")
    if other.tokenizer.get_vocab() != subject.tokenizer.get_vocab():
        raise InputError(f"{start} has another vocabulary than {options.model}; give the model that it was tuned from.")
    other = replace(other, tokenizer=subject.tokenizer)  # rows are written as the tuned model will be asked
    return replace(make(other, requests, options, folder), start=other.model.cpu())


def make(subject: Subject, requests: Requests, options: Any, folder: Path, *, base: bool = False) -> Held:
    """Have the model answer, or take what it has answered before; the first process does it for all.

    Args:
        options: of `SafetyOptions`, with the system prompt, the longest row and the seed of the training.
        folder: where the file is kept.
        base: whether the adapter that the model has is off.

    Raises:
        InputError: the model refuses none of the harmful requests, or answers none of the harmless ones.
    """
    rows = _kept(subject, requests, options, folder, base)
    held = Held(rows, ())
    count = held.counts()
    asked = len(requests.harmful)
    lines = [f"the model refuses {count['refusals']} of {asked} safety requests; the anchor holds it there"]
    if not count["refusals"]:
        raise InputError(
            f"{subject.name} refuses none of the {asked} requests of --safety within --safety-tokens {options.safety_tokens} and "
            f"--max-length {options.max_length}, so a safety anchor has nothing to hold; align "
            "it first (tokendeep deepen), or give requests that it refuses."
        )
    if any(isinstance(row, Pair) for row in requests.harmful) and options.safety_context:
        lines.append(
            f"and behind up to {options.safety_context} harmful tokens it recovers in {count['behind_context']}"
        )
    if refusing := sum(isinstance(row, Pair) and _refuses(row.response) for row in requests.harmful):
        lines.append(f"{refusing} answers of --safety refuse themselves; they are no harmful context and are left out")
    if requests.harmless and not count[HARMLESS]:
        raise InputError(
            f"{subject.name} answers none of the {len(requests.harmless)} requests of --harmless usably, so there is nothing of "
            "them to hold; give others, or leave it out."
        )
    if requests.harmless:
        lines.append(f"it answers {count[HARMLESS]} of {len(requests.harmless)} harmless requests; they are held too")
    return Held(rows, lines)


def _folder(options: Any, out: Path) -> Path:
    """Where what the model has answered is kept: with the run, unless there is a folder for several."""
    return runs.user_path(options.reference_cache or out / "safety")


def _kept(subject: Subject, requests: Requests, options: Any, folder: Path, base: bool = False) -> list[dict[str, Any]]:
    """What the model answers to the requests, written by the first process where it is not there yet; of none refused, none."""
    from tokendeep.training import launch

    path = folder / f"safety-{_key(subject, requests, options, base)}.jsonl"
    if runs.is_main_process() and not path.exists():
        runs.private_dir(folder)
        runs.write_jsonl(path, _written(subject, requests, options), private=True)
    launch.wait_for([path])
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _key(subject: Subject, requests: Requests, options: Any, base: bool) -> str:
    """Names what the rows hang on: weights, tokenizer, code, requests, and the options that change them."""
    from tokendeep.training import cache, reference

    given = [(row.id, row.messages, getattr(row, "response", None)) for row in (*requests.harmful, *requests.harmless)]
    settings = (options.system, options.safety_tokens, options.safety_context, options.max_length, options.seed)
    weights = reference.weights_hash(subject.model, without_adapter=False)
    tokenizer = subject.tokenizer
    texts = (tokenizer.chat_template, chat.date_of(tokenizer), sorted(tokenizer.get_vocab().items()), cache.code_key())
    return reference.key(weights, base, texts, given, len(requests.harmless), settings)


def _written(subject: Subject, requests: Requests, options: Any) -> list[dict[str, Any]]:
    rows = [*_refused(subject, requests.harmful, options), *_recovered(subject, requests.harmful, options)]
    if requests.harmless:
        rows += _answered(subject, requests.harmless, options)
    return rows


def _refused(subject: Subject, given: Sequence[Pair | Prompt], options: Any) -> list[dict[str, Any]]:
    """The requests with the model's own greedy refusals; what it does not refuse, or not in time, is left out."""
    texts = answers.sample_refusals(
        subject, [row.messages for row in given], tokens=options.safety_tokens, system=options.system, tries=1,
        title="what the model refuses",
    )  # fmt: skip
    found = [(row, text) for row, text in zip(given, texts, strict=True) if text]
    return [made for row, text in found for made in _row(subject, row, text, options, HARMFUL)]


def _recovered(subject: Subject, given: Sequence[Pair | Prompt], options: Any) -> list[dict[str, Any]]:
    """The requests with k tokens of their harmful answers (uniform, as Eq. 2 draws them) and what the model says behind
    them, where that is a refusal.
    """
    cut: list[tuple[Pair, list[int]]] = []
    for number, row in enumerate(given):
        if isinstance(row, Pair) and options.safety_context and not _refuses(row.response):
            turns = chat.with_system(row.messages, options.system)
            ids = chat.response_ids(subject.tokenizer, turns, row.response, end=False)
            k = recovery.draw_context(options.seed, 0, number, len(ids), 0.0, options.safety_context)
            cut.append((row, list(ids[:k])))
    if not cut:
        return []
    asked = [chat.with_system(row.messages, options.system) for row, _ in cut]
    decoding = Decoding(max_new_tokens=options.safety_tokens)
    texts = answers.write_behind(subject, asked, [ids for _, ids in cut], decoding, title="what it says behind harm")
    return [
        made
        for (row, ids), (text, truncated) in zip(cut, texts, strict=True)
        if not truncated and _refuses(text)
        for made in _row(subject, row, text, options, HARMFUL, ids)
    ]


def _refuses(text: str) -> bool:
    """Whether a whole answer is a refusal."""
    return judges.judge_refusal(text).outcome == "refused"


def _answered(subject: Subject, given: Sequence[Prompt], options: Any) -> list[dict[str, Any]]:
    """Harmless requests with the model's own answers, as far as they go; what it refuses is left out."""
    chats = answers.distil(subject, given, options.safety_tokens, options.system, "harmless answers")
    return [
        made
        for row in chats
        for made in _row(subject, row, row.messages[-1]["content"], options, HARMLESS, end=not row.truncated)
    ]


def _row(
    subject: Subject, row: Any, text: str, options: Any, group: str, context: Sequence[int] = (), end: bool = True
) -> list[dict[str, Any]]:
    """The encoded row; none where nothing of the answer fits."""
    turns = row.messages[:-1] if row.messages[-1]["role"] == "assistant" else row.messages
    text = chat.answer(text) or ""  # what a model thinks is not held
    try:
        made: Encoded = chat.encode(
            subject.tokenizer, chat.with_system(turns, options.system), text, context_ids=context,
            max_length=options.max_length, end=end,
        )  # fmt: skip
    except Unusable:
        return []
    except InputError as error:
        raise InputError(
            f"The answer of {subject.name} to request {row.id} of the safety anchor cannot be held: {error}"
        ) from error
    return [{"group": group, "id": row.id, "k": len(context), "input_ids": made.input_ids, "labels": made.labels}]
