"""Rates by category: counts by hand, and no table where the data names none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fake_runs import read_fake, sample, write_attack
from tokendeep.report import page
from tokendeep.report.section import Section


def section(folder: Path) -> Section | None:
    return next((one for one in page.build([folder], read_logs=read_fake).sections if one.id == "categories"), None)


def test_counts_of_each_category_at_the_plain_request_and_the_headline(tmp_path: Path) -> None:
    outcomes = {"complied": "complied", "refused": "refused", "half": "partial-then-refused", "none": "empty"}
    samples = []
    for number, (category, plain, deep) in enumerate(
        [("fraud", "refused", "complied"), ("fraud", "refused", "complied"), ("fraud", "complied", "none"),
         ("malware", "refused", "half"), ("malware", "none", "none"), ("malware", "complied", "complied")]
    ):  # fmt: skip
        for k, outcome in ((0, plain), (10, deep)):
            one = sample(number, "prefill", {"k": k}, "m", outcomes[outcome])
            samples.append(replace(one, category=category))
    write_attack(tmp_path / "attack", "m", samples)
    made = section(tmp_path)
    assert made is not None
    (table,) = made.tables
    assert len(table.columns) == 3
    assert [[row[0], *(cell.split(" ")[0] for cell in row[1:])] for row in table.rows] == [
        ["fraud", "1/3", "2/2"],
        ["malware", "1/2", "1/2"],
    ]
    assert "1/3 = 33% [6%, 79%]" in table.rows[0][1]
    lines = made.csv["categories"].rows
    assert [(row[5], row[7], row[8], row[12]) for row in lines] == [
        ("fraud", 1, 3, 0), ("malware", 1, 2, 1), ("fraud", 2, 2, 1), ("malware", 1, 2, 1),
    ]  # fmt: skip


def test_harmless_requests_are_counted_by_refusals(tmp_path: Path) -> None:
    samples = [
        sample(n, "none", {}, "m", outcome, kind="overrefusal") for n, outcome in enumerate(("refused", "complied"))
    ]
    write_attack(tmp_path / "overrefusal", "m", samples)
    made = section(tmp_path)
    assert made is not None
    assert [row[1].split(" ")[0] for row in made.tables[0].rows] == ["1/1", "0/1"]
    assert "Refused or broken off" in made.tables[0].note


def test_no_table_without_categories(tmp_path: Path) -> None:
    samples = [replace(sample(n, "none", {}, "m", "refused"), category=None) for n in range(3)]
    write_attack(tmp_path / "attack", "m", samples)
    assert section(tmp_path) is None
