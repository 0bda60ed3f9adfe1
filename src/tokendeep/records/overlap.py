"""overlap.json: requests that two data files share, or nearly share, by ids and hashes. Holds no text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tokendeep.records.base import File, Record
from tokendeep.records.rates import frame

if TYPE_CHECKING:
    import pandas as pd


class Side(Record):
    """One of the two data files."""

    name: str
    """The name of the file, without its folder."""
    data: str
    """Hash of the data."""
    rows: int
    """Rows in it."""
    exact: int
    """Rows of which a request stands in the other file word for word."""
    near: int
    """Rows of which a request has a near-duplicate there, and none word for word."""


class Shared(Record):
    """A row of each file that share a request; of several, the most similar ones."""

    first_row: int
    """Its place in the first file, from 1."""
    first_id: str
    """Its id there."""
    first_hash: str
    """SHA-256 of the request, without spaces at its ends."""
    second_row: int
    """The place of the other in the second file."""
    second_id: str
    """Its id there."""
    second_hash: str
    """Hash of its request."""
    similarity: float
    """Shared share of all pairs of neighbouring words (Jaccard), without case and punctuation."""
    exact: bool
    """Whether they are the same word for word."""


class Overlap(File):
    """What two data files share."""

    FILE: ClassVar[str] = "overlap.json"

    first: Side
    """The first file."""
    second: Side
    """The second file."""
    threshold: float
    """Least similarity of near-duplicates."""
    pairs: list[Shared]
    """Every pair of rows that share a request."""

    def to_frame(self) -> pd.DataFrame:
        """A line for each pair."""
        return frame(pair.given() for pair in self.pairs)
