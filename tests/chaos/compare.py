"""What a run left, as values that two runs of the same must share: every byte but for times and names of logs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

CLOCK = re.compile("[a-z_]*seconds|started|finished|[a-z_]*runtime|[a-z_]*per_second|total_flos")
TIMES = re.compile(rf'("(?:{CLOCK.pattern})": )("[^"]*"|[-\d.e+]+|null)')
SECONDS = re.compile(
    r"\| \d+ \|(?: [-.\d]*(?: \([.\d]+ to [.\d]+\))? \|)?$", re.MULTILINE
)  # the last columns of a table of trainings
DATES = re.compile(r"\d{4}-\d\d-\d\d.{1,8}?\d\d:\d\d")
TEXTS = (".json", ".jsonl", ".md", ".txt", ".csv", ".html", ".jinja")
OWN = (
    "started",
    "finished",
    "resumed",
    "versions",
    "cost",
    "results",
)  # of a manifest: times, and hashes of what holds times


def picture(folder: Path, before: Path | None = None) -> dict[str, Any]:
    """Name of each file -> its content; the evaluation logs of a folder are their samples.

    Args:
        before: where the folder was copied from, which its files may name.
    """
    places = [str(place).encode() for place in (folder, before) if place]
    values: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.is_symlink() or name.startswith(".damaged/"):
            continue
        if path.suffix == ".eval":
            name = (path.parent.relative_to(folder) / "*.eval").as_posix()
            values.setdefault(name, _samples(path.parent))
        elif path.name == "manifest.json":
            values[name] = _manifest(path, places)
        else:
            values[name] = _content(path, places)
    return values


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The names of the files that differ."""
    return [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]


def _placeless(path: Path, places: list[bytes]) -> bytes:
    raw = path.read_bytes()
    for place in places:
        raw = raw.replace(place, b"OUT")
    return raw


def _content(path: Path, places: list[bytes]) -> Any:
    raw = _placeless(path, places)
    if path.suffix == ".json":
        return _timeless(json.loads(raw))
    if path.suffix not in TEXTS:
        return hashlib.sha256(raw).hexdigest()
    if path.suffix == ".html":  # the manifests in it have times, and the names of logs
        raw = re.sub(rb"\{\n &#34;.*?\n\}", b"{}", raw, flags=re.DOTALL)
    text = DATES.sub("-", TIMES.sub(r"\1-", raw.decode("utf-8", "replace")))
    return SECONDS.sub("| - |", text) if path.suffix == ".md" else text


def _timeless(value: Any) -> Any:
    """A JSON value without what a clock says; the order of keys is no difference."""
    if isinstance(value, dict):
        return {name: _timeless(one) for name, one in value.items() if not CLOCK.fullmatch(name)}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def _manifest(path: Path, places: list[bytes]) -> dict[str, Any]:
    told = json.loads(_placeless(path, places))
    kept = {name: _timeless(value) for name, value in told.items() if name not in OWN}
    kept["files"] = sorted({re.sub(r"[^/]*\.eval$", "*.eval", name) for name in told["files"]})
    return kept


def _samples(folder: Path) -> list[dict[str, Any]]:
    from tokendeep.evals import logs

    samples = [asdict(sample) for sample in logs.read_samples(folder)]
    count = len(list(folder.glob("*.eval")))
    return [{"logs": count}, *({**sample, "seconds": None, "model": None} for sample in samples)]
