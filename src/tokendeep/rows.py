"""Training rows from what users have: chats, prompt and completion, or token ids; only answers are supervised.

Every conversation goes through `chat.encode`, so that response position 1 is the first token of the answer, whatever
the template writes before it. Rows that would train a prompt, or nothing at all, are refused by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from . import chat
from .types import IGNORE, Encoded, InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

TRAIN_ON = ("last_turn", "all_turns")
SHAREGPT = {"human": "user", "gpt": "assistant"}
MASKS = ("completion_mask", "assistant_masks")  # columns from which TRL makes the labels


def encode(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    train_on: str = "last_turn",
) -> Dataset | IterableDataset:
    """The dataset with `input_ids` and `labels` where its rows are conversations; as it is where they are not.

    Args:
        dataset: rows with `messages`, `conversations`, `prompt` and `completion` (texts or messages), or `input_ids` with
            `labels` or one of TRL's masks.
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
    if "input_ids" in first:
        if not {"labels", *MASKS} & set(first):
            raise InputError("The rows have input_ids but no labels; mark the answer's tokens (-100 elsewhere).")
        return dataset
    turns = _reader(first)
    if turns is None:
        return dataset

    def convert(batch: Mapping[str, list[Any]], numbers: Sequence[int] | None = None) -> dict[str, list[Any]]:
        count = len(next(iter(batch.values())))
        made: dict[str, list[Any]] = {"input_ids": [], "labels": [], "source": []}
        for place, number in enumerate(numbers or range(count)):
            row = {name: values[place] for name, values in batch.items()}
            try:
                encoded = list(_answers(tokenizer, turns(row), max_length, train_on))
            except InputError as error:
                raise InputError(f"Row {number + 1}: {error}") from error
            for one in encoded:
                made["input_ids"].append(one.input_ids)
                made["labels"].append(one.labels)
                made["source"].append(number)
        return made

    streamed = not hasattr(dataset, "__len__")
    options: dict[str, Any] = (
        {} if streamed else {"with_indices": True, "desc": "encoding", "load_from_cache_file": False}
    )
    return dataset.map(convert, batched=True, remove_columns=list(first), **options)


def _reader(row: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], list[Any]] | None:
    """How to take the conversation out of rows like this one; None where TRL tokenises them (prompt and completion)."""
    if "messages" in row:
        return lambda r: list(r["messages"])
    if "conversations" in row:  # ShareGPT's names
        return lambda r: [
            {"role": SHAREGPT.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in r["conversations"]
        ]
    if "prompt" in row and "completion" in row:
        if isinstance(row["prompt"], str):
            return None
        return lambda r: [*r["prompt"], *r["completion"]]
    raise InputError(
        f"The rows have the columns {', '.join(row)}, in which prompt and answer cannot be told apart; give messages, "
        "prompt and completion, or input_ids and labels."
    )


def _answers(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Any], max_length: int | None, train_on: str
) -> Iterable[Encoded]:
    """The row of the last answer, or one of every answer."""
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    if not messages or messages[-1]["role"] != "assistant":
        raise InputError("the conversation must end with an answer (role assistant)")
    ends = [len(messages) - 1]
    if train_on == "all_turns":
        ends = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for end in ends:
        yield chat.encode(tokenizer, messages[:end], messages[end]["content"], max_length=max_length)  # type: ignore[arg-type]


def check(rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, head: int) -> None:
    """Refuse rows that cannot be trained on as they stand.

    Args:
        rows: with `input_ids` and `labels`.
        head: how many first positions have a beta (or an anchor) of their own.

    Raises:
        InputError: naming the row: no supervised token; the prompt is supervised; the supervised part begins with what
            the chat template writes before every answer; a head longer than every answer.
    """
    opening = _opening_ids(tokenizer)
    longest = 0
    for number, row in enumerate(rows, 1):
        starts, lengths = _runs(row["labels"])
        if not starts:
            raise InputError(f"Row {number} has no supervised token; give it an answer, or raise max_length.")
        if starts[0] == 0:
            raise InputError(
                f"Row {number} supervises its very first token, so its prompt is not masked; set the labels of the prompt "
                "to -100, for positions are counted from the answer's first token."
            )
        for start in starts:
            if opening and list(row["labels"][start : start + len(opening)]) == opening:
                raise InputError(
                    f"Row {number} supervises what the chat template writes before every answer "
                    f"({tokenizer.decode(opening)!r}), which would take the first positions; set those labels to -100, or "
                    "give messages, which are encoded without it."
                )
        longest = max(longest, *lengths)
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
