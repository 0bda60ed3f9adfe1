"""Run TRL's own tests of SFTTrainer with our trainer in its place, and print what became of each.

    python tests/peers/trl_suite.py --trl FOLDER [--trainer ResponseSFTTrainer] [--work FOLDER] [-k WORDS]

FOLDER is a checkout of TRL (its `tests/` is enough). Models and data sets are made on the spot, in folders that are called
as those of the tests are called on the hub, so nothing is fetched. Every test runs with TRL's trainer first: what fails
there (images, no GPU, another version of TRL) says nothing about ours. TRL's texts have no answers, so each test runs on them
as they are and once more on the same lines as prompt and completion.

    pass      as with TRL's trainer
    refusal   an InputError of ours: one sentence, by design
    defect    anything else; the script ends with 1 where there is one

It is no part of the tests of this project, for it needs a checkout of TRL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SUITE = "tests/test_sft_trainer.py::TestSFTTrainer"
KINDS = ("texts", "answers")
COLUMNS = ("pass", "refusal", "defect", "not here")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", type=Path, required=True, help="a checkout of TRL")
    parser.add_argument("--trainer", default="ConstrainedSFTTrainer", help="the trainer that is tried")
    parser.add_argument("--work", type=Path, help="folder for models and data; a temporary one where left out")
    parser.add_argument("-k", default="", help="only tests whose names fit, as pytest's -k")
    given = parser.parse_args()
    suite = given.trl.resolve() / SUITE.split("::")[0]
    if not suite.is_file():
        parser.error(f"{suite} is not there; give a checkout of TRL")
    with tempfile.TemporaryDirectory() as folder:
        work = (given.work or Path(folder)).resolve()
        results = {kind: compared(given.trl.resolve(), work / kind, kind, given.trainer, given.k) for kind in KINDS}
    print(table(results))
    return int(any(outcome == "defect" for rows in results.values() for outcome, _ in rows.values()))


def compared(trl: Path, work: Path, kind: str, trainer: str, chosen: str) -> dict[str, tuple[str, str]]:
    """By test what became of it with our trainer, and in what words."""
    import peer_models

    peer_models.write_all(work, (trl / "tests" / "test_sft_trainer.py").read_text(encoding="utf-8"), kind)
    theirs, ours = (run(trl, work, name, chosen) for name in ("", trainer))
    return {test: judged(result, ours.get(test)) for test, result in theirs.items()}


def run(trl: Path, work: Path, trainer: str, chosen: str) -> dict[str, dict[str, Any]]:
    """TRL's tests in a process of their own, with a trainer of ours or (an empty name) with its own; results by test."""
    report = work / f"{trainer or 'trl'}.jsonl"
    report.unlink(missing_ok=True)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hf"), "TRL_EXPERIMENTAL_SILENCE": "1"}
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        *(sys.executable, "-m", "pytest", f"{trl}/{SUITE}", "-q", "-p", "peer_plugin", "-c", os.devnull),
        *("--rootdir", str(trl), "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=short"),
        *(["-k", chosen] if chosen else []),
    ]
    with (work / f"{trainer or 'trl'}.log").open("w") as log:
        subprocess.run(
            command, cwd=work, check=False, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **offline, "PYTHONPATH": path, "PEER_REPORT": str(report), "PEER_TRAINER": trainer,
                 "PEER_DATA": str(trl / "tests" / "data")},
        )  # fmt: skip
    if not report.exists():
        raise SystemExit(f"No test ran; see {log.name}.")
    rows = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    return {row["test"]: row for row in rows}


def judged(theirs: dict[str, Any], ours: dict[str, Any] | None) -> tuple[str, str]:
    """One test: what became of it, and the words of an error."""
    if theirs["outcome"] != "passed":
        return "not here", theirs["message"]
    if ours is None:
        return "defect", "it did not end"
    if ours["outcome"] == "passed":
        return "pass", ""
    return ("refusal" if ours["refused"] else "defect"), ours["message"]


def table(results: dict[str, dict[str, tuple[str, str]]]) -> str:
    """Counts by kind of rows, then the sentences of refusals and defects with the tests that met them."""
    lines = [f"{'rows':10}" + "".join(f"{name:>10}" for name in COLUMNS)]
    for kind, rows in results.items():
        counts = Counter(outcome for outcome, _ in rows.values())
        lines.append(f"{kind:10}" + "".join(f"{counts[name]:>10}" for name in COLUMNS))
    for outcome in COLUMNS[1:]:
        lines += ["", outcome, *_sentences(results, outcome)]
    return "\n".join(lines)


def _sentences(results: dict[str, dict[str, tuple[str, str]]], outcome: str) -> Iterator[str]:
    by_words: dict[str, list[str]] = {}
    for kind, rows in results.items():
        for test, (what, words) in rows.items():
            if what == outcome:
                by_words.setdefault(words, []).append(f"{test} ({kind})")
    for words, tests in sorted(by_words.items(), key=lambda item: -len(item[1])):
        names = ", ".join(tests) if outcome == "defect" else f"{tests[0]}" + (" ..." if len(tests) > 1 else "")
        yield f"  {len(tests):>3}  {words[:200]}\n       {names}"


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
