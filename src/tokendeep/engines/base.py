"""What an engine takes and gives, whichever it is. Importing this loads no torch."""

import math
from dataclasses import dataclass, field

from tokendeep.errors import InputError
from tokendeep.types import Decoding

MOST_ROWS = 256  # decoded together where the engine counts them itself


class TooLong(InputError):
    """A prompt and the answer that is asked for do not fit the model's context."""


@dataclass(frozen=True)
class Request:
    """Continue exactly these token ids (prompt and prefilled answer tokens, no padding)."""

    ids: tuple[int, ...]
    decoding: Decoding
    choices: tuple[int, ...] = ()  # tokens whose chances against each other, as the first one written, are asked for
    given: int = 0  # how many of the ids, at their end, are tokens of the answer already


@dataclass(frozen=True)
class Completion:
    """What the model wrote: `ids` without the end token; `truncated` when the length limit cut it.

    `seconds` is the request's share of the time of the batches it was in: over all requests it sums to the model's time.
    """

    ids: tuple[int, ...]
    text: str
    truncated: bool
    seconds: float = field(default=0.0, compare=False)
    chances: tuple[float, ...] = ()  # of the request's choices
    checks: tuple[
        tuple[int, bool], ...
    ] = ()  # by a defence: answer tokens before the check, and whether it stopped there


@dataclass(frozen=True)
class Known:
    """What an engine has to know of a model whose weights are elsewhere: `ends` of an answer, ids it has, context."""

    ends: frozenset[int]
    vocabulary: int
    context: int


def check(index: int, request: Request, *, vocabulary: int, context: int) -> None:
    """Raise InputError, naming the request by `index`, when it cannot be run.

    Args:
        vocabulary: token ids that the model knows.
        context: tokens, prompt and answer together, that it can hold.
    """
    if problem := _problem(request, vocabulary):
        raise InputError(f"Request {index} has {problem}.")
    length, longest = len(request.ids), request.decoding.max_new_tokens
    if length + longest > context:
        raise TooLong(
            f"Request {index} has {length} prompt tokens and max_new_tokens {longest}, together more than the model's "
            f"context of {context}: shorten the prompt or lower max_new_tokens to {max(0, context - length)}."
        )


def _problem(request: Request, vocabulary: int) -> str | None:
    decoding = request.decoding
    if not request.ids:
        return "no token ids: give at least one (usually the rendered prompt)"
    every = (*request.ids, *request.choices)
    if min(every) < 0 or max(every) >= vocabulary:
        return f"token ids outside the model's vocabulary of {vocabulary}: tokenise it with the model's own tokenizer"
    if not (0 <= decoding.temperature < math.inf and 0 < decoding.top_p <= 1 and decoding.top_k >= 0):
        return (
            f"temperature {decoding.temperature}, top_p {decoding.top_p} and top_k {decoding.top_k}: they must be at "
            "least 0, above 0 and at most 1, and at least 0"
        )
    if decoding.max_new_tokens < 1:
        return f"max_new_tokens {decoding.max_new_tokens}: it must be at least 1"
    return None
