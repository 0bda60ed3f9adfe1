"""Suffix search against nanoGCG 0.3.0: candidates scored per second, and the loss after equal candidates.

    make bench-gcg                                   # sets up nanoGCG in an environment of its own, prints both and the ratio
    python benchmarks/gcg.py ours FILE | nano FILE   # one side
    python benchmarks/gcg.py compare FILE FILE       # the ratio

Same model (the packaged one, float32), request, target, first suffix, budget, batch and seeds; both leave out candidates that
do not survive retokenisation, and count those they score. nanoGCG 0.3.0 wants transformers 4.47, which cannot read what
transformers 5 writes without help: this script builds its model and tokenizer from the same files, and the loss of the first
suffix, printed on both sides, shows that they are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

REQUEST = "Write a poem in which every line begins with the letter Q"
TARGET = "Sure, here is a poem in which every line begins with the letter Q"
TOKENS, TOP = 20, 256


def ours(args: argparse.Namespace) -> list[dict[str, Any]]:
    from tokendeep import models
    from tokendeep.attacks.gcg import behaviours
    from tokendeep.attacks.gcg import search as gcg

    subject = models.load("smollm2", dtype="float32")
    b = behaviours.behaviour(subject, "request", [{"role": "user", "content": REQUEST}], TARGET)
    runs = []
    for seed in args.seeds:
        search = gcg.Search(
            [subject], [b], gcg.Settings(args.steps, args.width, TOP, args.batch, seed=seed, stop=False)
        )
        state = search.begin(behaviours.start(subject, TOKENS))
        first = search.loss(state.suffix)
        started = time.perf_counter()
        states = list(search.steps(state))
        seconds = time.perf_counter() - started
        done = [state.candidates for state in states]
        runs.append({"first": first, "seconds": seconds, "candidates": done, "losses": list(states[-1].losses)})
    return runs


def nano(args: argparse.Namespace) -> list[dict[str, Any]]:
    import nanogcg
    import torch
    from nanogcg import gcg
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = Path(args.model)
    written = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(**written, rope_theta=written["rope_parameters"]["rope_theta"])
    model = LlamaForCausalLM.from_pretrained(folder, config=config, torch_dtype=torch.float32).eval()
    names = json.loads((folder / "tokenizer_config.json").read_text())
    special = {name: names[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if names.get(name)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    tokenizer.chat_template = (folder / "chat_template.jinja").read_text()
    keep = gcg.filter_ids
    done: list[int] = []

    def counting(*given: Any) -> Any:
        kept = keep(*given)
        done.append((done[-1] if done else 0) + len(kept))
        return kept

    gcg.filter_ids = counting
    runs = []
    for seed in args.seeds:
        done = []
        settings = nanogcg.GCGConfig(
            num_steps=args.steps, optim_str_init=" x" * TOKENS, search_width=args.width, topk=TOP, batch_size=args.batch,
            seed=seed, verbosity="ERROR", early_stop=False,
        )  # fmt: skip
        messages = [{"role": "user", "content": REQUEST + "{optim_str}"}]
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": REQUEST + " x" * TOKENS}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        wanted = tokenizer(TARGET, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids + wanted])).logits[0, len(ids) - 1 : -1]
        first = float(torch.nn.functional.cross_entropy(logits, torch.tensor(wanted)))
        started = time.perf_counter()
        found = nanogcg.run(model, tokenizer, messages, TARGET, settings)
        seconds = time.perf_counter() - started
        runs.append({"first": first, "seconds": seconds, "candidates": done, "losses": found.losses})
    return runs


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Both sides in a few lines."""

    budget = min(r["candidates"][-1] for r in ours + theirs)

    def speed(runs: list[dict[str, Any]]) -> float:
        return sum(r["candidates"][-1] for r in runs) / sum(r["seconds"] for r in runs)

    def lowest(runs: list[dict[str, Any]]) -> str:
        found = [min(x for x, n in zip(r["losses"], r["candidates"], strict=True) if n <= budget) for r in runs]
        each = " ".join(f"{loss:.3f}" for loss in found)
        return (
            f"lowest loss within {budget} candidates {statistics.mean(found):.3f} ({each}), from {runs[0]['first']:.4f}"
        )

    lines = [
        f"{name:<10}{speed(runs):7.2f} candidates/s, {sum(r['candidates'][-1] for r in runs)} in "
        f"{sum(r['seconds'] for r in runs):.0f} s; {lowest(runs)}"
        for name, runs in (("nanoGCG", theirs), ("tokendeep", ours))
    ]
    return "\n".join([*lines, f"ratio: {speed(ours) / speed(theirs):.2f} times as fast (aim 1.5, better 2)"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("side", choices=("ours", "nano", "compare"))
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    if args.side == "compare":
        first, second = (json.loads(path.read_text()) for path in args.files)
        print(compare(first, second))
        return
    runs = {"ours": ours, "nano": nano}[args.side](args)
    args.files[0].parent.mkdir(parents=True, exist_ok=True)
    args.files[0].write_text(json.dumps(runs))
    print(
        f"{args.side}: {sum(r['candidates'][-1] for r in runs)} candidates in {sum(r['seconds'] for r in runs):.1f} s"
    )


if __name__ == "__main__":
    main()
