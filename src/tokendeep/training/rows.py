"""Training rows from what users have: chats, prompt and completion, or token ids; only answers are supervised.

Every conversation goes through `chat.encode`, so that response position 1 is the first token of the answer, whatever
the template writes before it. Rows that would train a prompt, or nothing at all, are refused by number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tokendeep import chat, data
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Encoded, Message

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

TRAIN_ON = ("last_turn", "all_turns")
UNREAD = ("system", "images", "videos", "audios")  # columns that would change a prompt, and that nothing here takes in
OPTIONAL = ("betas", "weight", "group")  # columns that rows of token ids may have
MASKS = ("completion_mask", "assistant_masks")  # columns from which TRL makes the labels


def encode(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    train_on: str = "last_turn",
) -> Dataset | IterableDataset:
    """The dataset with `input_ids` and `labels`, of which every row has been checked (`check_row`).

    Args:
        dataset: rows with `messages`, `conversations`, `prompt` and `completion` (texts or messages), or `input_ids` with
            `labels` or one of TRL's masks; beside `input_ids` there may be `betas`, one number per token, `weight`, what
            each token counts in the loss of its step, and `group`, the name that its mean is logged under.
        max_length: longest row in tokens; an answer's tail is cut where it does not fit.
        train_on: `last_turn` supervises the last answer; `all_turns` makes one row of each answer, with what was said
            before it as its prompt.

    Raises:
        InputError: rows of another kind, or a row that cannot be trained on, by number.
    """
    if train_on not in TRAIN_ON:
        raise InputError(f"train_on is {train_on!r}, but must be one of {', '.join(TRAIN_ON)}.")
    first = next(iter(dataset), None)
    if first is None:
        raise InputError("There is no row to train on.")
    read = _reader(first, tokenizer, max_length, train_on)
    given = [name for name in OPTIONAL if name in first]
    if given and "input_ids" not in first:
        what = {"betas": "betas, one number per token,", "weight": "weight, of a row in its step's loss,"}
        raise InputError(f"{what.get(given[0], given[0])} can only stand beside input_ids and labels.")
    opening = [] if "weight" in first else _opening_ids(tokenizer)  # weighted rows may begin inside an answer
    columns = ["input_ids", "labels", *given]

    def convert(batch: Mapping[str, list[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {name: [] for name in columns}
        for place, number in enumerate(numbers):
            row = {name: values[place] for name, values in batch.items()}
            try:
                for one in read(row, f"Row {number + 1}"):
                    check_row(one, opening, tokenizer)
                    for name in columns:
                        made[name].append(one[name])
            except InputError as error:
                named = str(error).startswith("Row ")  # by the reader of conversations
                raise InputError(str(error) if named else f"Row {number + 1}: {error}") from error
        return made

    streamed = not hasattr(dataset, "__len__")
    options: dict[str, Any] = {} if streamed else {"desc": "encoding", "load_from_cache_file": False}
    return dataset.map(convert, batched=True, with_indices=True, remove_columns=list(first), **options)


def _reader(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None, train_on: str
) -> Callable[[Mapping[str, Any], str], Iterable[dict[str, Any]]]:
    """How to make training rows from rows like this one."""

    def turns(whole: Mapping[str, Any], where: str) -> Iterable[dict[str, Any]]:
        messages = data.conversation({name: value for name, value in whole.items() if name not in UNREAD}, where)
        for name in UNREAD:
            if whole.get(name):
                raise InputError(f"its {name} would be left out; render such rows to input_ids and labels")
        cut_off = (whole.get("meta") or {}).get("truncated") is True
        for one in _answers(tokenizer, messages, max_length, train_on, cut_off):
            yield {"input_ids": one.input_ids, "labels": one.labels}

    if "input_ids" in row:
        if not {"labels", *MASKS} & set(row):
            raise InputError("The rows have input_ids but no labels; mark the answer's tokens (-100 elsewhere).")
        return lambda r, where: [_labelled(r, max_length)]
    if "prompt" in row and "completion" in row and isinstance(row["prompt"], str):
        return lambda r, where: [_text(tokenizer, r["prompt"], r["completion"], max_length)]
    if {"messages", "conversations"} & set(row) or {"prompt", "completion"} <= set(row):
        return turns
    raise InputError(
        f"The rows have the columns {', '.join(row)}, in which prompt and answer cannot be told apart; give messages, "
        "prompt and completion, or input_ids and labels."
    )


def _labelled(row: Mapping[str, Any], max_length: int | None) -> dict[str, Any]:
    """A row of token ids; labels come from TRL's masks where there are none."""
    ids = list(row["input_ids"])
    if "labels" in row:
        labels = list(row["labels"])
    else:
        masks = [row[name] for name in MASKS if name in row]
        labels = [t if all(bits) else IGNORE for t, *bits in zip(ids, *masks, strict=True)]
    made: dict[str, Any] = {"input_ids": ids[:max_length], "labels": labels[:max_length]}
    if "betas" in row:
        made["betas"] = list(row["betas"])[:max_length]
        if len(made["betas"]) < len(made["labels"]) or any(
            label != IGNORE and not beta > 0 for label, beta in zip(made["labels"], made["betas"], strict=False)
        ):
            raise InputError("betas must hold a number above 0 for every supervised token")
    if "weight" in row:
        if not 0 <= row["weight"] < math.inf:
            raise InputError(f"its weight is {row['weight']}, but must be a number of at least 0")
        if max_length and len(ids) > max_length:
            raise InputError(f"it has {len(ids)} tokens, more than max_length; its weight is for all of them")
    return {**made, **{name: row[name] for name in ("weight", "group") if name in row}}


