"""parity.json: how far two engines give the same answers and scores to the same token ids. Holds no text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tokendeep.records.base import File, Record
from tokendeep.records.manifest import EngineFacts
from tokendeep.records.rates import frame

if TYPE_CHECKING:
    import pandas as pd


NEAR = 0.1  # nats between two tokens: a choice of ours for what rounding (in bfloat16) may turn round


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

    @property
    def alike(self) -> bool:
        """Whether the answers are the same, or part at a token that rounding can turn round."""
        return self.differs_at is None or (self.gap is not None and abs(self.gap) <= NEAR)


class Parity(File):
    """Two engines on the same requests."""

    FILE: ClassVar[str] = "parity.json"

    engines: list[str]
    """The first and the second: local, or what kind of server."""
    servers: list[EngineFacts | None]
    """What the handshake found out of each; null for the local one."""
    model: str | None = None
    """The model, as it was given; null in older files."""
    identity: str | None = None
    """Hash of its files; null: it is a hub model, known by its name, or was in memory."""
    revision: str | None = None
    """Commit of a hub model, or a hash of local weights, that were loaded here; null: none were, or an older file."""
    dtype: str | None = None
    """Number format that they were loaded in; null: likewise."""
    template: str | None = None
    """Hash of its chat template."""
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

    @property
    def alike(self) -> bool:
        """Whether no answer differs beyond rounding, nor any log-probability that both tell."""
        near = self.largest_difference is None or self.largest_difference <= NEAR
        return bool(self.rows) and near and all(row.alike for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """A line for each request."""
        return frame(row.given() for row in self.rows)
