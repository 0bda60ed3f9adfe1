"""A page as HTML, Markdown and CSV. Knows nothing of runs.

Model output, names and settings are untrusted: every value is escaped, invisible characters are spelt out, and the page
allows no script, no link to anything outside it and no image but its own.
"""

import csv
import io
from collections.abc import Callable
from dataclasses import fields
from importlib import resources

from tokendeep.plain import markdown, neutralise
from tokendeep.report.page import Page
from tokendeep.report.section import Cell, Csv


def to_html(page: Page) -> str:
    """The page: every value is neutralised, then escaped."""
    return _rendered(page, "report.html.j2", neutralise)


def to_markdown(page: Page) -> str:
    """The same findings and tables without figures, transcripts and manifests: never any prompt or answer."""
    from markupsafe import Markup

    return _rendered(page, "report.md.j2", lambda text: Markup(markdown(text))).rstrip() + "\n"


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
