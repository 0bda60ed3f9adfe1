"""Training rows from what users have: chats, prompt and completion, or token ids; only answers are supervised.

Every conversation is read by `data.chat` and goes through `chat.encode`, as the command line's do, so that response position
1 is the first token of the answer, whatever the template writes before it. Rows that would train a prompt are refused by
number; those that hold nothing to train on are left out and named.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tokendeep import chat, data
from tokendeep.errors import InputError, Unusable
from tokendeep.training import cache
from tokendeep.types import IGNORE, Chat, Encoded

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

TRAIN_ON = ("last_turn", "all_turns")
OPTIONAL = ("betas", "weight", "group", "risk")  # columns that rows of token ids may have
MASKS = ("completion_mask", "assistant_masks")  # columns from which TRL makes the labels
TEXT = ("prompt", "completion", "id", "category", "label", "meta")  # of plain text, what is trained on and notes on it
INPUTS = ("seq_lengths", "position_ids", "inputs_embeds", "pixel_values", "images")  # of a model, beside token ids
SHOWN = 5  # rows left out that are named
SKIPPED = "tokendeep_skipped"  # column of why a row is left out, "" where it is not

log = logging.getLogger(__name__)
Read = Callable[[Mapping[str, Any], str], Iterable[dict[str, Any]]]


def encode(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    train_on: str = "last_turn",
    processes: int | None = None,
    skipped: list[str] | None = None,
) -> Dataset | IterableDataset:
    """The dataset with `input_ids` and `labels`, of which every row has been checked (`check_row`).

    Args:
        dataset: rows with `messages`, `conversations`, `prompt` and `completion` (texts or messages), or `input_ids` with
            `labels` or one of TRL's masks; beside `input_ids` there may be `betas`, one number per token, `weight`, what
            each token counts in the loss of its step, `group`, the name that its mean is logged under, and `risk`, from 1
            to 5, by which an adaptive training weighs the row.
        max_length: longest row in tokens; an answer's tail is cut where it does not fit.
        train_on: `last_turn` supervises the last answer; `all_turns` makes one row of each answer, with what was said
            before it as its prompt. Rows that choose their answers themselves (`answers_of`) have their way.
        processes: how many of them encode (rows of a dataset of fixed rows).
        skipped: gets a line for every row that is left out, for it holds nothing to train on.

    Raises:
        InputError: rows of another kind, a row that cannot be trained on, by number, or none that can.
    """
    if train_on not in TRAIN_ON:
        raise InputError(f"train_on is {train_on!r}, but must be one of {', '.join(TRAIN_ON)}.")
    dataset = cache.unformatted(dataset)
    first = next(iter(dataset), None)
    if first is None:
        raise InputError("There is no row to train on.")
    read = _reader(first, tokenizer, max_length, train_on)
    given = [name for name in OPTIONAL if name in first and (name != "risk" or "input_ids" in first)]
    if given and "input_ids" not in first:
        what = {"betas": "betas, one number per token,", "weight": "weight, of a row in its step's loss,"}
        raise InputError(f"{what.get(given[0], given[0])} can only stand beside input_ids and labels.")
    opening = [] if "weight" in first else _opening_ids(tokenizer)  # weighted rows may begin inside an answer
    columns = ["input_ids", "labels", *given]

    def convert(batch: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {name: [] for name in (*columns, SKIPPED)}
        for place, number in enumerate(numbers):
            row = {name: values[place] for name, values in batch.items()}
            for one in _checked(read, row, f"Row {number + 1}", opening, tokenizer):
                for name, values in made.items():
                    values.append(one[name])
        return made

    made = cache.mapped(dataset, convert, columns, (tokenizer, max_length, train_on), processes)
    return _usable(made, [] if skipped is None else skipped)


def _checked(
    read: Read, row: Mapping[str, Any], where: str, opening: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    """The training rows of one row, and in place of one that holds nothing the reason. Raises InputError, naming it."""
    empty = {**dict.fromkeys(OPTIONAL), **{name: row[name] for name in OPTIONAL if name in row}}
    try:
        for one in read(row, where):
            if isinstance(one, Unusable):
                yield {**empty, "input_ids": [], "labels": [], SKIPPED: _named(one, where)}
                continue
            check_row(one, opening, tokenizer)
            yield {**one, SKIPPED: ""}
    except Unusable as error:
        yield {**empty, "input_ids": [], "labels": [], SKIPPED: _named(error, where)}
    except InputError as error:
        raise InputError(_named(error, where)) from error


def _named(error: InputError, where: str) -> str:
    """What is wrong with a row, and which it is; the reader of conversations says it itself."""
    return str(error) if str(error).startswith("Row ") else f"{where}: {error}"


def _usable(made: Any, skipped: list[str]) -> Any:
    """The rows without those that hold nothing, whose reasons `skipped` gets; of a stream nothing is known yet."""
    if not hasattr(made, "__len__"):
        return made.filter(lambda row: not row[SKIPPED]).remove_columns(SKIPPED)
    reasons = made[SKIPPED][:]
    skipped += [reason for reason in reasons if reason]
    if all(reasons):
        raise InputError(f"There is no row left to train on: {skipped[0]}")
    if any(reasons):
        made = made.select([place for place, reason in enumerate(reasons) if not reason])
    return made.remove_columns(SKIPPED)


def left_out(reasons: Sequence[str], rows: str) -> str:
    """Which rows hold nothing to train on, in a line; the first few by name."""
    named = "; ".join(reason.rstrip(".") for reason in reasons[:SHOWN])
    return f"{len(reasons)} row(s) of {rows} hold nothing to train on and are left out: {named}" + (
        "; ..." if len(reasons) > SHOWN else ""
    )


def _reader(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None, train_on: str) -> Read:
    """How to make training rows from rows like this one."""

    def turns(values: Mapping[str, Any], where: str) -> Iterable[Any]:
        idle = data.idle_columns(values)
        conversation = data.chat({name: value for name, value in values.items() if name not in idle}, where)
        for one in answers_of(conversation, tokenizer, max_length=max_length, train_on=train_on):
            yield one if isinstance(one, Unusable) else {"input_ids": one.input_ids, "labels": one.labels}

    if "input_ids" in row:
        if not {"labels", *MASKS} & set(row):
            raise InputError("The rows have input_ids but no labels; mark the answer's tokens (-100 elsewhere).")
        return lambda r, where: [_labelled(r, max_length)]
    if idle := data.idle_columns(row):
        log.warning("The rows have columns beside their conversation that are not used: %s.", ", ".join(idle))
    if set(row) == {"text"}:
        raise InputError(
            "The rows are texts, in which prompt and answer cannot be told apart; give messages, prompt and completion, or "
            "input_ids and labels."
        )
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        if not getattr(tokenizer, "chat_template", None):
            return lambda r, where: [_text(tokenizer, r, max_length)]
        log.warning(
            "prompt and completion are texts; they go through the chat template, as a user's turn and its answer. Set the "
            "tokenizer's chat_template to None to train on them as plain text."
        )
    return turns


def answers_of(
    row: Chat,
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str = "default",
    max_length: int | None = None,
    train_on: str = "last_turn",
) -> Iterator[Encoded | Unusable]:
    """The training row of each answer of a conversation that is trained on, or why there is nothing of it to train on.

    A row's own choice goes before `train_on`: the `weight` of its messages (0: not trained on), and of a prompt and a
    completion that are messages the answers of the completion.

    Raises:
        InputError: an answer that cannot be encoded.
    """
    for end in _chosen(row, train_on):
        whole = end < len(row.messages) - 1 or not row.truncated
        try:
            yield chat.encode(
                tokenizer, chat.with_system(row.messages[:end], system), row.messages[end], max_length=max_length,
                end=whole, arguments=row.arguments,
            )  # fmt: skip
        except Unusable as error:
            yield error


def _chosen(row: Chat, train_on: str) -> list[int]:
    """Places of the answers that are trained on."""
    places = [place for place, message in enumerate(row.messages) if message["role"] == "assistant"]
    if any("weight" in row.messages[place] for place in places):
        places = [place for place in places if row.messages[place].get("weight") != 0]
        if not places:
            raise Unusable("all its answers have the weight 0")
        return places
    return places if train_on == "all_turns" else places[-1:]


def _labelled(row: Mapping[str, Any], max_length: int | None) -> dict[str, Any]:
    """A row of token ids; labels come from TRL's masks where there are none.

    Raises:
        InputError: a column that the row leaves empty, or has another number of values in than of tokens; values out of range.
    """
    marks = ("labels",) if "labels" in row else tuple(name for name in MASKS if name in row)
    tokenwise = ["input_ids", *marks, *(["betas"] if "betas" in row else [])]
    if empty := [name for name in (*tokenwise, *OPTIONAL) if name in row and row[name] is None]:
        raise InputError(f"its {empty[0]} is missing; give every row one, or leave the column out")
    ids = list(row["input_ids"])
    if other := [name for name in tokenwise if len(row[name]) != len(ids)]:
        raise InputError(
            f"it has {len(ids)} input_ids but {len(row[other[0]])} {other[0]}; give as many, each beside its own token"
        )
    if other := [name for name in INPUTS if row.get(name) is not None]:
        raise InputError(f"its {other[0]} would be left out; give rows of one conversation each, without that column")
    if 0 in (row.get("attention_mask") or ()):
        raise InputError("its attention_mask hides tokens; take padding off, it is added to batches")
    if "labels" in row:
        labels = list(row["labels"])
    else:
        masks = [row[name] for name in marks]
        labels = [t if all(bits) else IGNORE for t, *bits in zip(ids, *masks, strict=True)]
    if wrong := [t for t in ids if t < 0] or [t for t in labels if t < 0 and t != IGNORE]:
        raise InputError(f"it holds {wrong[0]}, which is no token id; labels that are not trained on are {IGNORE}")
    made: dict[str, Any] = {"input_ids": ids[:max_length], "labels": labels[:max_length]}
    if "betas" in row:
        made["betas"] = list(row["betas"])[:max_length]
        if any(
            label != IGNORE and not 0 < beta < math.inf
            for label, beta in zip(made["labels"], made["betas"], strict=True)
        ):
            raise InputError("betas must hold a finite number above 0 for every supervised token")
    if "weight" in row:
        if not 0 <= row["weight"] < math.inf:
            raise InputError(f"its weight is {row['weight']}, but must be a number of at least 0")
        if max_length and len(ids) > max_length:
            raise InputError(f"it has {len(ids)} tokens, more than max_length; its weight is for all of them")
    if "risk" in row and not 1 <= row["risk"] <= 5:
        raise InputError(f"its risk is {row['risk']}, but must be a number from 1 to 5")
    return {**made, **{name: row[name] for name in ("weight", "group", "risk") if name in row}}


def _text(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], max_length: int | None) -> dict[str, Any]:
    """Prompt and completion as texts, tokenised together; the answer starts where they part from the prompt alone (TRL)."""
    if lost := [name for name in row.keys() - {*TEXT, *data.idle_columns(row)} if row[name]]:
        raise InputError(
            f"its {min(lost)} would be left out of plain text; take the column out, or set a chat_template"
        )
    prompt, completion = row["prompt"], row["completion"]
    end = tokenizer.eos_token or ""
    whole = tokenizer(prompt + completion + ("" if completion.endswith(end) else end), verbose=False).input_ids
    alone = tokenizer(prompt, verbose=False).input_ids
    start = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole)))
    return {"input_ids": whole[:max_length], "labels": ([IGNORE] * start + whole[start:])[:max_length]}


def check_row(row: Mapping[str, Any], opening: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a row that cannot be trained on as it stands.

    Args:
        row: with `input_ids` and `labels`.
        opening: ids of what the chat template writes before every answer.

    Raises:
        Unusable: no supervised token.
        InputError: the prompt is supervised; the supervised part begins with the opening; a weight without tokens.
    """
    starts = _starts(row["labels"])
    if not starts:
        kind = InputError if "weight" in row else Unusable  # weights are shares of a whole step
        raise kind("it has no supervised token; give it an answer, or raise max_length")
    if starts[0] == 0:
        raise InputError(
            "its very first token is supervised, so its prompt is not masked; set the labels of the prompt to -100, for "
            "positions are counted from the answer's first token"
        )
    for start in starts:
        if opening and list(row["labels"][start : start + len(opening)]) == list(opening):
            raise InputError(
                f"it supervises what the chat template writes before every answer ({tokenizer.decode(list(opening))!r}), "
                "which would take the first positions; set those labels to -100, or give messages, which are encoded "
                "without it"
            )


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of what the template writes between the generation prompt and an answer; none without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    opening = chat.check(tokenizer).opening
    return chat.continuation_ids(tokenizer, opening) if opening.strip() or "\n" in opening else []


def _starts(labels: Sequence[int]) -> list[int]:
    """Where the runs of supervised tokens begin."""
    return [place for place, (before, label) in enumerate(pairwise([IGNORE, *labels])) if before == IGNORE != label]


def show(tokenizer: PreTrainedTokenizerBase, row: Any) -> str:
    """A row (anything with `input_ids` and `labels`) as text, its supervised tokens each between ⟦ and ⟧."""
    pieces = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        text = str(tokenizer.decode([token]))
        pieces.append(text if label == IGNORE else f"⟦{text}⟧")
    return "".join(pieces)
