"""The Inspect AI model provider `tokendeep-classifier`: a sequence classifier as the model that a judge asks.

It is given an answer, and says how likely the label is that the judge goes by, and how likely the likeliest other one.
Answers that wait are read together. Importing it loads no torch.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio.to_thread
from inspect_ai.model import ChatMessage, GenerateConfig, Model, ModelAPI, ModelOutput, ModelUsage, get_model, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.evals.provider import CHOICES, MAX_CONNECTIONS
from tokendeep.judges.classifiers import place_of
from tokendeep.models import classifiers
from tokendeep.models.options import ModelOptions

if TYPE_CHECKING:
    from torch import Tensor

NAME = "tokendeep-classifier"
TOGETHER = 16  # answers read at once, where nobody says how many
CLIPPED = "clipped"  # in the metadata of a reply: a part of the answer was not read


class ClassifierAPI(ModelAPI):
    """A sequence classifier; its weights are loaded with the first answer.

    Args:
        wanted: names of the label that counts.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (Inspect's own default)
        *,
        wanted: frozenset[str],
        options: ModelOptions,
        batch_size: int,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.options, self.batch_size = options, batch_size or TOGETHER
        self.labels, self.revision = classifiers.labels(model_name, options)
        self.place = place_of(self.labels, wanted, model_name)
        self._waiting: list[tuple[str, asyncio.Future[tuple[list[float], bool]]]] = []
        self._turn = asyncio.Lock()

    @functools.cached_property
    def known(self) -> str:
        """Its name with a hash of weights and label, which tell its verdicts from others."""
        told = runs.sha256_text(f"{self.revision} {self.labels[self.place]}")[:8]
        return f"{NAME}/{self.model_name} ({told})"

    @functools.cached_property
    def classifier(self) -> classifiers.Classifier:
        return classifiers.load(self.model_name, self.options)

    def max_connections(self) -> int:
        return MAX_CONNECTIONS

    def connection_key(self) -> str:
        return f"{self.model_name}:{id(self)}"

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The chances of the label that counts and of the likeliest other one, and whether the answer was cut."""
        found: asyncio.Future[tuple[list[float], bool]] = asyncio.get_running_loop().create_future()
        self._waiting.append((input[-1].text, found))
        try:
            async with self._turn:
                while not found.done():  # others may stand before it
                    await self._read_some()
        finally:  # who no longer waits is not read
            self._waiting = [one for one in self._waiting if one[1] is not found]
        chances, clipped = await found
        likeliest = max(range(len(chances)), key=chances.__getitem__)
        output = ModelOutput.from_content(self.model_name, self.labels[likeliest])
        others = (chance for place, chance in enumerate(chances) if place != self.place)
        output.metadata = {CHOICES: (chances[self.place], max(others)), CLIPPED: clipped}
        output.usage = ModelUsage()
        return output

    async def _read_some(self) -> None:
        """Read the answers that have waited longest, as many as go together."""
        batch, self._waiting = self._waiting[: self.batch_size], self._waiting[self.batch_size :]
        try:
            results = await anyio.to_thread.run_sync(self._chances, [text for text, _ in batch])
        except Exception as error:
            for _, found in batch:
                if not found.done():
                    found.set_exception(error)
            return
        except BaseException:  # the one who reads is cancelled: the others' answers wait for the next
            self._waiting = [*batch, *self._waiting]
            raise
        for (_, found), result in zip(batch, results, strict=True):
            if not found.done():
                found.set_result(result)

    def _chances(self, texts: Sequence[str]) -> list[tuple[list[float], bool]]:
        import torch

        model, tokenizer, longest = self.classifier.model, self.classifier.tokenizer, self.classifier.longest
        cut = [len(ids) > longest for ids in tokenizer(list(texts), verbose=False).input_ids]
        given = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            logits: Tensor = model(**given.to(model.device)).logits.float()
        if not math.isfinite(float(logits.sum())):
            raise InputError(f"The logits of {self.model_name} are NaN or infinite: load it in float32.")
        return list(zip(logits.softmax(-1).tolist(), cut, strict=True))


@modelapi(name=NAME)
def provider() -> type[ModelAPI]:
    """The provider under its name in Inspect."""
    return ClassifierAPI


def open_classifier(name: str, wanted: frozenset[str], options: ModelOptions, batch_size: int) -> Model:
    """Inspect's handle on a classifier. Raises InputError for a model that is none, or whose labels do not tell."""
    model = get_model(f"{NAME}/{name}", memoize=False, wanted=wanted, options=options, batch_size=batch_size)
    model.model_args.clear()
    return model
