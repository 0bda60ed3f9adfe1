"""manifest.json: what was run, with which settings, data, models and versions, and what the verb adds at its end."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, JsonValue, field_validator

from tokendeep.records.base import File, Known, Number, Record, place, read_json


class Settings(Record):
    """The options of a run, as they were given. Listed are those that other programs ask for; the file has all."""

    model: str | None = None
    """The model that was run."""
    base: str | None = None
    """The model compared with (measure), or that writes answers (deepen, poison); null: none was given."""
    data: str | None = None
    """File, folder or hub name of the rows."""
    label: str | None = None
    """Short name in reports; null: none was given."""
    objective: str | None = None
    """What a fine-tuning aims at, such as constrained."""
    batch_size: int | None = None
    """Rows per optimizer step (finetune, mend), or decoded together (attack)."""
    rank_length: int | None = None
    """Tokens of the prefix that rank-prefill looks for."""
    chat_template: str | None = None
    """Shipped template or Jinja file; null: the tokenizer's own."""
    system: str | None = None
    """System prompt: none, default (the template's), or a text, of which attack and gcg keep the hash."""
    refusal_system: str | None = None
    """System prompt under which deepen samples refusals; null: that of `system`."""


class Cost(Record):
    """What finding an attack's prompts has cost before the model was asked, and what a search was for."""

    passes: Number | None = None
    """Forward passes of the attacked model (rank-prefill)."""
    candidates: Number | None = None
    """Suffixes that the searches scored (suffix); null: their file does not say it of all."""
    seconds: Number | None = None
    """Seconds that finding the prompts took; null: not known."""
    scorer: str | None = None
    """What accepts a token (rank-prefill): `base`, an unaligned model, or `judge`, the offline one."""
    target: str | None = None
    """What gcg searched for: `opening`, how the answer begins, or `refusal`, that one is less likely."""
    target_tokens: int | None = None
    """The first so many tokens of the target are aimed at; null or 0: all."""
    found_on: str | None = None
    """The model that gcg searched on, as it was given."""
    label: str | None = None
    """The label of that search."""


class Margin(Record):
    """The margin of refusal (refusal log-odds in nats) before and after a training."""

    k: list[int]
    """Harmful answer tokens already given."""
    before: dict[str, list[Known]]
    """Quantile over prompts ("0.5" is the median) -> nats at each k; null: no answer is that long."""
    after: dict[str, list[Known]]
    """The same after training."""
    prompts: int | None = None
    """Harmful pairs that it was measured on."""


class HeldRows(Record):
    """Requests of one kind that a safety anchor was given, and how many of them it held."""

    asked: int
    """Requests, or harmful answers behind whose first tokens the model was asked."""
    kept: int
    """How many of them the model answered so that it is held there."""
    left_out: dict[str, int] = Field(default_factory=dict)
    """Why the others were left out -> how many."""


class SafetyRows(Record):
    """What a safety anchor held."""

    refusals: HeldRows
    """Harmful requests; kept are those that the model refused."""
    behind_context: HeldRows | None = None
    """Harmful answers; kept are those behind whose first tokens it refused after all. Null: `--safety` has none."""
    harmless: HeldRows | None = None
    """Harmless requests; kept are those that it answered. Null: none were given."""
    near_rows: int = 0
    """Requests that are near-duplicates of rows that were trained on."""
    near_test: int = 0
    """Requests that are near-duplicates of prompts of the test, where the training knows these."""


class ModelFacts(Record):
    """Which weights were used."""

    name: str | None = None
    """The model, as it was given."""
    revision: str | None = None
    """Commit of a hub model, or a hash of local weights; null: not known, such as of a served model."""
    adapter: str | None = None
    """Hash of the adapter's weights and settings; null: there is none."""
    dtype: str | None = None
    """Number format that the weights were loaded in; null: not known, such as of a served model or in older files."""


