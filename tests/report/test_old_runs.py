"""Folders that version 0.1.0 wrote, before records had a schema, give the report that it gave.

tests/fixtures/old_runs holds figures and hashes, no prompt and no answer; tests/fixtures/old_report what the report said.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tokendeep import __version__
from tokendeep.report import page, render
from tokendeep.report.page import Page

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXPECTED = FIXTURES / "old_report"


@pytest.fixture(scope="module")
def built() -> Page:
    return page.build([FIXTURES / "old_runs"])


def test_the_markdown_is_the_same_to_the_letter(built: Page) -> None:
    expected = (EXPECTED / "report.md").read_text(encoding="utf-8")
    assert render.to_markdown(built).replace(f"tokendeep {__version__}.", "tokendeep 0.1.0.") == expected


def test_the_csv_files_are_the_same_to_the_letter(built: Page) -> None:
    files = render.csv_files(built)
    assert sorted(path.stem for path in EXPECTED.glob("*.csv")) == sorted(files)
    for name, text in files.items():
        assert text == (EXPECTED / f"{name}.csv").read_text(encoding="utf-8"), name


def test_the_runs_hold_no_text() -> None:
    for path in (FIXTURES / "old_runs").rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not [key for key in ("instruction", "completion", "messages", "response") if f'"{key}":' in text], path
