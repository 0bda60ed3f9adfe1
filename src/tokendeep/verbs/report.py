"""VERB report: run folders -> one self-contained HTML file, with Markdown and CSV files beside it.

What the report says is made in `reporting`; here it is rendered and written. Names, ids and texts come from outside and
from models: all of them are escaped, control and direction characters are spelt out, and the page allows no script,
no link to anything outside it and no image but its own.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tokendeep import __version__, runs
from tokendeep.errors import InputError
from tokendeep.report import csvs, findings, gather, transcripts
from tokendeep.verbs.options import ReportConfig

SYSTEMS = ("system", "refusal_system")  # settings that can hold a text of the user's


def run(config: ReportConfig, *, show: bool = True) -> Path:
    """Write the report of `config.dirs` to `config.out`, Markdown and CSV files beside it; return the HTML file.

    Raises:
        InputError: no folder or one without a run, a damaged file, an --out that is no HTML file, or another report
            there already.
    """
    out = Path(config.out).expanduser()
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise InputError(f"--out is {config.out}, but must name an HTML file, for example report.html.")
    context = build(config.dirs, show_text=config.show_text)
    files = {out: to_html(context), out.with_suffix(".md"): to_markdown(context)}
    files |= {out.with_name(f"{out.stem}-{name}.csv"): to_csv(*table) for name, table in context["csv"].items()}
    for path, text in files.items():
        if path.exists() and not config.overwrite and not _holds(path, text):
            raise InputError(f"{path} exists already; give another --out, or --overwrite to replace it.")
    for path, text in files.items():
        runs.write_text(path, text, private=config.show_text and path == out)
    if show:
        print(f"report: {out}")
    return out


def build(dirs: Sequence[str | Path], *, show_text: bool = False, read: gather.Reader | None = None) -> dict[str, Any]:
    """Everything the report says, ready to render.

    Args:
        show_text: keep prompts and answers in the transcripts; without it they are never in the result.
        read: reads the judged samples of a folder; the default reads Inspect logs.

    Raises:
        InputError: see `run`.
    """
    found, foreign = gather.runs(dirs, read), gather.foreign(dirs)
    series = gather.series(found)
    return {
        "version": __version__,
        "models": list(dict.fromkeys(run.label for run in found)),
        "warnings": [
            f"{label} was trained on attack rows (its manifest says attack: true): never use it for anything but "
            "measuring attacks."
            for label in dict.fromkeys(run.label for run in found if run.attack_checkpoint)
        ],
        "headline": findings.headline(found, series),
        "sections": findings.sections(found, series, foreign),
        "show_text": show_text,
        "groups": transcripts.groups(series, show_text),
        "manifests": [
            (
                f"{run.label}, {findings.verb(run)}",
                json.dumps(_shared(run.manifest), ensure_ascii=False, indent=1, sort_keys=True),
            )
            for run in found
            if run.manifest
        ],
        "csv": csvs.tables(found, series),
    }


def _shared(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest as it may be shown to others: a user's system prompts by their hash."""
    config = manifest.get("config")
    texts = {name: text for name in SYSTEMS if isinstance(config, dict) and isinstance(text := config.get(name), str)}
    hashed = {name: runs.system_name(text) for name, text in texts.items()}
    return {**manifest, "config": {**config, **hashed}} if isinstance(config, dict) else dict(manifest)


def neutralise(text: str) -> str:
    """Spell out what is not seen but acts: control, direction, zero-width, private and unassigned characters."""
    return "".join(char if char in "\n\t" or not _acts(char) else f"⟨U+{ord(char):04X}⟩" for char in text)


def _acts(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def to_html(context: Mapping[str, Any]) -> str:
    """The page: every value is neutralised, then escaped."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: neutralise(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    source = resources.files("tokendeep").joinpath("assets/report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(context)


def to_markdown(context: Mapping[str, Any]) -> str:
    """The same findings and tables without figures, transcripts and manifests: never any prompt or answer."""
    lines = [
        "# tokendeep report",
        "",
        f"tokendeep {context['version']}. Models: {_md(', '.join(context['models']))}.",
        "",
    ]
    lines += [f"> **Attack checkpoint:** {_md(warning)}\n" for warning in context["warnings"]]
    lines += ["## Findings", "", *(f"- {_md(line)}" for line in context["headline"]), ""]
    for section in context["sections"]:
        lines += [f"## {_md(section.title)}", ""]
        lines += [line for text in section.text for line in (_md(text), "")]
        lines += [
            line for figure in section.figures for line in (f"*Figure in the HTML report:* {_md(figure.alt)}", "")
        ]
        for table in section.tables:
            lines += [f"**{_md(table.caption)}**", "", _md_row(table.columns), "|---" * len(table.columns) + "|"]
            lines += [*map(_md_row, table.rows), ""]
            lines += [_md(table.note), ""] if table.note else []
    return "\n".join(lines).rstrip() + "\n"


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


def _md(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup, HTML, a link or a new line."""
    one_line = " ".join(html.escape(neutralise(text), quote=False).split())
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", one_line)


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """CSV text. A text that a spreadsheet would run as a formula gets a quote mark in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _csv_cell(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = neutralise(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
