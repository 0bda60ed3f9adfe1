"""Scores of tasks that runs hold, row by row, and how each was asked: what compare pairs beside answers. No verb."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokendeep.errors import InputError
from tokendeep.pairing import conditions, sides
from tokendeep.pairing.conditions import FIELDS
from tokendeep.pairing.sides import Tested, Values
from tokendeep.records import UTILITY, Manifest
from tokendeep.records.base import read_json
from tokendeep.report import load
from tokendeep.runs.identity import sha256_text, system_name
from tokendeep.verbs.proven import engine

Scores = Mapping[str, Sequence["Task"]]  # metric -> the runs of one side that hold it


@dataclass(frozen=True)
class Task:
    """The scores of one run.

    Args:
        facts: those of FIELDS but `prompts`; None where it is not known.
        asked: hash of the rows as they were asked; None in older files.
        file: hash of the file that they come from; None where no manifest tells it.
    """

    name: str
    metric: str
    rows: Values
    facts: Mapping[str, str | None]
    asked: str | None
    file: str | None

    def prompts(self, asked: bool) -> str:
        """The rows, by their number and a hash: of what was `asked`, or of their ids and the file."""
        which = self.asked if asked else sha256_text(json.dumps([self.file, *sorted(map(str, self.rows))]))
        return f"{len(self.rows)} rows ({str(which)[:8]})"


def scores(side: Sequence[load.Run]) -> Scores:
    """The tasks of a side by metric, of runs of measure, and of trainings of `poison`, whose attacks lie below them.

    Raises:
        InputError: a file without scores of rows.
    """
    found: dict[str, list[Task]] = {}
    places: dict[Path, tuple[Path, load.Run]] = {}
    for run in side:
        for place in (run.folder, run.folder.parent):
            places.setdefault(place.resolve(), (place, run))
    for place, run in places.values():
        if (place / UTILITY).is_file():
            one = _read(place, run)
            found.setdefault(one.metric, []).append(one)
    return found


def tested(
    before: Sequence[Task], after: Sequence[Task], allow: Sequence[str], allowed: dict[str, tuple[str, str]]
) -> Tested:
    """The test of a task; what is allowed to differ and does goes into `allowed`.

    Raises:
        InputError: the sides differ in what is not allowed to, as `conditions.check` has it.
    """
    every, metric = [*before, *after], before[0].metric
    asked = all(one.asked for one in every)
    facts = [{**one.facts, "prompts": one.prompts(asked)} for one in every]
    conditions.hold(conditions.unlike(facts), f"{metric} of a task", allow, allowed)
    about = {"requests": "task", "attack": metric, "variant": "", "judge": metric, "event": "score"}
    return sides.paired([one.rows for one in before], [one.rows for one in after], about)


def _read(place: Path, run: load.Run) -> Task:
    path = place / UTILITY
    value: Any = read_json(path)
    try:
        rows: Values = {str(row["id"]): float(row["score"]) for row in value["rows"]}
        metric, told = str(value["metric"]), dict(value.get("asked") or {})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path} holds no scores of rows; measure the task again.") from None
    manifest = _manifest(place)
    config = manifest.config.given()
    kept = run.profile.meta.template if run.profile else run.manifest.given().get("template")
    template = told.get("template") or kept
    tokens = told.get("tokens") or config.get("utility_tokens")
    facts = {
        "template": str(template)[:8] if template else None,
        "date": str(config["date"]) if config.get("date") else None,
        "system": told.get("system") or _system(config),
        "decoding": f"temperature 0.0, max_new_tokens {tokens}" if tokens else None,
        "engine": engine(run),
        "dtype": told.get("dtype") or (run.manifest.model.dtype if run.manifest.model else None),
    }
    file = manifest.inputs.get("utility_data")
    return Task(
        str(place),
        metric,
        rows,
        {name: facts.get(name) for name in FIELDS},
        told.get("prompts"),
        str(file) if file else None,
    )


def _manifest(place: Path) -> Manifest:
    """Of the run that measured the task: measure, or the poison to which a training belongs; empty where none tells."""
    for folder in (place, place.parent):
        try:
            found = Manifest.load(folder) if (folder / Manifest.FILE).is_file() else Manifest()
        except InputError:  # of another program, in a folder above the runs
            continue
        if found.verb in ("measure", "poison"):
            return found
    return Manifest()


def _system(config: Mapping[str, Any]) -> str | None:
    """The system prompt by the options of an older run; the default of poison is that of its kind of rows."""
    told = config.get("test_system") or config.get("system")
    if told is None:
        return None
    return f"default of {config['kind']} rows" if told == "default" and config.get("kind") else system_name(str(told))
