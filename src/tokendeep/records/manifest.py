"""manifest.json: what was run, with which settings, data, models and versions, and what the verb adds at its end."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, JsonValue, field_validator

from tokendeep.records.base import File, Known, Number, Record, place, read_json


class Settings(Record):
    """The settings of a run that other programs ask for; all others are kept as they are."""

    model: str | None = None
    base: str | None = None
    data: str | None = None
    label: str | None = None
    objective: str | None = None
    rank_length: int | None = None
    chat_template: str | None = None
    system: str | None = None
    refusal_system: str | None = None


class Cost(Record):
    """What finding an attack's prompts has cost before the model was asked, and what a search was for.

    `passes` are forward passes of the model, `candidates` suffixes that were tried, `seconds` the model's time.
    """

    passes: Number | None = None
    candidates: Number | None = None
    seconds: Number | None = None
    scorer: str | None = None  # of rank-prefill: whose likelihoods choose the tokens
    target: str | None = None  # of gcg
    target_tokens: int | None = None  # None or 0: all
    found_on: str | None = None
    label: str | None = None


class Margin(Record):
    """The margin of refusal before and after a training: quantile -> nats at each k."""

    k: list[int]
    before: dict[str, list[Known]]
    after: dict[str, list[Known]]
    prompts: int | None = None


class ModelFacts(Record):
    """Which weights were used."""

    name: str | None = None
    revision: str | None = None
    adapter: str | None = None


class Manifest(File):
    """A run. `status` is running or finished; `attack` says that the model was trained on attack rows."""

    FILE: ClassVar[str] = "manifest.json"

    tokendeep: str | None = None
    verb: str | None = None
    status: str | None = None
    config: Settings = Settings()
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    models: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int | str | None = None
    versions: dict[str, JsonValue] = Field(default_factory=dict)
    started: str | None = None
    finished: str | None = None
    resumed: list[str] = Field(default_factory=list)
    files: list[str] = Field(default_factory=list)
    label: str | None = None
    role: str | None = None
    attack: bool | None = None
    cost: dict[str, Cost] = Field(default_factory=dict)
    margin: Margin | None = None
    model: ModelFacts | None = None
    rows: int | None = None
    steps: int | None = None
    cells: list[str] = Field(default_factory=list)
    near_duplicates: int | None = None

    @field_validator("config", "inputs", "models", "cost", mode="before")
    @classmethod
    def _nothing(cls, value: object) -> object:
        return {} if value is None else value

    @property
    def data_hash(self) -> str | None:
        """The hash of the data file."""
        found = self.inputs.get("data")
        return found if isinstance(found, str) else None

    @staticmethod
    def trained_on_attack(path: str | Path) -> bool:
        """Whether the manifest at `path`, in a checkpoint or above it, says so; one that is not ours does not."""
        value = read_json(place(path, Manifest.FILE))
        return isinstance(value, dict) and value.get("attack") is True
