"""Everything a report says, ready to render: findings at the top, sections, transcripts, manifests.

Texts of prompts and answers are in it only where they are asked for. Knows nothing of HTML or files.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokendeep import __version__, runs
from tokendeep.records import Manifest
from tokendeep.report import load, transcripts
from tokendeep.report.glance import SMALL, Glance, glances
from tokendeep.report.report import Report, read
from tokendeep.report.section import Csv, Section
from tokendeep.report.sections import FOUND_LAST, SECTIONS
from tokendeep.report.sections.runs import verb
from tokendeep.report.words import listed

NOTHING = "Nothing to conclude: no finished attack or measurement is among these folders."
NOT_COMPARABLE = (
    "No two plain or prefilled runs of these folders can be compared; the rates stand under Attacks side by side."
)


@dataclass(frozen=True)
class Page:
    """One report. `manifests` are (name, JSON); `csv` is file -> rows."""

    models: Sequence[str]
    warnings: Sequence[str]
    glances: Sequence[Glance]
    headline: Sequence[str]
    sections: Sequence[Section]
    groups: Sequence[transcripts.Group]
    manifests: Sequence[tuple[str, str]]
    csv: Mapping[str, Csv]
    show_text: bool = False
    version: str = field(default=__version__)


def build(dirs: Sequence[str | Path], *, show_text: bool = False, read_logs: load.Reader | None = None) -> Page:
    """The page on the runs in `dirs`; see `load.runs` and `of`."""
    return of(read(dirs, read_logs), show_text=show_text)


def of(report: Report, *, show_text: bool = False) -> Page:
    """Build every section once.

    Args:
        show_text: keep prompts and answers in the transcripts; without it they are never in the result.
    """
    built = {name: make(report) for name, make in SECTIONS.items()}
    for name, section in built.items():
        section.id = name
    if missing := [what for section in built.values() for what in section.missing]:
        built["runs"].text.append(f"Not among these folders: {listed(missing)}.")
    return Page(
        models=report.models,
        warnings=_warnings(report),
        glances=glances(report),
        headline=_headline(built),
        sections=[section for section in built.values() if not section.empty],
        groups=transcripts.groups(report.series, show_text),
        manifests=[(f"{run.label}, {verb(run)}", _shared(run.manifest)) for run in report.runs if run.has_manifest],
        csv=_csv(built.values()),
        show_text=show_text,
    )


def _headline(sections: Mapping[str, Section]) -> list[str]:
    """The findings of all sections, and whether they rest on few prompts."""
    names = [name for name in sections if name not in FOUND_LAST] + list(FOUND_LAST)
    lines = [line for name in names for line in sections[name].findings]
    if not lines:
        return [NOT_COMPARABLE if sections["battery"].sizes else NOTHING]
    sizes = [size for section in sections.values() for size in section.sizes if size]
    if sizes and min(sizes) < SMALL:
        lines.append(
            f"Small sample: the numbers rest on as few as {min(sizes)} prompt{'s' * (min(sizes) > 1)}; read the intervals, "
            "not the points."
        )
    return lines


def _warnings(report: Report) -> list[str]:
    labels = dict.fromkeys(run.label for run in report.runs if run.attack_checkpoint)
    return [
        f"{label} was trained on attack rows (its manifest says attack: true): never use it for anything but "
        "measuring attacks."
        for label in labels
    ]


def _csv(sections: Iterable[Section]) -> dict[str, Csv]:
    files: dict[str, Csv] = {}
    for section in sections:
        for name, table in section.csv.items():
            rows = files[name].rows if name in files else ()
            files[name] = Csv(table.columns, [*rows, *table.rows])
    return files


def _shared(manifest: Manifest) -> str:
    """A manifest as it may be shown to others: a user's system prompts by their hash."""
    config = manifest.config
    texts = {"system": config.system, "refusal_system": config.refusal_system}
    hashed = {name: runs.system_name(text) for name, text in texts.items() if text is not None}
    shown = manifest.given()
    if "config" in shown:
        shown["config"] = {**config.given(), **hashed}
    return json.dumps(shown, ensure_ascii=False, indent=1, sort_keys=True)