def _text(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, max_length: int | None) -> dict[str, Any]:
    """Prompt and completion as texts, tokenised together; the answer starts where they part from the prompt alone (TRL)."""
    end = tokenizer.eos_token or ""
    whole = tokenizer(prompt + completion + ("" if completion.endswith(end) else end), verbose=False).input_ids
    alone = tokenizer(prompt, verbose=False).input_ids
    start = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole)))
    return {"input_ids": whole[:max_length], "labels": ([IGNORE] * start + whole[start:])[:max_length]}


def _answers(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    max_length: int | None,
    train_on: str,
    cut_off: bool,
) -> Iterable[Encoded]:
    """The row of the last answer, or one of every answer; `cut_off`: the last one's end is not learnt."""
    if messages[-1]["role"] != "assistant":
        raise InputError("the conversation must end with an answer (role assistant)")
    ends = [len(messages) - 1]
    if train_on == "all_turns":
        ends = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for end in ends:
        whole = end < len(messages) - 1 or not cut_off
        yield chat.encode(tokenizer, messages[:end], messages[end]["content"], max_length=max_length, end=whole)


def check_row(row: Mapping[str, Any], opening: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a row that cannot be trained on as it stands.

    Args:
        row: with `input_ids` and `labels`.
        opening: ids of what the chat template writes before every answer.

    Raises:
        InputError: no supervised token; the prompt is supervised; or the supervised part begins with the opening.
    """
    starts, _ = _runs(row["labels"])
    if not starts:
        raise InputError("it has no supervised token; give it an answer, or raise max_length")
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


def check_head(rows: Iterable[Mapping[str, Any]], head: int) -> None:
    """Refuse a head that is longer than every answer, for then the tail is never used. Raises InputError."""
    longest = max(max(_runs(row["labels"])[1], default=0) for row in rows) if head else 0
    if head > longest:
        raise InputError(
            f"The first {head} positions have settings of their own, but the longest answer has {longest} tokens; give a "
            "shorter head, or longer answers."
        )


def _opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of what the template writes between the generation prompt and an answer; none without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    opening = chat.check(tokenizer).opening
    return chat.continuation_ids(tokenizer, opening) if opening.strip() or "\n" in opening else []


def _runs(labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Starts and lengths of the runs of supervised tokens."""
    edges = [
        place for place, (a, b) in enumerate(pairwise([IGNORE, *labels, IGNORE])) if (a == IGNORE) != (b == IGNORE)
    ]
    return edges[::2], [end - start for start, end in zip(edges[::2], edges[1::2], strict=True)]


def show(tokenizer: PreTrainedTokenizerBase, row: Any) -> str:
    """A row (anything with `input_ids` and `labels`) as text, its supervised tokens each between ⟦ and ⟧."""
    pieces = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        text = str(tokenizer.decode([token]))
        pieces.append(text if label == IGNORE else f"⟦{text}⟧")
    return "".join(pieces)
