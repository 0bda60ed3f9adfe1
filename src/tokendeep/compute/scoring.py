"""The only scoring forward passes: log-probabilities and KL divergence at response positions.

Rows are sorted by length, what all rows of a batch begin with (template and system prompt) is run
once, and the language-model head is applied to response positions only, in chunks: full (batch, length,
vocabulary) logits never exist. Results come back in the order of the rows.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokendeep import models
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.progress import Bar
from tokendeep.runs.parts import Parts
from tokendeep.types import IGNORE, Encoded, Subject

CACHED_ROWS = 8
MIN_SHARED = 12  # tokens; below it, running a common beginning once costs more than it saves


def _batches(rows: Sequence[Encoded], batch_size: int) -> Iterator[list[int]]:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows have in common, leaving every row at least one of its own."""
    first, last = min(map(list, rows)), max(map(list, rows))  # lexicographic extremes: what they share, all share
    limit = min(len(row) for row in rows) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))


@dataclass
class _Prefix:
    """Keys and values of the beginning that the last batch shared; most batches of a run share the same one."""

    ids: list[int] = field(default_factory=list)
    cache: Any = None

    def take(self, decoder: Any, ids: Tensor) -> Any:
        """A cache that holds `ids` (1, shared), or a beginning of them that is hardly shorter, for one row."""
        wanted = ids[0].tolist()
        usable = self.ids and wanted[: len(self.ids)] == self.ids and len(wanted) - len(self.ids) < MIN_SHARED
        if not usable:
            self.ids, self.cache = wanted, decoder(input_ids=ids, use_cache=True).past_key_values
        return copy.deepcopy(self.cache)


def _response_states(model: Any, rows: Sequence[Encoded], prefix: _Prefix | None = None) -> tuple[Tensor, Tensor]:
    """States (N, H) that predict the supervised labels (N,) of one batch, row by row.

    `prefix` is kept from batch to batch of one model (adapter on and off are two).
    """
    decoder = lm_head.decoder(lm_head.causal_lm(model))
    ids = [row.input_ids for row in rows]
    unsupervised = min(row.start for row in rows)
    shared = min(shared_prefix(ids), unsupervised - 1) if len(rows) > 1 else 0
    input_ids = lm_head.padded(model, ids)  # (B, S)
    labels = lm_head.padded(model, [row.labels for row in rows], IGNORE)
    if shared < MIN_SHARED or not plain_cache(model, input_ids.shape[1]):
        return lm_head.select(lm_head.hidden_states(model, input_ids), labels)
    prefix = prefix or _Prefix()
    cache = prefix.take(decoder, input_ids[:1, :shared])
    shared = len(prefix.ids)
    cache.batch_repeat_interleave(len(rows))
    states = decoder(input_ids=input_ids[:, shared:], past_key_values=cache, use_cache=True).last_hidden_state
    return lm_head.select(states, labels[:, shared:])


def plain_cache(model: Any, length: int) -> bool:
    """Whether every layer keeps keys and values of all of `length` tokens, so that a prefix can be run apart."""
    lm = lm_head.causal_lm(model)
    config = lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    return (
        not getattr(lm, "_is_stateful", False)
        and kinds <= {"full_attention", "sliding_attention"}
        and (not window or length <= window)
    )


def _split(values: Tensor, rows: Sequence[Encoded]) -> list[Tensor]:
    return list(values.split([sum(label != IGNORE for label in row.labels[1:]) for row in rows]))


def check_finite(values: Tensor, where: str) -> None:
    """Raises InputError when a value is NaN or infinite; `where` says where, as in "at row 3"."""
    if not torch.isfinite(values).all():
        raise InputError(
            f"The model gave NaN or infinite values {where}; load it in float32 (--dtype float32) or check its weights."
        )


def _check_rows(rows: Sequence[Encoded]) -> None:
    for number, row in enumerate(rows, 1):
        if all(label == IGNORE for label in row.labels[1:]):
            raise InputError(f"Row {number} has no supervised token to score; give it a non-empty response.")


def _run(
    rows: Sequence[Encoded],
    batch_size: int,
    title: str,
    score: Callable[[list[int], list[Encoded]], Tensor],
    parts: Parts | None = None,
) -> list[Tensor]:
    """Score all rows in batches; a batch whose rows are all in `parts` is taken from there, others are added to it.

    Args:
        score: (numbers of a batch's rows, these rows) -> the values of their supervised tokens (N, ...), row by row.
    """
    _check_rows(rows)
    results: list[Tensor | None] = [None] * len(rows)
    with torch.inference_mode(), Bar(len(rows), title, "row", disable=len(rows) < 32) as bar:
        for batch in _batches(rows, batch_size):
            if parts is not None and all(index in parts.done for index in batch):
                for index in batch:
                    results[index] = torch.tensor(parts.done[index])
                bar.update(len(batch))
                continue
            chosen = [rows[index] for index in batch]
            for index, values in zip(batch, _split(score(batch, chosen), chosen), strict=True):
                check_finite(values, f"at row {index + 1}")
                results[index] = values.cpu()
            if parts is not None:
                parts.add({index: results[index].tolist() for index in batch})  # type: ignore[union-attr]
            bar.update(len(batch))
    return results  # type: ignore[return-value]


