"""Section: how likely the models find ordinary texts, which a defence should leave as it is."""

import math

from tokendeep.report.names import file_name
from tokendeep.report.report import Measured, Report
from tokendeep.report.section import Csv, Section, Table

COLUMNS = ("model", "texts (hash)", "texts", "tokens", "nats a token [95%]", "perplexity [95%]", "nats a byte")
HEADS = (
    "model",
    "texts",
    "hash",
    "n",
    "tokens",
    "nll",
    "low",
    "high",
    "perplexity",
    "nats_per_byte",
    "window",
    "stride",
)
WHAT = (
    "Perplexity is exp of the mean nats a token; the interval is a bootstrap over texts. Compare it between models of one "
    "tokenizer, on the same texts with the same window; nats a byte can be compared between tokenizers."
)


def build(report: Report) -> Section:
    """A line for each measurement with texts; nothing where there was none."""
    section = Section("Perplexity")
    measured = [one for one in report.measured if one.profile.perplexity is not None]
    if measured:
        section.text.append(WHAT)
        section.tables.append(Table("Perplexity", COLUMNS, [_row(one) for one in measured]))
        section.csv["perplexity"] = Csv(HEADS, [_cells(one) for one in measured])
    return section


def _texts(one: Measured) -> tuple[str, str]:
    """The file of the texts, and the first signs of its hash."""
    given, digest = one.run.config.given().get("text"), one.run.manifest.inputs.get("text")
    return file_name(str(given or "")), str(digest or "")[:8]


def _row(one: Measured) -> list[str]:
    found, (file, digest) = one.profile.perplexity, _texts(one)
    assert found is not None
    low, high = found.low, found.high
    known = low is not None and high is not None
    return [
        one.name, f"{file} ({digest})", str(found.texts), str(found.tokens),
        f"{found.nll:.3f}" + (f" [{low:.3f}, {high:.3f}]" if known else ""),
        f"{found.perplexity:.2f}" + (f" [{math.exp(low or 0):.2f}, {math.exp(high or 0):.2f}]" if known else ""),
        f"{found.per_byte:.3f}",
    ]  # fmt: skip


def _cells(one: Measured) -> list[str | int | float | None]:
    found = one.profile.perplexity
    assert found is not None
    return [one.name, *_texts(one), found.texts, found.tokens, found.nll, found.low, found.high, found.perplexity,
            found.per_byte, found.window, found.stride]  # fmt: skip
