"""Safety-recovery rows (the paper's Eq. 2): an instruction, k tokens of a harmful answer as context, a refusal as labels.

Draws k, makes the rows of every optimizer step and their weights. Knows nothing of trainers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokendeep import chat, runs
from tokendeep.errors import InputError
from tokendeep.training.rows import show
from tokendeep.types import IGNORE, Chat, Encoded, Triple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokendeep.training.weighted import WeightedRow
    from tokendeep.verbs.options import DeepenConfig


SAFETY, UTILITY = "safety", "utility"
NORMALISE = ("tokens", "rows", "batch")


@dataclass(frozen=True)
class Planned:
    """A training row and where it came from: optimizer step, source row and harmful tokens kept."""

    step: int
    source: str
    k: int
    row: WeightedRow


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
    messages, answer = chat.with_system(row.messages[:-1], system), row.messages[-1]["content"]
    encoded = chat.encode(tokenizer, messages, answer, max_length=max_length, end=not row.truncated)
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
    tokenizer: PreTrainedTokenizerBase, triples: Sequence[Triple], utility: Sequence[Chat], config: DeepenConfig
) -> list[Planned]:
    """Every row of every optimizer step, in training order, each with its weight in the step's loss.

    Raises:
        InputError: no triples, or no utility rows where steps ask for some; a row that cannot be trained on.
    """
    if not triples or (config.utility_rows and not utility):
        raise InputError(
            f"There are {len(triples)} triples and {len(utility)} utility rows to train on; both are needed."
        )
    steps = config.max_steps or max(1, len(triples) * config.epochs // config.safety_rows)
    safety, ordinary = _stream(len(triples), config.seed, 1), _stream(max(len(utility), 1), config.seed, 2)
    longest = [len(harmful_ids(tokenizer, t, config.system)) for t in triples]
    options: dict[str, Any] = {"system": config.system, "max_length": config.max_length}
    _check_rows(tokenizer, triples, longest, utility if config.utility_rows else [], config)
    plan: list[Planned] = []
    for step in range(steps):
        drawn: list[tuple[str, str, int, Encoded]] = []
        for _ in range(config.safety_rows):
            epoch, i = next(safety)
            k = draw_context(config.seed, epoch, i, longest[i], config.p_zero, config.max_context)
            drawn.append((SAFETY, triples[i].id, k, recovery_row(tokenizer, triples[i], k, **options)))
        for _ in range(config.utility_rows):
            epoch, i = next(ordinary)
            rng = np.random.default_rng([config.seed, epoch, i, 3])
            cut = rng.random() if rng.random() < config.cut_utility else 0.0
            drawn.append((UTILITY, utility[i].id, 0, utility_row(tokenizer, utility[i], cut, **options)))
        plan += _weighted(step, drawn, config)
    return plan


def _check_rows(
    tokenizer: PreTrainedTokenizerBase,
    triples: Sequence[Triple],
    longest: Sequence[int],
    utility: Sequence[Chat],
    config: DeepenConfig,
) -> None:
    """Make every row once, with the most harmful tokens it can get: whether one fits must not hang on what is drawn.

    Raises:
        InputError: naming the row and where it comes from.
    """
    options: dict[str, Any] = {"system": config.system, "max_length": config.max_length}
    for triple, length in zip(triples, longest, strict=True):
        k = min(config.max_context, length) if config.p_zero < 1 else 0
        with _named(f"row {triple.id} of {config.data}, with {k} harmful tokens"):
            recovery_row(tokenizer, triple, k, **options)
    for row in utility:
        with _named(f"row {row.id} of {config.utility}"):
            utility_row(tokenizer, row, 0.0, **options)


@contextmanager
def _named(row: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{row}: {error}") from error


def _weighted(step: int, drawn: list[tuple[str, str, int, Encoded]], config: DeepenConfig) -> list[Planned]:
    """One step's rows, shortest first (micro-batches then pad least), with their weights."""
    from tokendeep.training.weighted import WeightedRow

    weights = step_weights([(group, _supervised(row)) for group, _, _, row in drawn], config.alpha, config.normalise)
    planned = [
        Planned(step, source, k, WeightedRow(row.input_ids, row.labels, weight, group))
        for (group, source, k, row), weight in zip(drawn, weights, strict=True)
    ]
    return sorted(planned, key=lambda p: len(p.row.input_ids))


def _supervised(row: Encoded) -> int:
    return sum(label != IGNORE for label in row.labels)


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


def write_rows(folder: Path, tokenizer: PreTrainedTokenizerBase, plan: Sequence[Planned], shown: int = 20) -> None:
    """rows/train.jsonl (every row as ids) and rows/preview.txt (the first rows rendered), for the owner alone."""
    runs.private_dir(folder)
    runs.write_jsonl(
        folder / "train.jsonl",
        [{"step": p.step, "source": p.source, "k": p.k, **asdict(p.row)} for p in plan],
        private=True,
    )
    text = [
        f"--- step {p.step}, {p.row.group}, source {p.source}, k {p.k}, weight {p.row.weight:.3g}\n{show(tokenizer, p.row)}\n"
        for p in plan[:shown]
    ]
    runs.write_text(folder / "preview.txt", "\n".join(text), private=True)
