"""Times the five-k prefill sweep: our engine against five hand-batched `model.generate` runs.

    python benchmarks/generation.py [--model DEMO] [--prompts 64] [--new-tokens 256] [--batch-size 16] [--planned]

Both sides get the same token ids, dtype, batch size and limits and decode greedily. Prints seconds (wall clock and
CPU), their ratio, and for comparison sum of answer lengths / sum of batch maxima: the part of the row steps of a
fixed batch that produce a token. Rows whose answers differ are recomputed: the gap between the plain run's two best
logits at the first difference tells a tie (within 1e-3) from an error.

By default the model is the aligned one of the last `tokendeep demo`, on the demo's test rows and the harmful answers made
there. Any other model (`--model smollm2`) is asked about harmless things; as it seldom stops early, `--planned` ends its
rows at drawn lengths, as uneven as an aligned model's: mostly short refusals without a prefill, mostly long answers
behind one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import StoppingCriteria

from shared import KS, demo_sweep, end_tokens, last_demo, left_padded, sweep_requests, timed
from tokendeep import models
from tokendeep.engines.base import Request
from tokendeep.engines.local import LocalEngine
from tokendeep.types import Decoding, Subject

TIE = 1e-3


@dataclass(frozen=True)
class Result:
    """Seconds of both sides, (wall clock, CPU), and what their answers have in common."""

    hand: tuple[float, float]
    ours: tuple[float, float]
    answered: int
    useful: float  # sum of answer lengths / (sum of batch maxima x rows)
    different: int
    ties: int

    def lines(self) -> list[str]:
        return [
            f"hand-batched generate: {self.hand[0]:.1f} s (CPU {self.hand[1]:.1f} s)",
            f"engine:                {self.ours[0]:.1f} s (CPU {self.ours[1]:.1f} s)",
            f"ratio:                 {self.ours[0] / self.hand[0]:.3f} (CPU {self.ours[1] / self.hand[1]:.3f}); "
            f"answer lengths / batch maxima: {self.useful:.3f}",
            f"equal answers:         {self.answered - self.different} of {self.answered}; "
            f"{self.ties} differ from a tie on, {self.different - self.ties} otherwise",
        ]


class _PerRow(StoppingCriteria):
    """Ends each row at its own limit."""

    def __init__(self, prompt_length: int, limits: Sequence[int]) -> None:
        self.limits = torch.tensor(limits) + prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.limits.to(input_ids.device)


def compare(subject: Subject, sweep: dict[int, list[Request]], batch_size: int) -> Result:
    """Run `sweep` (requests by k, greedy) both ways."""
    requests = [request for group in sweep.values() for request in group]
    lm: Any = subject.model
    ends = end_tokens(subject)
    batches = [group[i : i + batch_size] for group in sweep.values() for i in range(0, len(group), batch_size)]
    with LocalEngine(subject, batch_size) as engine:
        _by_hand(lm, batches[0][:1], ends)  # warm both up
        engine.submit(replace(requests[0], decoding=Decoding(max_new_tokens=2))).result()
        hand, answers = timed(lambda: [_by_hand(lm, batch, ends) for batch in batches])
        ours, completions = timed(lambda: [f.result() for f in [engine.submit(r) for r in requests]])
    lengths = [[len(answer) for answer in batch] for batch in answers]
    flat = [answer for batch in answers for answer in batch]
    different = [i for i, answer in enumerate(flat) if answer != completions[i].ids]
    gaps = [_gap(lm, requests[i].ids, flat[i], completions[i].ids) for i in different]
    return Result(
        hand,
        ours,
        answered=len(requests),
        useful=sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths),
        different=len(different),
        ties=sum(gap < TIE for gap in gaps),
    )


def _by_hand(lm: Any, batch: list[Request], ends: set[int]) -> list[tuple[int, ...]]:
    """The usual way: one left-padded batch, decoded until its last row is done."""
    width = max(len(request.ids) for request in batch)
    pad = min(ends, default=0)
    limits = [request.decoding.max_new_tokens for request in batch]
    out = lm.generate(
        **left_padded([request.ids for request in batch], pad, lm.device),
        max_new_tokens=max(limits),
        do_sample=False,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        stopping_criteria=[_PerRow(width, limits)],
    )
    return [_until_end(row[width:].tolist(), ends, limit) for row, limit in zip(out, limits, strict=True)]


def _until_end(ids: list[int], ends: set[int], limit: int) -> tuple[int, ...]:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return tuple(ids[: min(stop, limit)])


@torch.no_grad()
def _gap(lm: Any, prompt: tuple[int, ...], plain: tuple[int, ...], ours: tuple[int, ...]) -> float:
    """Gap between the plain model's two best logits where the answers part."""
    pairs = enumerate(zip(plain, ours))  # noqa: B905 (one may be shorter)
    first = next((i for i, (a, b) in pairs if a != b), min(len(plain), len(ours)))
    ids = torch.tensor([[*prompt, *plain[:first]]], device=lm.device)
    best = lm(input_ids=ids, logits_to_keep=1).logits[0, -1].float().topk(2).values
    return float(best[0] - best[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="DEMO")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--planned", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    demo = last_demo() if args.model == "DEMO" else None
    if demo is not None:
        subject = models.load(str(demo))
        sweep = demo_sweep(demo, subject.tokenizer, args.prompts, args.new_tokens)
    else:
        if args.model == "DEMO":
            print("there is no aligned demo model yet (`make demo` makes it): smollm2 with planned lengths instead")
            args.model, args.planned = "smollm2", True
        subject = models.load(args.model)
        sweep = sweep_requests(subject.tokenizer, args.prompts, args.new_tokens, args.planned)
    name = "aligned demo model" if demo is not None else args.model
    print(
        f"{name}, {subject.model.dtype}, {args.threads} threads: {len(sweep[0])} prompts at k = {KS}, "
        f"batch {args.batch_size}, at most {args.new_tokens} new tokens{', planned lengths' if args.planned else ''}"
    )
    print("\n".join(compare(subject, sweep, args.batch_size).lines()))


if __name__ == "__main__":
    main()
