"""VERB report: compare run folders in one HTML file, with Markdown and CSV files beside it."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.models.options import Texts
from tokendeep.report.report import Report, read
from tokendeep.report.sections import corrected
from tokendeep.runs.files import user_path
from tokendeep.verbs.common import heading, output

what = heading("What to report")
TITLE, HEADING = b"<title>tokendeep report: ", b"# tokendeep report\n"  # what a page, and its Markdown, begin with
HEAD = 2000  # bytes in which that stands
TABLES = ("categories", "corrected", "depth", "kl", "paired", "rates", "recovery")  # that can stand beside a page


@dataclass(frozen=True)
class ReportOptions:
    """Write one self-contained HTML report (and Markdown and CSV beside it) from run folders."""

    dirs: Annotated[list[str], what(help="Folders that the other verbs wrote.", show_default=False)] = field(
        default_factory=list
    )
    calibration: Annotated[
        Texts,
        what(
            help="Files that calibrate wrote: rates of their judges are corrected by them, beside the raw ones.",
            show_default=False,
        ),
    ] = field(default_factory=list, kw_only=True)
    out: Annotated[
        str, output(help="The HTML file; a report that is there is replaced, any other file only with --overwrite.")
    ] = field(default="report.html", kw_only=True)
    show_text: Annotated[
        bool, output(help="Print prompts and answers in full instead of redacting them; they can be harmful.")
    ] = field(default=False, kw_only=True)
    overwrite: Annotated[bool, output(help="Replace a file that is there and is no report.")] = field(
        default=False, kw_only=True
    )


@dataclass(frozen=True)
class ReportPlan:
    """The runs that are compared, read and checked."""

    options: ReportOptions
    out: Path
    report: Report

    def lines(self) -> list[str]:
        numbers = [f"{run.label}: {run.verb} in {run.folder}" for run in self.report.runs]
        return [
            f"runs: {len(numbers)}",
            *(f"  {line}" for line in numbers),
            *(f"calibration: {one.judge} on {one.labels}" for one in self.report.calibrations),
            f"out: {self.out}, Markdown and CSV beside it",
        ]


def plan(options: ReportOptions) -> ReportPlan:
    """Read every run; writes nothing.

    Raises:
        InputError: no folder or one without a run, a damaged file, an --out that is no HTML file, or a calibration of
            another judge.
    """
    out = user_path(options.out)
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise InputError(f"--out is {options.out}, but must name an HTML file, for example report.html.")
    report = read(options.dirs, calibrations=options.calibration)
    corrected.check(report)
    return ReportPlan(options, out, report)


def run(plan: ReportPlan, *, show: bool = True) -> Path:
    """Write the report, Markdown and CSV files beside it; return the HTML file.

    A report can be made again from its runs, so a new one takes its place, tables that it has no more included.

    Raises:
        InputError: a file that is no report is there already.
    """
    from tokendeep.report import page, render

    out, options = plan.out, plan.options
    built = page.of(plan.report, show_text=options.show_text)
    files = {out: render.to_html(built), out.with_suffix(".md"): render.to_markdown(built)}
    files |= {out.with_name(f"{out.stem}-{name}.csv"): text for name, text in render.csv_files(built).items()}
    there = _is_page(out)
    for path in files:
        ours = there if path.suffix == ".csv" else _is_page(path)
        if os.path.lexists(path) and not (ours or options.overwrite):
            raise InputError(
                f"{path} is there already and is no report; give another --out, or --overwrite to replace it."
            )
    for path, text in files.items():
        runs.write_text(path, text, private=options.show_text and path == out)
    for name in TABLES if there else ():
        if (path := out.with_name(f"{out.stem}-{name}.csv")) not in files:
            path.unlink(missing_ok=True)
    if show:
        instead = "; it takes the place of the report that was there" if there else ""
        print(f"made: {out} (open it in a browser), Markdown and CSV files beside it{instead}")
    return out


def _is_page(path: Path) -> bool:
    """Whether a file is the page of a report, or its Markdown, of whatever runs."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    return TITLE in head or head.startswith(HEADING)
