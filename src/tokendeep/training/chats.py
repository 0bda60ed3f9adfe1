"""From chats to rows of token ids, as the verbs train on them: read, encoded, written down.

Knows files and templates; nothing of trainers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep import data, runs
from tokendeep.errors import InputError, Unusable, flag
from tokendeep.training.rows import answers_of, left_out, show
from tokendeep.types import IGNORE, Chat, Encoded, Pair, Triple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SUPERVISE = ("all", "head", "tail")
PREVIEWED = 20  # rows that are written as text
HEAD = 5  # answer tokens that `supervise` takes apart, as the paper does


def kind(rows: Sequence[object]) -> str:
    """What rows are, in a word or two."""
    return " and ".join(sorted({f"{type(row).__name__.lower()}s" for row in rows})) or "rows"


def answered(row: Pair | Triple) -> Chat:
    """A pair, or a triple's refusal, as a chat of one turn."""
    answer = row.response if isinstance(row, Pair) else row.refusal
    return Chat(row.id, (*row.messages, {"role": "assistant", "content": answer}))


def asked(rows: Sequence[Chat | Triple]) -> list[str]:
    """The requests of rows: the text of every turn of their users."""
    return [message["content"] for row in rows for message in row.messages if message["role"] == "user"]


def load(source: data.Source, skipped: list[str] | None = None, *, whole: bool = False) -> list[Chat]:
    """Chats, or pairs as chats of one turn; every row is checked.

    Args:
        skipped: gets a line for every row that is left out, for it holds nothing to train on.
        whole: with tools, calls of them, weights and arguments of the chat template, which are refused elsewhere.

    Raises:
        InputError: rows of another kind, or one that is wrong.
    """
    kind = data.kind(source)
    if kind not in ("chats", "pairs"):
        raise InputError(
            f"{data.named(source)} holds {kind}, but finetune takes chats (messages) or pairs (instruction, response)."
        )
    return data.read_chats(source, whole=whole, skipped=skipped)


def load_refusals(source: data.Source) -> list[Chat]:
    """As `load`, and the refusals of triples."""
    if data.kind(source) != "triples":
        return load(source)
    return [answered(triple) for triple in data.read_triples(source)]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    *,
    source: str,
    system: str = "default",
    max_length: int | None = None,
    train_on: str = "last_turn",
    supervise: str = "all",
    skipped: list[str] | None = None,
) -> list[Encoded]:
    """One row of the last answer of every chat, or of each of its answers (`train_on`, `rows.answers_of`).

    Args:
        source: where the chats come from, for messages.
        supervise: all, or head or tail: the first five answer tokens alone, or all others.
        skipped: gets a line for every row that is left out, for it holds nothing to train on.

    Raises:
        InputError: naming the row.
    """
    rows: list[Encoded] = []
    for row in chats:
        try:
            made = list(answers_of(row, tokenizer, system=system, max_length=max_length, train_on=train_on))
        except Unusable as error:
            made = [error]
        except InputError as error:
            raise InputError(f"Row {row.id} of {source}: {error}") from error
        for one in made:
            if not isinstance(one, Unusable):
                rows.append(one)
            elif skipped is None:
                raise Unusable(f"Row {row.id} of {source}: {one}")
            else:
                skipped.append(f"Row {row.id} of {source}: {one}")
    cut = [part for row in rows if (part := _part(row, supervise)) is not None]
    if lost := len(rows) - len(cut):
        log.warning("%d row(s) of %s are left out: their answers have no more than %d tokens", lost, source, HEAD)
    return cut


def encode_all(
    tokenizer: PreTrainedTokenizerBase,
    given: Mapping[str, Sequence[Chat]],
    options: Any,
    skipped: Mapping[str, Sequence[str]],
) -> tuple[dict[str, list[Encoded]], dict[str, list[str]]]:
    """The rows of each option that names some, and those left out, a line each.

    Args:
        options: of `finetune`.
        skipped: rows that were left out when they were read.

    Raises:
        InputError: a row that cannot be encoded, or more left out than `max_skipped` allows.
    """
    encoded, lines = {}, {name: list(skipped.get(name, ())) for name in given}
    for name, rows in given.items():
        source = getattr(options, name) or "the rows"
        encoded[name] = encode(
            tokenizer, rows, source=source, system=options.system, max_length=options.max_length,
            train_on=options.train_on, supervise=options.supervise, skipped=lines[name],
        )  # fmt: skip
        check_share(lines[name], len(encoded[name]), options.max_skipped, source)
    return encoded, {name: found for name, found in lines.items() if found}


def told(skipped: Mapping[str, Sequence[str]]) -> list[str]:
    """Which rows are left out, a line for each option that names rows."""
    return [left_out(lines, flag(name)) for name, lines in skipped.items()]


def check_share(skipped: Sequence[str], rows: int, most: float, what: str) -> None:
    """Raises InputError where more than a share of the rows is left out, or all of them."""
    if skipped and (not rows or len(skipped) > most * (rows + len(skipped))):
        raise InputError(
            f"{len(skipped)} of {rows + len(skipped)} rows of {what} hold nothing to train on, more than --max-skipped "
            f"{most:g} allows; the first: {skipped[0]}"
        )


def _part(row: Encoded, which: str) -> Encoded | None:
    """The row with its first five answer tokens supervised alone, or all others; None where none is left."""
    if which == "all":
        return row
    middle = row.start + HEAD
    head, tail = row.labels[:middle], row.labels[middle:]
    labels = head + [IGNORE] * len(tail) if which == "head" else [IGNORE] * len(head) + tail
    return Encoded(row.input_ids, labels) if any(label != IGNORE for label in labels) else None


def write_rows(
    folder: Path, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], titles: Iterable[str] = ()
) -> None:
    """train.jsonl (every row as ids) and preview.txt (the first rows as text), for the owner alone.

    Args:
        rows: dataclasses with `input_ids` and `labels`.
        titles: what stands above the text of each; their numbers where left out.
    """
    runs.private_dir(folder)
    runs.write_jsonl(folder / "train.jsonl", [asdict(row) for row in rows], private=True)
    first = rows[:PREVIEWED]
    named = zip(titles or (f"row {number}" for number in range(1, len(rows) + 1)), first, strict=False)
    text = [f"--- {title}\n{show(tokenizer, row)}\n" for title, row in named]
    runs.write_text(folder / "preview.txt", "\n".join(text), private=True)
