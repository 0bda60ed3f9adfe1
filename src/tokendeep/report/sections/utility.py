"""Section: ordinary use, which a defence should leave as it is: how well a task is done, how likely texts are."""

import math

from tokendeep.report.names import file_name
from tokendeep.report.report import Measured, Report
from tokendeep.report.section import Csv, Section, Table
from tokendeep.report.words import number

TASK = ("model", "rows (hash)", "metric", "rows", "score [95%]", "exact", "executed", "cut off")
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
    """A table of tasks and one of texts, a line for each measurement; nothing where there was none."""
    section = Section("Ordinary use")
    if tasks := [_task(one) for one in report.measured if one.profile.utility is not None]:
        section.tables.append(Table("Utility", TASK, tasks, "Greedy answers; the interval is a bootstrap over rows."))
    measured = [one for one in report.measured if one.profile.perplexity is not None]
    if measured:
        section.text.append(WHAT)
        section.tables.append(Table("Perplexity", COLUMNS, [_row(one) for one in measured]))
        section.csv["perplexity"] = Csv(HEADS, [_cells(one) for one in measured])
    return section


def _file(one: Measured, option: str = "text") -> tuple[str, str]:
    """The file that an option names, and the first signs of its hash."""
    given, digest = one.run.config.given().get(option), one.run.manifest.inputs.get(option)
    return file_name(str(given or "")), str(digest or "")[:8]


def _task(one: Measured) -> list[str]:
    found, (file, digest) = one.profile.utility, _file(one, "utility_data")
    assert found is not None
    ends = "" if found.low is None or found.high is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return [one.name, f"{file} ({digest})", found.metric or "-", number(found.n, 0), f"{number(found.score, 3)}{ends}",
            number(found.exact), number(found.executed), number(found.truncated, 0)]  # fmt: skip


def _row(one: Measured) -> list[str]:
    found, (file, digest) = one.profile.perplexity, _file(one)
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
    return [one.name, *_file(one), found.texts, found.tokens, found.nll, found.low, found.high, found.perplexity,
            found.per_byte, found.window, found.stride]  # fmt: skip
