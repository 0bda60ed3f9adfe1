"""Every verb, killed at random moments and run again until it is done, leaves what an uninterrupted run leaves."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare import differences, picture
from processes import Done, Running, command, start
from world import REFUSAL, Job, World, jobs

MOST = 4  # kills of one run, at most


@dataclass
class Kept:
    """What an uninterrupted run left, how long it took, and its bytes: of all files, and of the largest."""

    seconds: float
    values: dict[str, Any]
    folder: Path
    size: int
    largest: int


Whole = dict[str, tuple[Job, Kept]]


@dataclass
class Tally:
    """What has been done and what was wrong."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def begin(job: Job, out: Path, log: Path, **limits: int) -> Running:
    """Start a job whose result is to be in `out`."""
    if job.copies and not out.exists():
        shutil.copytree(job.copies, out)
    if job.tells:
        return start(_tell(job, out), log, {"TOKENDEEP_CACHE": f"{out}-cache"}, **limits)
    return start(refusing_model(command(job.at(out))) if job.refuses else command(job.at(out)), log, **limits)


def uninterrupted(world: World, work: Path) -> Whole:
    """Each job, run once without a fault; warm ones, so that their seconds are those of the work.

    Raises:
        RuntimeError: one does not end well even so.
    """
    made: Whole = {}
    for job in jobs(world, work / "whole"):
        out = work / "whole" / job.name
        out.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        done = begin(job, out, work / f"{job.name}.log").finish()
        if done.code:
            raise RuntimeError(f"{job.name} ends with {done.code} without any fault:\n{done.said[-3000:]}")
        seconds, sizes = time.monotonic() - began, [path.stat().st_size for path in out.rglob("*") if path.is_file()]
        made[job.name] = (job, Kept(seconds, picture(out), out, sum(sizes), max(sizes)))
        print(f"  {job.name}: {made[job.name][1].seconds:.1f} s, {len(made[job.name][1].values)} files", flush=True)
    return made


def kill(whole: Whole, work: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """Kill `count` times, the verbs in turn."""
    tally, draw = Tally(), random.Random(seed)
    names = list(whole)
    while tally.kills.total() < count:
        name = names[tally.runs.total() % len(names)]
        job, kept = whole[name]
        number = tally.runs.total()
        out = work / "killed" / str(number) / name  # reports name a run by its folder
        out.parent.mkdir(parents=True)
        landed, done = _one(job, kept, out, draw, work / f"killed-{number}.log")
        tally.runs[name] += 1
        tally.kills[name] += len(landed)
        wrong = [f"ends with {done.code}: {done.said[-1500:]}"] if done.code else _wrong(kept, out)
        if wrong:
            moments = ", ".join(f"{moment:.2f}" for moment in landed)
            tally.faults.append(
                f"{name}, run {number} (killed after {moments} s of {kept.seconds:.1f}): {'; '.join(wrong)}"
            )
            say(tally.faults[-1])
        else:
            shutil.rmtree(out.parent, ignore_errors=True)
    return tally


def _one(job: Job, kept: Kept, out: Path, draw: random.Random, log: Path) -> tuple[list[float], Done]:
    """One run: the moments of its kills, and how it ended at last."""
    landed: list[float] = []
    for _ in range(draw.randint(1, MOST)):
        running, moment = begin(job, out, log), draw.uniform(0, kept.seconds)
        if running.wait(moment) is not None:
            break  # it was faster
        if running.kill():
            landed.append(moment)
    return landed, begin(job, out, log).finish()


def _wrong(kept: Kept, out: Path) -> list[str]:
    names = differences(kept.values, picture(out))
    return [f"differs in {', '.join(names)}"] if names else []


def refusing_model(work: Callable[[], int]) -> Callable[[], int]:
    """The work, in which a model refuses whatever it is asked."""

    def refusing() -> int:
        from tokendeep.training import answers

        answers.sample_refusals = lambda subject, turns, *rest, **more: [REFUSAL] * len(turns)
        return work()

    return refusing


def _tell(job: Job, out: Path) -> Callable[[], int]:
    """The demo, cut down to a few rows and steps of a tiny model whose refusals are given."""

    def work() -> int:
        from tokendeep import cli
        from tokendeep.verbs import demo

        tiny = demo.Recipe(
            model=job.words[0], answer_tokens=6, harmful_tokens=8, attack_tokens=4, k=(0, 3),
            k_base=(0,), layers=1, max_context=8, measured=3, measured_k=(0, 2), positions=6, utility=4, train=4, test=4,
            align=demo.Phase(steps=2, safety=2, utility=2, alpha=0.2),
            deepen=demo.Phase(steps=2, safety=2, utility=2, alpha=0.5),
        )  # fmt: skip
        demo.plan.__defaults__ = (tiny,)
        return cli.main(["demo", f"--out={out}"])

    return refusing_model(work)
