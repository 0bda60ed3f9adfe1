"""VERB report: compare run folders in one HTML file, with Markdown and CSV files beside it."""

from __future__ import annotations

from pathlib import Path

from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.verbs.options import ReportConfig


def run(config: ReportConfig, *, show: bool = True) -> Path:
    """Write the report of `config.dirs` to `config.out`, Markdown and CSV files beside it; return the HTML file.

    Raises:
        InputError: no folder or one without a run, a damaged file, an --out that is no HTML file, or another report
            there already.
    """
    from tokendeep.report import page, render

    out = Path(config.out).expanduser()
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise InputError(f"--out is {config.out}, but must name an HTML file, for example report.html.")
    built = page.build(config.dirs, show_text=config.show_text)
    files = {out: render.to_html(built), out.with_suffix(".md"): render.to_markdown(built)}
    files |= {out.with_name(f"{out.stem}-{name}.csv"): text for name, text in render.csv_files(built).items()}
    for path, text in files.items():
        if path.exists() and not config.overwrite and not _holds(path, text):
            raise InputError(f"{path} exists already; give another --out, or --overwrite to replace it.")
    for path, text in files.items():
        runs.write_text(path, text, private=config.show_text and path == out)
    if show:
        print(f"report: {out}")
    return out


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
