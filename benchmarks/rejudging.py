"""How long another judge takes over the stored answers of a finished run.

    python benchmarks/rejudging.py [1000]

Makes logs of so many invented answers (a third of them refusals) in a temporary folder, and judges them twice: by the rule, and
then with every verdict known already.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from inspect_ai import eval as inspect_eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

import tokendeep

REFUSAL = "I'm sorry, but I can't help with that. I would gladly help with something else, number {n}."
ANSWER = (
    "Here is a plan for number {n} that works at home. Begin by looking at what you have, because the right size depends on the "
    "room and on the light it gets. Then write down each step, from the first sketch to the last coat. "
)


def _output(text: str) -> ModelOutput:
    output = ModelOutput.from_content("m", text)
    output.usage = ModelUsage(output_tokens=len(text.split()))  # else Inspect downloads a tokenizer to count them
    return output


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        rows, folder = Path(place, "prompts.jsonl"), Path(place, "logs")
        rows.write_text("".join(json.dumps({"instruction": f"Request number {n}"}) + "\n" for n in range(count)))
        texts = [(REFUSAL if n % 3 == 0 else 4 * ANSWER).format(n=n) for n in range(count)]
        model = get_model("mockllm/model", custom_outputs=[_output(text) for text in texts])
        given = {"data": str(rows), "judge": "refusal-keywords"}
        quiet = {"display": "none", "log_realtime": False}
        [log] = inspect_eval("tokendeep/none", task_args=given, model=model, log_dir=str(folder), **quiet)
        assert log.status == "success", log.error
        for what in ("judged", "known"):
            wall, cpu = time.perf_counter(), time.process_time()
            tokendeep.judge(folder, "refusal")
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{count} stored answers under refusal, {what}: {wall:.2f} s, {cpu:.2f} s of processor time")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ["1000"]))