def token_logps(
    subject: Subject, rows: Sequence[Encoded], batch_size: int = 16, parts: Parts | None = None
) -> list[Tensor]:
    """Log-probability in nats of every supervised token, one float32 tensor (R,) per row.

    Args:
        parts: rows that an earlier call finished, and where to keep those of this one.

    Raises:
        InputError: a row has no supervised token, or the model gives NaN or infinite values.
    """
    prefix = _Prefix()

    def score(_: list[int], chosen: list[Encoded]) -> Tensor:
        return lm_head.label_logps(subject.model, *_response_states(subject.model, chosen, prefix))

    return _run(rows, batch_size, "log-probabilities", score, parts)


def token_kl(
    p: Subject, q: Subject | None, rows: Sequence[Encoded], batch_size: int = 16, parts: Parts | None = None
) -> list[Tensor]:
    """D_KL(p || q) in nats at every supervised position, full vocabulary, one float32 (R,) per row.

    Args:
        q: the other model; None takes p's own weights with its adapter off (no second copy in memory).
        parts: rows that an earlier call finished, and where to keep those of this one.

    Raises:
        InputError: different vocabularies, a row without supervised token, NaN or infinite values.
    """
    other = contextlib.nullcontext if q is not None else lambda: models.reference(p.model)
    second = q.model if q is not None else p.model
    if q is not None:
        models.check_same_vocabulary(p, q)
    p_prefix, q_prefix = _Prefix(), _Prefix()

    def score(_: list[int], chosen: list[Encoded]) -> Tensor:
        p_states, _labels = _response_states(p.model, chosen, p_prefix)
        with other():
            q_states, _labels = _response_states(second, chosen, q_prefix)
        return _divergence(p.model, p_states, second, q_states, other)

    return _run(rows, batch_size, "KL divergence", score, parts)


def _divergence(p: Any, p_states: Tensor, q: Any, q_states: Tensor, other: Callable[[], Any]) -> Tensor:
    """D_KL(p || q) (N,) from the final states (N, H) of two models; `other` is the context in which q is itself."""
    pieces = []
    for ours, theirs in zip(*(x.split(lm_head.chunk_rows(q)) for x in (p_states, q_states)), strict=True):
        p_logits = lm_head.project(p, ours)
        with other():
            pieces.append(kl(p_logits, lm_head.project(q, theirs)))
    return torch.cat(pieces)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """D_KL(p || q) (N,) of two sets of logits (N, V), never below 0 by more than rounding.

    A few rows at a time, which stay in the processor's cache from one pass over them to the next.
    """
    rows = len(p_logits) if p_logits.is_cuda else CACHED_ROWS
    pieces = []
    for p_piece, q_piece in zip(p_logits.split(rows), q_logits.split(rows), strict=True):
        p, q = p_piece.log_softmax(-1), q_piece.to(p_piece.device).log_softmax(-1)
        q.sub_(p).neg_()  # log p - log q
        pieces.append(torch.linalg.vecdot(p.exp_(), q))
    return torch.cat(pieces)


@dataclass(frozen=True)
class Captured:
    """What is left of a model whose decoder has been dropped: its language-model head and the states it would be given."""

    shell: Any
    states: list[Tensor]  # per row (R, H), on the CPU
    subject: Subject


def capture(subject: Subject, rows: Sequence[Encoded], batch_size: int = 16) -> Captured:
    """Run a model over `rows`, keep its final states at response positions and its language-model head, and drop the rest.

    The subject's model must not be used afterwards: its decoder is emptied to free the memory.
    """
    prefix = _Prefix()
    states = _run(
        rows, batch_size, "hidden states", lambda _, chosen: _response_states(subject.model, chosen, prefix)[0]
    )
    shell = lm_head.causal_lm(subject.model)
    parts = lm_head.decoder(shell)._modules
    for name in list(parts):
        parts[name] = None
    return Captured(shell, states, Subject(None, subject.tokenizer, subject.name, subject.revision, subject.adapter))  # type: ignore[arg-type]


def captured_kl(
    p: Captured, q: Subject, rows: Sequence[Encoded], batch_size: int = 16, parts: Parts | None = None
) -> list[Tensor]:
    """The same as token_kl for a first model that has been captured and let go."""
    models.check_same_vocabulary(p.subject, q, sizes=(p.shell.config.get_text_config().vocab_size, None))
    prefix = _Prefix()

    def score(batch: list[int], chosen: list[Encoded]) -> Tensor:
        q_states, _ = _response_states(q.model, chosen, prefix)
        p_states = torch.cat([p.states[i] for i in batch]).to(q_states.device)
        return _divergence(p.shell, p_states, q.model, q_states, contextlib.nullcontext)

    return _run(rows, batch_size, "KL divergence", score, parts)
