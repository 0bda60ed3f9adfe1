"""How long: the operations that verbs really do, beside those that docs/sizes.md computes, and how fast they pass here.

python benchmarks/times.py NAME [FOLDER]     one case as in sizes.py, into benchmarks/times.json; FOLDER holds the 0.5B
python benchmarks/times.py                   the page's table of what was found

Operations are those of matrix products, as PyTorch counts them, in a run of their own; seconds are of another run. Of a
training both are of its last step without the optimizer, of `measure` of all behind the loading of its model. The machine's
speed is that of the quickest large product in the same numbers. Of `attack` what counts is what decoding reads: bytes
computed for each step, seconds from the first step to the last, and the machine's speed in reading a large tensor.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import sizes
from memory import Training
from shared import in_a_process, large_product
from tokendeep import models
from tokendeep.compute import lm_head

FOUND = Path(__file__).with_suffix(".json")
DECODED = 33  # the last forward passes of an attack, in which all rows are decoded


def run(name: str, model: str, out: Path, *, counted: bool) -> dict[str, float]:
    """Run the verb of a case here: the GFLOP (where they are counted) and the seconds of the part that is looked at."""
    from tokendeep.training.sft import ResponseSFTTrainer

    case, plain = sizes.case_of(name), ResponseSFTTrainer.training_step
    steps: list[tuple[float, float]] = []

    def counter() -> Any:
        return FlopCounterMode(display=False) if counted else nullcontext()

    def step(self: Any, *given: Any, **more: Any) -> Any:
        with counter() as found:
            start = time.perf_counter()
            loss = plain(self, *given, **more)
            steps.append((_gflop(found), time.perf_counter() - start))
        return loss

    load, decoded = models.load, []

    def loaded(*given: Any, **more: Any) -> Any:
        subject = load(*given, **more)
        decoder: Any = lm_head.decoder(lm_head.causal_lm(subject.model))
        decoder.register_forward_hook(lambda *_: decoded.append(time.perf_counter()))
        return subject

    models.load = loaded
    ResponseSFTTrainer.training_step = step  # type: ignore[method-assign]
    with counter() if case["verb"] == "measure" else nullcontext() as whole:
        found = sizes.run(case, model, out)
    if case["verb"] == "attack":
        decoded = decoded[-DECODED:]
        return {"seconds": decoded[-1] - decoded[0], "prompt": found["prompt"], "steps": len(decoded) - 1}
    last = steps[len(steps) // 2 :] or [(_gflop(whole), found["seconds"])]  # of the two optimizer steps the second
    done = {"gflop": sum(one for one, _ in last), "seconds": sum(one for _, one in last)}
    return {**done, "prompt": found["prompt"], "answer": found["answer"], "steps": len(last)}


def _gflop(counter: Any) -> float:
    return counter.get_total_flops() / 1e9 if counter else 0.0


def computed(name: str, found: dict[str, float]) -> float:
    """The GFLOP that docs/sizes.md computes for the work of a case."""
    case = sizes.case_of(name)
    shape, rows, length = sizes.SHAPES[case["model"]], case["rows"], int(found["prompt"] + found["answer"])
    if case["verb"] == "measure":
        return sizes.scoring(shape, rows, int(found["prompt"])) / 1e9
    how = Training(case["lora"], recompute="recompute" in case["kinds"])
    return found["steps"] * sizes.learning(shape, how, rows * length, int(rows * found["answer"])) / 1e9


def read(name: str, found: dict[str, float]) -> float:
    """The GB that docs/sizes.md computes for the decoding of a case: weights and keys at each step."""
    case = sizes.case_of(name)
    shape, item = sizes.SHAPES[case["model"]], 2 if case["dtype"] == "bfloat16" else 4
    length = found["prompt"] + 64 - found["steps"] / 2
    return found["steps"] * sizes.step_bytes(shape, case["rows"], length, item) / 1e9


def measure(name: str, folder: str) -> None:
    """Run one case twice (an attack once), in processes of their own, and add what was found to the file."""
    case = sizes.case_of(name)
    if case["verb"] == "attack":
        found = {**in_a_process(__file__, name, folder, "timed"), "reading": large_reading()}
    else:
        counted, timed = (in_a_process(__file__, name, folder, way) for way in ("counted", "timed"))
        speed = large_product(torch.bfloat16 if case["dtype"] == "bfloat16" else torch.float32)
        found = {**counted, "seconds": timed["seconds"], "product": speed}
    known = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    FOUND.write_text(json.dumps({**known, name: found}, indent=1) + "\n")
    print(table({name: found}))


def table(found: dict[str, dict[str, float]]) -> str:
    lines, more = [], []
    for name, case in found.items():
        if "reading" in case:
            size = read(name, case)
            speed = size / case["seconds"]
            cells = [f"{size:.1f}", f"{case['seconds']:.1f}", f"{speed:.1f}", f"{speed / case['reading']:.2f}"]
            more.append([f"`{name}`", *cells])
            continue
        guess, speed = computed(name, case), case["gflop"] / case["seconds"]
        cells = [f"{case['gflop']:,.0f}", f"{guess:,.0f}", f"{guess / case['gflop']:.2f}", f"{case['seconds']:.1f}"]
        lines.append([f"`{name}`", *cells, f"{speed:.0f}", f"{speed / case['product']:.2f}"])
    what = "verb, model, numbers, rows"
    head = [what, "GFLOP counted", "computed", "ratio", "seconds", "GFLOP/s", "of a large product's"]
    other = [what, "GB read, computed", "seconds", "GB/s", "of a large tensor's"]
    return sizes.table(head, lines) + "\n\n" + sizes.table(other, more)


def large_reading(size: int = 2**28) -> float:
    """GB/s of the quickest of some sums of a large float32 tensor."""
    large, times = torch.ones(size), []
    for _ in range(6):
        start = time.perf_counter()
        large.sum()
        times.append(time.perf_counter() - start)
    return 4 * size / min(times) / 1e9


def main(name: str = "", folder: str = "", way: str = "") -> None:
    if not name:
        print(table(json.loads(FOUND.read_text())))
    elif not way:
        models.smollm2_folder()
        measure(name, folder)
    else:
        with tempfile.TemporaryDirectory() as out:
            model = folder if sizes.case_of(name)["model"] == "0.5B" else "smollm2"
            print(json.dumps(run(name, model, Path(out), counted=way == "counted")))


if __name__ == "__main__":
    main(*sys.argv[1:])
