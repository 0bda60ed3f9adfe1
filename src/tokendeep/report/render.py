"""A page as HTML, Markdown and CSV. Knows nothing of runs.

Model output, names and settings are untrusted: every value is escaped, invisible characters are spelt out, and the page
allows no script, no link to anything outside it and no image but its own.
"""

import csv
import html
import io
import re
import unicodedata
from collections.abc import Callable
from dataclasses import fields
from importlib import resources

from tokendeep.report.page import Page
from tokendeep.report.section import Cell, Csv

ACTING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # kinds of characters that are not seen


def to_html(page: Page) -> str:
    """The page: every value is neutralised, then escaped."""
    return _rendered(page, "report.html.j2", neutralise)


def to_markdown(page: Page) -> str:
    """The same findings and tables without figures, transcripts and manifests: never any prompt or answer."""
    from markupsafe import Markup

    return _rendered(page, "report.md.j2", lambda text: Markup(_md(text))).rstrip() + "\n"


def _rendered(page: Page, template: str, plain: Callable[[str], str]) -> str:
    """The page in a template of ours; `plain` makes harmless text of every value."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    source = resources.files("tokendeep").joinpath("assets", template).read_text(encoding="utf-8")
    return environment.from_string(source).render({one.name: getattr(page, one.name) for one in fields(page)})


def neutralise(text: str) -> str:
    """Spell out what is not seen but acts: control, direction, zero-width, private and unassigned characters."""
    seen = (char in "\n\t" or unicodedata.category(char) not in ACTING for char in text)
    return "".join(char if plain else f"⟨U+{ord(char):04X}⟩" for char, plain in zip(text, seen, strict=True))


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
