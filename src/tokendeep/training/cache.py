"""Encoding a data set once: in several processes, and read again where rows, tokenizer and this code are the same.

Knows the datasets library; nothing of what the rows mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tokendeep import chat, runs
from tokendeep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGE = Path(__file__).parents[1]
CODE = (
    "chat",
    "data",
    "training/rows.py",
    "training/cache.py",
    "errors.py",
    "types.py",
)  # what makes token ids of a row
LIBRARIES = ("transformers", "tokenizers", "jinja2")  # which render a conversation and cut it into tokens


def unformatted(dataset: Any) -> Any:
    """The dataset with plain values, whatever format (torch, numpy) it gives them in.

    Raises:
        InputError: it is no dataset, or its values are made anew at every look (`with_transform`).
    """
    if isinstance(dataset, dict) or not hasattr(dataset, "map"):
        raise InputError(
            f"The rows are {type(dataset).__name__}, not a Dataset of rows; make one with Dataset.from_list, or choose a split."
        )
    kind = dataset.format["type"] if hasattr(dataset, "__len__") else "unknown"
    if kind == "custom":
        raise InputError(
            "The rows come out of Dataset.with_transform(), which may give others at every look, and skip_prepare_dataset "
            "is not taken either; make them once with Dataset.map(), trainer-ready or as conversations."
        )
    return dataset if kind is None else dataset.with_format(None)


def mapped(
    dataset: Any,
    convert: Callable[..., dict[str, list[Any]]],
    columns: Sequence[str],
    settings: tuple[PreTrainedTokenizerBase, int | None, str],
    processes: int | None,
) -> Any:
    """The rows that `convert` makes of batches; of a dataset of fixed rows those of an earlier time where they are the same.

    Args:
        convert: takes a batch and the numbers of its rows, and gives `columns` and one more of text.
        settings: what `convert` depends on beside the rows: tokenizer, longest row, answers to train on.
    """
    if not hasattr(dataset, "__len__"):
        return dataset.map(convert, batched=True, with_indices=True, remove_columns=list(next(iter(dataset))))
    tokenizer, *others = settings
    name = runs.sha256_text(repr((dataset._fingerprint, tokenizer_key(tokenizer), others, columns, code_key())))
    return dataset.map(
        convert, batched=True, with_indices=True, remove_columns=dataset.column_names, num_proc=processes,
        features=_features(dataset, columns), new_fingerprint=name[:32], desc="encoding",
    )  # fmt: skip


def _features(dataset: Any, columns: Sequence[str]) -> Any:
    """The types of the encoded columns: a batch may hold none of them."""
    from datasets import Features, List, Value

    made = {name: dataset.features[name] for name in columns if name not in ("input_ids", "labels")}
    ids = {name: List(Value("int64")) for name in ("input_ids", "labels")}
    return Features({**ids, **made, "tokendeep_skipped": Value("string")})


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what a tokenizer does to texts and conversations; how it last padded is no part of it.

    Of one written in Python, whose rules cannot be looked at, another one every time: nothing of it is read again.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return uuid4().hex
    state = {
        name: value for name, value in json.loads(backend.to_str()).items() if name not in ("padding", "truncation")
    }
    own = (type(tokenizer).__name__, tokenizer.chat_template, tokenizer.special_tokens_map, chat.date_of(tokenizer))
    return runs.sha256_text(json.dumps([state, own], sort_keys=True, default=str))


@cache
def code_key() -> str:
    """A hash of the code that encodes rows, and of its libraries' versions, so that what an older one made is not read."""
    paths = [
        path for name in CODE for path in ([PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).rglob("*.py"))
    ]
    libraries = repr([version(name) for name in LIBRARIES]).encode()
    return runs.sha256([libraries, *(path.read_bytes() for path in sorted(paths))])
