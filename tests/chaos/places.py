"""Folders that fail: a full disk, files that may not grow, a disk that may only be read, two runs in one folder.

Afterwards, with room again, the same command goes on to what an uninterrupted run leaves.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from compare import differences, picture
from inputs import wrong
from kills import Kept, Tally, Whole, begin
from processes import Done
from world import CANARY, Job

ROOM = 400 * 2**20  # bytes of the disk when there is room again
Trial = Callable[[Job, Kept, Path, random.Random], str]


def mounts(work: Path) -> bool:
    """Whether this user may mount disks in memory."""
    try:
        with disk(work / "probe", 2**16):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """A disk in memory of so many bytes at `folder`."""
    folder.mkdir(parents=True)
    options = ["-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(["mount", "-t", "tmpfs", *options], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full(job: Job, kept: Kept, place: Path, draw: random.Random) -> str:
    """The disk is full at some moment, and then has room again."""
    size = 2**14 + int(draw.random() * kept.size)
    with disk(place, size):
        done = _run(job, place)
        fault = _refused(done, "is full") if done.code else ""
        remount(place, f"size={ROOM}")
        return fault or _goes_on(job, kept, place)


def short(job: Job, kept: Kept, place: Path, draw: random.Random) -> str:
    """No file may grow beyond a size, and then all may."""
    place.mkdir(parents=True)
    done = _run(job, place, file_bytes=int(draw.choice((0.02, 0.1, 0.3, 0.9)) * kept.largest))
    fault = _refused(done, "is full", "too large") if done.code else ""
    return fault or _goes_on(job, kept, place)


def read_only(job: Job, kept: Kept, place: Path, draw: random.Random) -> str:
    """Nothing can be written, from the start or after a run was killed, and then it can."""
    with disk(place, ROOM):
        if draw.random() < 0.5:
            running = begin(job, place / job.name, place.with_suffix(".log"))
            running.wait(draw.uniform(0, kept.seconds))
            running.kill()
        remount(place, "ro")
        done = _run(job, place)
        fault = _refused(done, "may not be written") if done.code else ""
        remount(place, "rw")
        return fault or _goes_on(job, kept, place)


def two(job: Job, kept: Kept, place: Path, draw: random.Random) -> str:
    """Two runs at once in one folder: one does it, the other is refused or finds it done."""
    place.mkdir(parents=True)
    first = begin(job, place / job.name, place.with_suffix(".1.log"))
    code = first.wait(draw.uniform(0, kept.seconds))
    second = begin(job, place / job.name, place.with_suffix(".2.log")).finish()
    codes = {second.code, first.finish().code if code is None else code}
    fault = _refused(second, "Another process") if second.code else ""
    return fault or ("" if 0 in codes else f"none of them ends well: {codes}") or _goes_on(job, kept, place)


def damaged(job: Job, kept: Kept, place: Path, draw: random.Random) -> str:
    """A result of a finished run is emptied, changed or lost, and is made again."""
    shutil.copytree(kept.folder, place / job.name)
    manifest = place / job.name / "manifest.json"
    if job.tells or not manifest.exists():
        return ""
    name = draw.choice(sorted(json.loads(manifest.read_text())["results"]))
    path, raw = place / job.name / name, (place / job.name / name).read_bytes()
    path.write_bytes(draw.choice((b"", raw[: len(raw) // 2], raw[:-1] + bytes([raw[-1] ^ 1]), b"[]")))
    if draw.random() < 0.2:
        path.unlink()
    fault = _goes_on(job, kept, place)
    said = place.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    return f"{name}: {fault}" if fault else "" if "it is made again" in said else f"{name}: nothing is said"


TRIALS: dict[str, Trial] = {
    "full disk": full, "file limit": short, "read-only": read_only, "two at once": two, "damaged result": damaged,
}  # fmt: skip
MOUNTED = ("full disk", "read-only")


def trouble(whole: Whole, work: Path, count: int, seed: int, say: Callable[[str], None]) -> Tally:
    """`count` trials, each kind and verb in turn; those that need a mount are left out where that is forbidden."""
    tally, draw = Tally(), random.Random(seed)
    whole = {name: (job, kept) for name, (job, kept) in whole.items() if job.run}
    kinds = [kind for kind in TRIALS if kind not in MOUNTED or mounts(work)]
    for number in range(count):
        kind, name = kinds[number % len(kinds)], list(whole)[number // len(kinds) % len(whole)]
        job, kept = whole[name]
        place = work / "places" / str(number)
        fault = TRIALS[kind](job, kept, place, draw)
        tally.runs[kind] += 1
        if fault:
            tally.faults.append(f"{kind}, {name}, trial {number}: {fault}")
            say(tally.faults[-1])
        shutil.rmtree(place, ignore_errors=True)
    return tally


def _run(job: Job, place: Path, **limits: int) -> Done:
    return begin(job, place / job.name, place.with_suffix(".log"), **limits).finish()


def _refused(done: Done, *parts: str) -> str:
    """What is wrong with a refusal; nothing where it is one sentence that holds one of the parts."""
    fault = wrong(done.code, done.said.replace("%|", ""), CANARY)  # the fault may come in the middle of the work
    if not fault and not any(part in done.said for part in parts):
        fault = "another sentence"
    return f"{fault}: {done.said[-1200:]}" if fault else ""


def _goes_on(job: Job, kept: Kept, place: Path) -> str:
    done = _run(job, place)
    if done.code:
        return f"does not go on, {done.code}: {done.said[-1200:]}"
    names = differences(kept.values, picture(place / job.name, kept.folder))
    return f"differs in {', '.join(names)}" if names else ""
