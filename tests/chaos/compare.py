"""What a run left, as values that two runs of the same must share: every byte but for times and names of logs."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

TIMES = re.compile(
    r'("(?:seconds|started|finished|train|all|[a-z_]*runtime|[a-z_]*per_second|total_flos)": )("[^"]*"|[-\d.e+]+|null)'
)
TEXTS = (".json", ".jsonl", ".md", ".txt", ".csv", ".html", ".jinja")
OWN = (
    "started",
    "finished",
    "resumed",
    "versions",
    "cost",
    "results",
)  # of a manifest: times, and hashes of what holds times


def picture(folder: Path) -> dict[str, Any]:
    """Name of each file -> its content; the evaluation logs of a folder are their samples."""
    values: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.is_symlink() or name.startswith(".damaged/"):
            continue
        if path.suffix == ".eval":
            name = (path.parent.relative_to(folder) / "*.eval").as_posix()
            values.setdefault(name, _samples(path.parent))
        elif path.name == "manifest.json":
            values[name] = _manifest(path, folder)
        else:
            values[name] = _content(path, folder)
    return values


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The names of the files that differ."""
    return [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]


def _content(path: Path, folder: Path) -> str:
    raw = path.read_bytes()
    if path.suffix not in TEXTS:
        return hashlib.sha256(raw).hexdigest()
    return TIMES.sub(r"\1-", raw.decode("utf-8", "replace").replace(str(folder), "OUT"))


def _manifest(path: Path, folder: Path) -> dict[str, Any]:
    told = json.loads(path.read_text(encoding="utf-8").replace(str(folder), "OUT"))
    kept = {name: value for name, value in told.items() if name not in OWN}
    kept["files"] = sorted({re.sub(r"[^/]*\.eval$", "*.eval", name) for name in told["files"]})
    return kept


def _samples(folder: Path) -> list[dict[str, Any]]:
    from tokendeep.evals import logs

    samples = [asdict(sample) for sample in logs.read_samples(folder)]
    count = len(list(folder.glob("*.eval")))
    return [{"logs": count}, *({**sample, "seconds": None, "model": None} for sample in samples)]
