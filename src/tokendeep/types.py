"""The frozen values that cross a module or a disk boundary.

Knows nothing of torch, files or models; everything else imports from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORE = -100  # the label of a token that is not supervised, as in PyTorch's cross-entropy


class Message(TypedDict):
    """One chat turn, in the shape every Hugging Face chat template takes; `weight` 0: an answer that is not trained on."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[Any]]
    tool_call_id: NotRequired[str]
    weight: NotRequired[int]


@dataclass(frozen=True)
class Decoding:
    """How to pick tokens. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 mean no cut."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    seed: int = 0


GREEDY = Decoding()


@dataclass(frozen=True)
class Prompt:
    """One request to a model: every inference-time attack maps a list of these to another list.

    `prefix_ids` are spliced after the generation prompt as token ids; `prefix_text` is the same
    prefix as text, for providers that continue a final assistant message. `meta` holds
    `prompt_id` (the row it came from), `attack`, `params` and, where known, `category`.
    """

    id: str
    messages: tuple[Message, ...]
    prefix_ids: tuple[int, ...] = ()
    prefix_text: str = ""
    decoding: Decoding = GREEDY
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """An instruction and an answer to score or to take prefills from."""

    id: str
    messages: tuple[Message, ...]
    response: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Triple:
    """An instruction, a harmful answer to it and the refusal that should follow instead."""

    id: str
    messages: tuple[Message, ...]
    harmful: str
    refusal: str


@dataclass(frozen=True)
class Chat:
    """A conversation whose last message is the assistant's; `truncated` where that answer was cut off.

    `arguments` are what its row gives to the chat template: `tools`, and whatever `chat_template_kwargs` holds.
    """

    id: str
    messages: tuple[Message, ...]
    truncated: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """A tokenised row. `labels[i]` is `input_ids[i]` where supervised and IGNORE elsewhere."""

    input_ids: list[int]
    labels: list[int]

    @property
    def start(self) -> int:
        """Index of the first supervised token."""
        return next(i for i, label in enumerate(self.labels) if label != IGNORE)


@dataclass(frozen=True)
class Subject:
    """A loaded model with its tokenizer and where both came from."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str
    revision: str | None = None
    adapter: str | None = None

    @property
    def dtype(self) -> str | None:
        """The number format of the weights, such as bfloat16; None where they are elsewhere."""
        return str(self.model.dtype).removeprefix("torch.") if self.model is not None else None

    @property
    def facts(self) -> dict[str, str | None]:
        """Which weights these are, as manifests keep it."""
        return {"name": self.name, "revision": self.revision, "adapter": self.adapter, "dtype": self.dtype}


@dataclass(frozen=True)
class Sample:
    """One judged completion as read back from an evaluation log."""

    id: str
    prompt_id: str
    attack: str
    params: Mapping[str, Any]
    judge: str
    model: str
    outcome: str  # one of judges.OUTCOMES
    truncated: bool
    seed: int
    instruction: str
    prefix: str
    completion: str
    category: str | None = None
    role: str | None = None  # what the rows are, where the evaluation was told
    score: float | None = None  # on the judge's own scale
    tokens: int = 0  # that the model wrote
    seconds: float | None = None  # its share of the model's time; None where a server does not say
    checks: tuple[tuple[int, bool], ...] | None = (
        None  # by a defence: answer tokens before it, whether it stopped there
    )
    clipped: bool | None = None  # whether the judge saw a part alone; None for one that cuts no answer
