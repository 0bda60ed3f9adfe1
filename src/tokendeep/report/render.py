"""A page as HTML, Markdown and CSV. Knows nothing of runs.

Model output, names and settings are untrusted: every value is escaped, invisible characters are spelt out, and the page
allows no script, no link to anything outside it and no image but its own.
"""

from __future__ import annotations

import csv
import html
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib import resources

from tokendeep.report.page import Page
from tokendeep.report.section import Cell, Csv, Section, Table

TEMPLATE = "assets/report.html.j2"
ACTING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # kinds of characters that are not seen


def to_html(page: Page) -> str:
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
    source = resources.files("tokendeep").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render({one.name: getattr(page, one.name) for one in fields(page)})


def neutralise(text: str) -> str:
    """Spell out what is not seen but acts: control, direction, zero-width, private and unassigned characters."""
    seen = (char in "\n\t" or unicodedata.category(char) not in ACTING for char in text)
    return "".join(char if plain else f"⟨U+{ord(char):04X}⟩" for char, plain in zip(text, seen, strict=True))


def to_markdown(page: Page) -> str:
    """The same findings and tables without figures, transcripts and manifests: never any prompt or answer."""
    lines = ["# tokendeep report", "", f"tokendeep {page.version}. Models: {_md(', '.join(page.models))}.", ""]
    lines += [f"> **Attack checkpoint:** {_md(warning)}\n" for warning in page.warnings]
    if page.glances:
        told = (f"- **{_md(one.model)}.** {_md(f'{one.found} {one.sure} Next: {one.next}')}" for one in page.glances)
        lines += ["## At a glance", "", *told, ""]
    lines += ["## Findings", "", *(f"- {_md(line)}" for line in page.headline), ""]
    lines += [line for section in page.sections for line in _section(section)]
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {_md(section.title)}", "")
    for text in section.text:
        yield from (_md(text), "")
    for figure in section.figures:
        yield from (f"*Figure in the HTML report:* {_md(figure.alt)}", "")
    for table in section.tables:
        yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    yield from (f"**{_md(table.caption)}**", "", _row(table.columns), "|---" * len(table.columns) + "|")
    yield from (*map(_row, table.rows), "")
    if table.note:
        yield from (_md(table.note), "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_md, cells)) + " |"


def _md(text: str) -> str:
    """Plain text as Markdown: nothing in it is markup, HTML, a link or a new line."""
    one_line = " ".join(html.escape(neutralise(text), quote=False).split())
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", one_line)


def csv_files(page: Page) -> dict[str, str]:
    """Name -> the text of a CSV file."""
    return {name: to_csv(table) for name, table in page.csv.items()}


def to_csv(table: Csv) -> str:
    """CSV text. A text that a spreadsheet would run as a formula gets a quote mark in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_cell(cell) for cell in row] for row in table.rows)
    return buffer.getvalue()


def _cell(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    text = neutralise(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text