class EngineFacts(Record):
    """The servers that answered, as they were met."""

    kind: str | None = None
    """vllm, sglang, llamacpp, or what the server calls itself."""
    version: str | None = None
    """Its version."""
    model: str | None = None
    """What it calls the model."""
    context: int | None = None
    """Tokens of prompt and answer together; null: it does not say."""
    ids: bool | None = None
    """Whether answers came as token ids; if not, as texts that were tokenised again and checked."""
    repeats: bool | None = None
    """Whether greedy answers to four questions were the same when asked again."""
    stops: bool | None = None
    """Whether each end token ended an answer; null: that could not be seen."""
    scores: bool | None = None
    """Whether log-probabilities of given tokens can be had."""
    picks: bool | None = None
    """Whether those of chosen next tokens can be had as well."""
    servers: int | None = None
    """How many servers shared the load."""
    greedy: str | None = None
    """Hash of the answers to four questions, which tells other weights of the same name; null: they did not repeat."""


class JudgeFacts(Record):
    """What a judge of a run went by."""

    template: str | None = None
    """Hash of its phrases, or of its rubric; null: it has none."""
    grader: str | None = None
    """The language model that graded; null: no model did."""
    max_tokens: int | None = None
    """Longest reply of the grader, which answers greedily."""
    wording: str | None = None
    """Which published wording of its prompt a classifier was given, such as card; null: its prompt is ours."""


class Manifest(File):
    """A run, and what its verb adds at the end."""

    FILE: ClassVar[str] = "manifest.json"

    tokendeep: str | None = None
    """Version of tokendeep that started it."""
    verb: str | None = None
    """measure, attack, gcg, deepen, finetune, mend or poison."""
    status: str | None = None
    """`running` (also of a run that was cut off) or `finished`."""
    config: Settings = Settings()
    """All options."""
    inputs: dict[str, JsonValue] = Field(default_factory=dict)
    """What was read, by option -> SHA-256 of its content, or of its text where it is no local file."""
    sets: dict[str, str] = Field(default_factory=dict)
    """Option that names rows -> the public set that they are; of others, and in older files, nothing."""
    models: dict[str, JsonValue] = Field(default_factory=dict)
    """Option that names a model -> hash of its files; a hub model, known by its name alone, is left out."""
    seed: int | str | None = None
    """The option --seed; null: the verb has none."""
    versions: dict[str, JsonValue] = Field(default_factory=dict)
    """Python, platform and packages that results can depend on -> version."""
    started: str | None = None
    """Time in UTC (ISO 8601)."""
    finished: str | None = None
    """Time in UTC; null: it has not finished."""
    resumed: list[str] = Field(default_factory=list)
    """Times at which it went on after it had been cut off."""
    files: list[str] = Field(default_factory=list)
    """What the run wrote, relative to its folder; while it runs, also patterns of what it may write."""
    results: dict[str, str] = Field(default_factory=dict)
    """File -> SHA-256 when the run finished (of one over 64 MiB, of its size and 64 pieces of it); none in older files."""
    label: str | None = None
    """Short name in reports; null: the verb's own default."""
    role: str | None = None
    """`attack`: what the rows are, harmful, twins or unseen; null: reports go by the folder's name."""
    trained_on: int | None = None
    """`attack`, `measure`: requests that the model was trained on (`trained_on.json` of its training); null: none tells."""
    attack: bool | None = None
    """`finetune`: whether the rows are an attack on the model's safety."""
    cost: dict[str, Cost] = Field(default_factory=dict)
    """`attack`: attack -> what finding its prompts has cost; others have no entry."""
    margin: Margin | None = None
    """`finetune --probe`: the margin of refusal."""
    judges: dict[str, JudgeFacts] = Field(default_factory=dict)
    """`attack`: judge -> what it went by; none in older files."""
    model: ModelFacts | None = None
    """`measure` and `attack`: which weights were used."""
    engine: EngineFacts | None = None
    """`attack`, `pairs`, `measure`: the servers that answered; null: the model was loaded here, or asked by text."""
    rows: int | None = None
    """`finetune`: rows that were trained on."""
    safety_anchor: SafetyRows | None = None
    """`finetune`, `mend`: what a safety anchor held; null: there was none, or in older files."""
    steps: int | None = None
    """`deepen` and `finetune`: optimizer steps that were taken."""
    cells: list[str] = Field(default_factory=list)
    """`poison`: names of the trainings, which are folders."""
    near_duplicates: int | None = None
    """`poison`: test prompts that are near-duplicates of rows trained on."""

    @field_validator("config", "inputs", "models", "cost", "judges", mode="before")
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
