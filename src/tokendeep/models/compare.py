"""What makes two models comparable token by token, and how long a text one takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tokendeep.errors import InputError
from tokendeep.types import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def context_length(model: PreTrainedModel) -> int:
    """Most tokens, prompt and answer together, that `model` was built for; sys.maxsize where it names no limit."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        if isinstance(limit := getattr(config, name, None), int) and limit > 0:
            return limit
    return sys.maxsize


def check_same_vocabulary(a: Subject, b: Subject, *, sizes: tuple[int | None, int | None] = (None, None)) -> None:
    """Two models can be compared token by token only where every id means the same to both.

    Args:
        sizes: rows of the output heads, where the model of a Subject is not at hand.

    Raises:
        InputError: naming the first id that differs, or the two sizes.
    """
    check_same_tokens((a.name, a.tokenizer), (b.name, b.tokenizer))
    rows, other = (size or rows_of(s.model.get_output_embeddings()) for size, s in zip(sizes, (a, b), strict=True))
    if rows != other:
        raise InputError(
            f"{a.name} and {b.name} have {rows} and {other} output rows: compare models of one size of vocabulary."
        )


def check_same_tokens(a: tuple[str, Any], b: tuple[str, Any], advice: str = "compare models of one family") -> None:
    """Raises InputError, naming the first id that differs, where two tokenizers, each behind its name, differ.

    Args:
        advice: the end of the sentence.
    """
    ours, theirs = a[1].get_vocab(), b[1].get_vocab()
    if ours != theirs:
        differing = {*ours.items()} ^ {*theirs.items()}
        token = min(id_ for _, id_ in differing)
        raise InputError(
            f"{a[0]} ({len(ours)} tokens) and {b[0]} ({len(theirs)} tokens) have different vocabularies, first at token "
            f"{token}: {advice}."
        )


def tokens_of(model: Any) -> int:
    """How many tokens a causal model knows, beneath an adapter of its embeddings and where these lie in shards too."""
    embedding = model.get_input_embeddings()
    plain = getattr(embedding, "base_layer", embedding)
    return int(getattr(plain, "num_embeddings", None) or rows_of(plain))


def check_tokens(name: str, model: Any, tokenizer: Any) -> None:
    """Raises InputError where the tokenizer knows tokens that the model does not."""
    if len(tokenizer) > (known := tokens_of(model)):
        raise InputError(
            f"The tokenizer of {name} knows {len(tokenizer)} tokens but the model only {known}: use its own one."
        )


def rows_of(layer: Any) -> int:
    return int(layer.weight.shape[0])
