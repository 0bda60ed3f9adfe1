"""VERB report: compare run folders in one HTML file, with Markdown and CSV files beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.report.report import Report, read
from tokendeep.runs.files import user_path
from tokendeep.verbs.common import heading, output

what = heading("What to report")


@dataclass(frozen=True)
class ReportOptions:
    """Write one self-contained HTML report (and Markdown and CSV beside it) from run folders."""

    dirs: Annotated[list[str], what(help="Folders that the other verbs wrote.", show_default=False)] = field(
        default_factory=list
    )
    out: Annotated[str, output(help="The HTML file.")] = field(default="report.html", kw_only=True)
    show_text: Annotated[
        bool, output(help="Print prompts and answers in full instead of redacting them; they can be harmful.")
    ] = field(default=False, kw_only=True)
    overwrite: Annotated[bool, output(help="Replace an existing report.")] = field(default=False, kw_only=True)


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
            f"out: {self.out}, Markdown and CSV beside it",
        ]


def plan(options: ReportOptions) -> ReportPlan:
    """Read every run; writes nothing.

    Raises:
        InputError: no folder or one without a run, a damaged file, or an --out that is no HTML file.
    """
    out = user_path(options.out)
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise InputError(f"--out is {options.out}, but must name an HTML file, for example report.html.")
    return ReportPlan(options, out, read(options.dirs))


def run(plan: ReportPlan, *, show: bool = True) -> Path:
    """Write the report, Markdown and CSV files beside it; return the HTML file.

    Raises:
        InputError: another report is there already.
    """
    from tokendeep.report import page, render

    out, options = plan.out, plan.options
    built = page.of(plan.report, show_text=options.show_text)
    files = {out: render.to_html(built), out.with_suffix(".md"): render.to_markdown(built)}
    files |= {out.with_name(f"{out.stem}-{name}.csv"): text for name, text in render.csv_files(built).items()}
    for path, text in files.items():
        same = path.is_file() and path.read_bytes() == text.encode()
        if path.exists() and not options.overwrite and not same:
            raise InputError(f"{path} exists already; give another --out, or --overwrite to replace it.")
    for path, text in files.items():
        runs.write_text(path, text, private=options.show_text and path == out)
    if show:
        print(f"made: {out} (open it in a browser), Markdown and CSV files beside it")
    return out
