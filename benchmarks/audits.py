"""How long each score of `audit` takes over 1,000 rows of 100 tokens: python benchmarks/audits.py [--rows N] [SCORE ...]

On the packaged model in bfloat16, on as many threads as OMP_NUM_THREADS says. The rows differ in a number alone. Each time
holds all that the verb does: loading the model, reading the rows, and for `gradient` and `representation` the model's own
answers to the 48 requests of the probe (whose harmful answers are an innocuous text here; the time is the same).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import tokendeep
from shared import ANSWER, timed
from tokendeep.data import stock

AIMS = {"representation": 180, "gradient": 600}  # seconds on two cores
SCORES = ("representation", "likelihood", "refusal", "margin", "gradient")
PROBE = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scores", nargs="*", default=list(SCORES))
    parser.add_argument("--rows", type=int, default=1000)
    args = parser.parse_args()
    rows = [
        {"prompt": f"Tell me how to go about plan number {n}.", "completion": f"{ANSWER} {n}."}
        for n in range(args.rows)
    ]
    requests = [row["instruction"] for row in stock.rows("harmful.jsonl")][:PROBE]
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.jsonl")
        probe.write_text("".join(json.dumps({"instruction": text, "response": ANSWER}) + "\n" for text in requests))
        for score in args.scores:
            settings = {"score": score, "probe": str(probe), "system": "none", "dtype": "bfloat16"}
            (wall, cpu), _ = timed(lambda settings=settings: tokendeep.audit("smollm2", rows, **settings))
            aim = f" (aim {AIMS[score]})" if score in AIMS else ""
            print(f"{score}: {wall:.0f} s, {cpu:.0f} s of processor time{aim}", flush=True)


if __name__ == "__main__":
    main()
