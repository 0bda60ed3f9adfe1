"""Safety-recovery rows (the paper's Eq. 2): an instruction, k tokens of a harmful answer as context, a refusal as labels.

Draws k, makes the rows of every optimizer step and their weights. Knows nothing of trainers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tokendeep import chat
from tokendeep.errors import InputError, Unusable
from tokendeep.training.options import RecoveryOptions
from tokendeep.types import IGNORE, Chat, Encoded, Triple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SAFETY, UTILITY = "safety", "utility"


@dataclass(frozen=True)
class Planned:
    """A training row of one optimizer step: its source row, the harmful tokens it keeps, and what its tokens count."""

    step: int
    source: str
    k: int
    input_ids: list[int]
    labels: list[int]
    weight: float
    group: str

    def title(self) -> str:
        """What it is, in a line."""
        return f"step {self.step}, {self.group}, source {self.source}, k {self.k}, weight {self.weight:.3g}"

    def row(self) -> dict[str, Any]:
        """What a trainer takes."""
        return {name: getattr(self, name) for name in ("input_ids", "labels", "weight", "group")}


def draw_context(seed: int, epoch: int, row: int, longest: int, p_zero: float, max_context: int) -> int:
    """k of the paper's Eq. 2: 0 with probability `p_zero`, else uniform on 1 .. min(max_context, longest).

    Keyed by (seed, epoch, row), so that neither the order of rows nor the number of processes changes it.
    """
    rng = np.random.default_rng([seed, epoch, row])
    if rng.random() < p_zero or longest < 1:
        return 0
    return int(rng.integers(1, min(max_context, longest), endpoint=True))


def recovery_row(
    tokenizer: PreTrainedTokenizerBase,
    triple: Triple,
    k: int,
    *,
    system: str = "default",
    max_length: int | None = None,
) -> Encoded:
    """Prompt and the first k harmful tokens as context, the refusal with its end of turn as labels."""
    messages = chat.with_system(triple.messages, system)
    context = harmful_ids(tokenizer, triple, system)[:k]
    return chat.encode(tokenizer, messages, triple.refusal, context_ids=context, max_length=max_length)


def harmful_ids(tokenizer: PreTrainedTokenizerBase, triple: Triple, system: str = "default") -> list[int]:
    """Token ids of the harmful answer without its end of turn."""
    return chat.response_ids(tokenizer, chat.with_system(triple.messages, system), triple.harmful, end=False)


def utility_row(
    tokenizer: PreTrainedTokenizerBase, row: Chat, cut: float, *, system: str = "default", max_length: int | None = None
) -> Encoded:
    """An ordinary answer; `cut` in (0, 1) makes that share of its tokens unsupervised context (0: none)."""
    messages = chat.with_system(row.messages[:-1], system)
    encoded = chat.encode(
        tokenizer, messages, row.messages[-1], max_length=max_length, end=not row.truncated, arguments=row.arguments
    )
    start = encoded.start
    skip = int(cut * (len(encoded.labels) - start - 1))
    return Encoded(encoded.input_ids, [IGNORE] * (start + skip) + encoded.labels[start + skip :])


def _stream(count: int, seed: int, tag: int) -> Iterator[tuple[int, int]]:
    """Endless (epoch, row): every epoch a new order of all rows, keyed by (seed, tag, epoch)."""
    epoch = 0
    while True:
        for index in np.random.default_rng([seed, tag, epoch]).permutation(count):
            yield epoch, int(index)
        epoch += 1


def plan_rows(
    tokenizer: PreTrainedTokenizerBase,
    triples: Sequence[Triple],
    utility: Sequence[Chat],
    options: RecoveryOptions,
    *,
    steps: int,
    seed: int = 0,
    system: str = "default",
    max_length: int | None = None,
) -> list[Planned]:
    """Every row of every optimizer step, in training order, each with its weight in the step's loss.

    Args:
        triples, utility: of `usable`.

    Raises:
        InputError: no triples, or no utility rows where steps ask for some; a row that cannot be trained on.
    """
    if not triples or (options.utility_rows and not utility):
        raise InputError(
            f"There are {len(triples)} triples and {len(utility)} utility rows to train on; both are needed."
        )
    safety, ordinary = _stream(len(triples), seed, 1), _stream(max(len(utility), 1), seed, 2)
    longest = [len(harmful_ids(tokenizer, t, system)) for t in triples]
    encoding: dict[str, Any] = {"system": system, "max_length": max_length}
    plan: list[Planned] = []
    for step in range(steps):
        drawn: list[tuple[str, str, int, Encoded]] = []
        for _ in range(options.safety_rows):
            epoch, i = next(safety)
            k = draw_context(seed, epoch, i, longest[i], options.p_zero, options.max_context)
            drawn.append((SAFETY, triples[i].id, k, recovery_row(tokenizer, triples[i], k, **encoding)))
        for _ in range(options.utility_rows):
            epoch, i = next(ordinary)
            rng = np.random.default_rng([seed, epoch, i, 3])
            cut = rng.random() if rng.random() < options.cut_utility else 0.0
            drawn.append((UTILITY, utility[i].id, 0, utility_row(tokenizer, utility[i], cut, **encoding)))
        plan += _weighted(step, drawn, options)
    return plan


def usable(
    tokenizer: PreTrainedTokenizerBase,
    triples: Sequence[Triple],
    utility: Sequence[Chat],
    options: RecoveryOptions,
    *,
    system: str = "default",
    max_length: int | None = None,
    sources: tuple[str, str] = ("the triples", "the utility rows"),
) -> tuple[list[Triple], list[Chat], dict[str, list[str]]]:
    """The rows that fit whatever is drawn: each is made once, with the most harmful tokens it can get.

    Returns:
        triples, utility rows (none where no step takes any), and by option (data, utility) a line for each row that is left out.

    Raises:
        InputError: a row that is wrong in another way, naming it and where it comes from.
    """
    encoding: dict[str, Any] = {"system": system, "max_length": max_length}
    skipped: dict[str, list[str]] = {"data": [], "utility": []}
    fitting, ordinary = [], []
    for triple in triples:
        k = min(options.max_context, len(harmful_ids(tokenizer, triple, system))) if options.p_zero < 1 else 0
        with _named(f"Row {triple.id} of {sources[0]}, with {k} harmful tokens", skipped["data"]):
            recovery_row(tokenizer, triple, k, **encoding)
            fitting.append(triple)
    for row in utility if options.utility_rows else []:
        with _named(f"Row {row.id} of {sources[1]}", skipped["utility"]):
            utility_row(tokenizer, row, 0.0, **encoding)
            ordinary.append(row)
    return fitting, ordinary, skipped


@contextmanager
def _named(row: str, skipped: list[str]) -> Iterator[None]:
    try:
        yield
    except Unusable as error:
        skipped.append(f"{row}: {error}")
    except InputError as error:
        raise InputError(f"{row}: {error}") from error


def _weighted(step: int, drawn: list[tuple[str, str, int, Encoded]], options: RecoveryOptions) -> list[Planned]:
    """One step's rows, shortest first (micro-batches then pad least), with their weights."""
    weights = step_weights(
        [(group, sum(label != IGNORE for label in row.labels)) for group, _, _, row in drawn],
        options.alpha,
        options.normalise,
    )
    planned = [
        Planned(step, source, k, row.input_ids, row.labels, weight, group)
        for (group, source, k, row), weight in zip(drawn, weights, strict=True)
    ]
    return sorted(planned, key=lambda p: len(p.input_ids))


def step_weights(rows: Sequence[tuple[str, int]], alpha: float, normalise: str) -> list[float]:
    """What each supervised token of each row counts in the loss of one optimizer step.

    Args:
        rows: (group, supervised tokens) of all rows of the step, over all ranks and micro-batches.
        normalise: tokens: alpha / safety tokens and (1 - alpha) / utility tokens; rows: the same over
            rows (Eq. 2 literally: a row's NLL is a sum); batch: 1 / all tokens, alpha unused.
    """
    share = {SAFETY: alpha, UTILITY: 1 - alpha}
    if normalise == "batch":
        total = sum(tokens for _, tokens in rows)
        return [1 / total] * len(rows)
    counts: Counter[str] = Counter()
    for group, tokens in rows:
        counts[group] += tokens if normalise == "tokens" else 1
    return [share[group] / counts[group] for group, _ in rows]
