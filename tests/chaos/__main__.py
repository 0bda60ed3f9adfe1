"""The fault campaign: `make chaos`, or `python tests/chaos --kills 300 --inputs 1000 --places 60 --seed 0`.

Tiny models, one core, no network. What is wrong is printed as it is found; the folder of a fault is kept, and the
last lines are the figures. Exit code 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import inputs
import kills
import places
import processes
import world

SECONDS = 60  # that a command line with a mistake may take


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/chaos", description=__doc__)
    for name, default, meaning in (
        ("kills", 300, "processes killed"),
        ("inputs", 1300, "command lines with a mistake (some turn out to be none)"),
        ("places", 80, "full disks, read-only folders and pairs of runs"),
        ("seed", 0, "seed of all three"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default {default})")
    parser.add_argument("--work", help="folder for everything; a temporary one by default")
    chosen = parser.parse_args()
    work = Path(chosen.work or tempfile.mkdtemp(prefix="tokendeep-chaos-")).resolve()
    began = time.monotonic()
    processes.load()
    made = processes.start(lambda: world.build(work / "world"), _log(work, "world")).finish()
    if made.code:
        raise SystemExit(f"the models cannot be made:\n{made.said}")
    here = world.World(work / "world")
    print(f"seed {chosen.seed}, {work}\nwithout a fault:", flush=True)
    whole = kills.uninterrupted(here, work)
    faults = [
        *_mistakes(here, work, chosen.inputs, chosen.seed),
        *_told("kills", kills.kill(whole, work, chosen.kills, chosen.seed, _say)),
        *_told("places", places.trouble(whole, work, chosen.places, chosen.seed, _say)),
    ]
    print(f"{len(faults)} faults; {(time.monotonic() - began) / 60:.1f} minutes")
    if not faults and not chosen.work:
        shutil.rmtree(work, ignore_errors=True)
    return bool(faults)


def _mistakes(here: world.World, work: Path, count: int, seed: int) -> list[str]:
    faults, ends, refused = [], Counter[str](), Counter[str]()
    for number, case in enumerate(inputs.cases(here, seed, count, work / "inputs")):
        log = _log(work, "mistake")
        work_of = processes.command(case.words)
        if case.words[0] == "mend":  # that a model refuses nothing is only known when it has been asked
            work_of = kills.refusing_model(work_of)
        done = processes.start(work_of, log, here=work / "inputs" / f"case-{number}").finish(SECONDS)
        code = 0 if case.words[0] == "gate" and done.code == 1 else done.code  # a limit that is passed
        fault = inputs.wrong(code, done.said, world.CANARY)
        ends["at fault" if fault else "refused" if done.code else "taken"] += 1
        refused[case.kind.split()[0]] += not fault and done.code == 2
        if fault:
            faults.append(f"mistake {number}, {case.kind}: {fault}\n  {case.words!r:.600}\n{done.said[-1500:]}")
            _say(faults[-1])
        else:
            shutil.rmtree(work / "inputs" / f"case-{number}", ignore_errors=True)
    print(f"mistakes: {count}; {_listed(ends)}; refused by kind: {_listed(refused)}", flush=True)
    return faults


def _told(what: str, tally: kills.Tally) -> list[str]:
    killed = f"{tally.kills.total()} kills ({_listed(tally.kills)}) in " if tally.kills else ""
    print(f"{what}: {killed}{tally.runs.total()} runs ({_listed(tally.runs)}); {len(tally.faults)} faults", flush=True)
    return tally.faults


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _log(work: Path, name: str) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    return work / f"{name}.log"


def _say(fault: str) -> None:
    print(f"FAULT {fault}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
