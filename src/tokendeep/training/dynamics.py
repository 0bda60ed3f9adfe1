"""What a model in training says about a probe, position by position, and what it does when it is asked.

Pure measures: knows nothing of steps, monitors or files.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokendeep import chat, judges, models
from tokendeep.compute import lm_head
from tokendeep.depth import kl, openings, recovery
from tokendeep.engines import local as generation
from tokendeep.engines.base import Request
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Decoding, Encoded, Pair, Prompt, Subject

DECODING = Decoding(temperature=0.9, top_p=0.6, max_new_tokens=20)  # the paper's sampling
TOKENS = 3  # of each opening, and of the harmful answer, that the log-odds compare

Curve = dict[str, list[float]]


@dataclass(frozen=True)
class Probe:
    """Harmful pairs as token ids, cut behind the last position that is looked at.

    Args:
        rows, lengths: each pair, and the tokens of its answer without the end of turn.
        prompts: each instruction up to the answer.
        openings: refusals, as the log-odds compare them with the answer.
        k: harmful tokens given before the log-odds are taken, as far as answers are long enough.
    """

    tokenizer: Any
    rows: list[Encoded]
    lengths: list[int]
    prompts: list[list[int]]
    openings: Any
    k: list[int]
    positions: int


def probe(pairs: Sequence[Pair], tokenizer: Any, positions: int, k: Sequence[int], system: str) -> Probe:
    """The probe of these pairs. Raises InputError for one that cannot be encoded or is too short."""
    rows, lengths, prompts = [], [], []
    for number, pair in enumerate(pairs, 1):
        messages = chat.with_system(pair.messages, system)
        try:
            row = chat.encode(tokenizer, messages, pair.response)
            length = len(chat.response_ids(tokenizer, messages, pair.response, end=False))
        except InputError as error:
            raise InputError(f"Probe row {number}: {error}") from error
        if length < TOKENS:
            raise InputError(f"Probe row {number}: its answer has fewer than {TOKENS} tokens; leave it out.")
        end = min(row.start + max(positions, max(k) + TOKENS), len(row.input_ids))
        rows.append(Encoded(row.input_ids[:end], row.labels[:end]))
        lengths.append(length)
        prompts.append(row.input_ids[: row.start])
    known = [one for one in k if one + TOKENS <= max(lengths)]
    cut = [min(n, len(row.input_ids) - row.start) for n, row in zip(lengths, rows, strict=True)]
    refusals = openings.opening_ids(tokenizer, openings.load_openings(None), TOKENS)
    return Probe(tokenizer, rows, cut, prompts, refusals, known, positions)


def check_room(model: Any, of: Probe) -> None:
    """Raises InputError for a row of the probe that is longer than the model's context, with what is compared behind it."""
    context = models.context_length(lm_head.causal_lm(model))
    for number, row in enumerate(of.rows, 1):
        if (length := max(len(row.input_ids), row.start + TOKENS)) > context:
            raise InputError(
                f"Probe row {number} takes {length} tokens up to where it is looked at, but the model's context is {context}; "
                "shorten it."
            )


def final_states(model: Any, rows: Sequence[Encoded], positions: int) -> list[Tensor]:
    """Final states at answer positions, (min(R, positions), H) per row."""
    found = []
    for row in rows:
        ids = torch.tensor([row.input_ids], device=device_of(model))
        with torch.no_grad():
            states = lm_head.hidden_states(model, ids)[0, row.start - 1 : -1]
        found.append(states[:positions].cpu())
    return found


def cross_entropy(model: Any, of: Probe, states: Sequence[Tensor]) -> Curve:
    """Of the harmful answers, in nats, by position."""
    found = []
    for row, one in zip(of.rows, states, strict=True):
        targets = torch.tensor(row.input_ids[row.start : row.start + len(one)], device=device_of(model))
        with torch.no_grad():
            found.append(-lm_head.label_logps(model, one.to(targets.device), targets).cpu())
    return by_position(found)


