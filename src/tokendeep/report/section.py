"""The pieces of a report. Knows nothing of what they say or how they are rendered."""

from collections.abc import Sequence
from dataclasses import dataclass, field

PHONE = 44  # letters side by side
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Cells are text, ready to show; the first column names the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def wide(self) -> bool:
        """Whether it is wider than a phone, by a rough count of letters: long cells wrap."""
        columns = zip(self.columns, *self.rows, strict=True)
        return sum(min(24, max(map(len, column))) for column in columns) > PHONE


@dataclass(frozen=True)
class Csv:
    """Unrounded numbers for other programs."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """An image as a data URI of our own making, with words for those who do not see it."""

    uri: str
    alt: str
    caption: str


@dataclass
class Section:
    """A heading with its text, figures and tables, shown in this order, and what it adds to the rest of the report.

    Args:
        findings: lines for the top of the report, in numbers and plain words.
        sizes: how many prompts each of its numbers rests on.
        csv: name of a file -> its rows; two sections can add to one file.
        missing: what it would show and no folder holds; said once, in one line.
    """

    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    csv: dict[str, Csv] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    id: str = ""  # its name in SECTIONS

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.text or self.figures or self.tables)
