"""parity.json: how far two engines give the same answers and scores to the same token ids. Holds no text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tokendeep.records.base import File, Record
from tokendeep.records.manifest import EngineFacts
from tokendeep.records.rates import frame

if TYPE_CHECKING:
    import pandas as pd


class ParityRow(Record):
    """One request, asked of both engines greedily."""

    id: str
    """The row of the data."""
    k: int
    """Answer tokens that were given."""
    tokens: int
    """Tokens of the first engine's answer."""
    differs_at: int | None
    """Place of the first token that differs, from 1; null: the answers are the same."""
    gap: float | None
    """Nats by which the first engine's token is more likely there than the second's, as an engine that scores has it; null:
    the answers are the same, one ends there, or neither scores."""
    score_difference: float | None
    """Largest absolute difference, in nats, of the log-probabilities of the same tokens; null: one engine does not score."""


class Parity(File):
    """Two engines on the same requests."""

    FILE: ClassVar[str] = "parity.json"

    engines: list[str]
    """The first and the second: local, or what kind of server."""
    servers: list[EngineFacts | None]
    """What the handshake found out of each; null for the local one."""
    rows: list[ParityRow]
    """Every request."""
    same: int
    """Requests with the same answer, token for token."""
    scored: int
    """Tokens that both engines scored."""
    mean_difference: float | None
    """Mean absolute difference of their log-probabilities, in nats; null: one engine does not score."""
    largest_difference: float | None
    """The largest one."""

    def to_frame(self) -> pd.DataFrame:
        """A line for each request."""
        return frame(row.given() for row in self.rows)