def divergence(model: Any, ours: Sequence[Tensor], other: Any, theirs: Sequence[Tensor]) -> Curve:
    """D_KL(model || other) in nats by position, from final states of both."""
    return by_position([_kl(model, a, other, b) for a, b in zip(ours, theirs, strict=True)])


def sampled_divergence(model: Any, aligned: Any, of: Probe, count: int, batch_size: int) -> Curve:
    """D_KL(model || aligned) on answers that the model samples now to the first `count` instructions."""
    prompts = of.prompts[:count]
    requests = [Request(tuple(ids), DECODING) for ids in prompts]
    answers = generation.generate(Subject(model, of.tokenizer, "training"), requests, batch_size=batch_size)
    rows = [
        Encoded([*ids, *answer.ids], [IGNORE] * len(ids) + list(answer.ids))
        for ids, answer in zip(prompts, answers, strict=True)
        if answer.ids
    ]
    ours, theirs = (final_states(one, rows, of.positions) for one in (model, aligned))
    return divergence(model, ours, aligned, theirs)


def log_odds(model: Any, of: Probe, ks: Sequence[int]) -> Any:
    """Refusal log-odds (prompts, ks) after k harmful tokens; NaN where an answer is too short."""
    return recovery.recovery_log_odds(Subject(model, of.tokenizer, "training"), of.rows, of.openings, ks, of.lengths)


def log_odds_record(model: Any, of: Probe) -> dict[str, Any]:
    """The same as it stands in dynamics.json."""
    values = log_odds(model, of, of.k)
    known = np.isfinite(values)
    return {
        "k": of.k,
        "median": [float(np.median(column[there])) for column, there in zip(values.T, known.T, strict=True)],
        "positive": (((values > 0) & known).sum(0) / known.sum(0)).tolist(),
    }


def by_position(values: Sequence[Tensor]) -> Curve:
    """Mean and number of rows at every position; rows may differ in length."""
    table = kl.to_table(values, max(len(v) for v in values))
    return {"mean": np.nanmean(table, 0).tolist(), "n": np.isfinite(table).sum(0).tolist()}


class NotRefused:
    """The share of harmful instructions that a model in training does not refuse, greedily, by the offline judge."""

    def __init__(
        self, prompts: Sequence[Prompt], tokenizer: Any, *, system: str = "default", max_new_tokens: int = 64,
        batch_size: int = 32,
    ) -> None:  # fmt: skip
        decoding = Decoding(max_new_tokens=max_new_tokens)
        asked = [chat.prompt_ids(tokenizer, chat.with_system(p.messages, system)) for p in prompts]
        self.requests = [Request(tuple(ids), decoding) for ids in asked]
        self.tokenizer, self.batch_size = tokenizer, batch_size

    def __call__(self, model: Any) -> dict[str, Any]:
        """`asr` (None where no answer could be judged), and how many of those asked were judged."""
        answers = generation.generate(
            Subject(model, self.tokenizer, "training"), self.requests, batch_size=self.batch_size
        )
        verdicts = [judges.judge_refusal(answer.text, truncated=answer.truncated).outcome for answer in answers]
        scored = [verdict == "complied" for verdict in verdicts if verdict in judges.SCORED]
        rate = sum(scored) / len(scored) if scored else None
        return {"asr": rate, "asr_judged": len(scored), "asr_asked": len(verdicts)}


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within it dropout is off; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: Any) -> torch.device:
    return lm_head.causal_lm(model).get_input_embeddings().weight.device


@torch.no_grad()
def _kl(model: Any, ours: Tensor, other: Any, theirs: Tensor) -> Tensor:
    """D_KL(model || other) (R,) in nats, from final states (R, H)."""
    device = device_of(model)
    p = lm_head.project(model, ours.to(device)).log_softmax(-1)
    q = lm_head.project(other, theirs.to(device_of(other))).log_softmax(-1).to(device)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0).cpu()
