"""Times the attack on decoding parameters: our engine against one hand-batched `model.generate` run per setting.

    python benchmarks/decoding.py [--model DEMO] [--prompts 32] [--settings 50] [--new-tokens 100] [--batch-size 32]

Same token ids, settings, batch size and limits. Sampled answers differ from side to side, and with them their lengths, so the
ratio is given in seconds and in seconds per written token. Beside it stands what makes the difference: the share of prompt
tokens that was taken from another row instead of computed, and sum of answer lengths / sum of batch maxima, the part of a fixed
batch's row steps that produce a token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from shared import demo_sweep, end_tokens, last_demo, left_padded, sweep_requests, timed
from tokendeep import models
from tokendeep.attacks.decoding import Setting, paper_grid
from tokendeep.engines.base import Request
from tokendeep.engines.local import LocalEngine
from tokendeep.types import Decoding


def by_hand(lm: Any, prompts: Sequence[Sequence[int]], setting: Setting, limit: int, ends: set[int]) -> list[int]:
    """Lengths of the answers of one left-padded batch, sampled under one setting."""
    width, pad = max(map(len, prompts)), min(ends)
    own = setting.decoding(Decoding())
    more: dict[str, Any] = (
        {"temperature": own.temperature, "top_p": own.top_p, "top_k": own.top_k} if setting.knob else {}
    )
    out = lm.generate(
        **left_padded(prompts, pad, lm.device), max_new_tokens=limit, do_sample=setting.knob is not None,
        eos_token_id=sorted(ends), pad_token_id=pad, **more,
    )  # fmt: skip
    return [next((i for i, t in enumerate(row[width:].tolist()) if t in ends), limit) for row in out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="DEMO")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--settings", type=int, default=50, help="every so many of the 50 are left out evenly")
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    demo = last_demo() if args.model == "DEMO" else None
    name = "aligned demo model" if demo else "smollm2" if args.model == "DEMO" else args.model
    subject = models.load(str(demo) if demo else name)
    lm, tokenizer = subject.model, subject.tokenizer
    made = demo_sweep(demo, tokenizer, args.prompts, 1) if demo else sweep_requests(tokenizer, args.prompts, 1, False)
    prompts = [request.ids for request in made[0]]
    grid = paper_grid()
    grid = [grid[i * len(grid) // args.settings] for i in range(args.settings)]
    ends = end_tokens(subject)
    torch.manual_seed(0)
    shared = Decoding(max_new_tokens=args.new_tokens)
    batches = [prompts[i : i + args.batch_size] for i in range(0, len(prompts), args.batch_size)]
    with LocalEngine(subject, args.batch_size) as engine:
        by_hand(lm, prompts[:1], grid[0], 2, ends)  # warm both up
        engine.submit(Request(prompts[0], Decoding(max_new_tokens=2))).result()
        before = (engine.stats.prefilled, engine.stats.reused)
        hand, lengths = timed(lambda: [by_hand(lm, b, s, args.new_tokens, ends) for s in grid for b in batches])
        ours, answers = timed(
            lambda: [f.result() for f in [engine.submit(Request(p, s.decoding(shared))) for p in prompts for s in grid]]
        )
        prefilled, reused = engine.stats.prefilled - before[0], engine.stats.reused - before[1]
    theirs, own = sum(map(sum, lengths)), sum(len(answer.ids) for answer in answers)
    useful = theirs / sum(max(batch) * len(batch) for batch in lengths)
    print(
        f"{name}: {len(prompts)} prompts x {len(grid)} settings, batch {args.batch_size}, at most {args.new_tokens} new tokens\n"
        f"hand-batched generate: {hand[0]:.1f} s for {theirs} tokens\n"
        f"engine:                {ours[0]:.1f} s for {own} tokens\n"
        f"ratio:                 {ours[0] / hand[0]:.3f} of the time (aim .9), "
        f"{ours[0] / own * theirs / hand[0]:.3f} for each token\n"
        f"shared prefix:         {reused / (reused + prefilled):.3f} of the prompt tokens were not computed again\n"
        f"refilled batches:      answer lengths / batch maxima {useful:.3f} by hand"
    )


if __name__ == "__main__":
    main()
