"""The model under attack, as attacks see it: behind Inspect's handle, ours or a server's.

Knows how to get at tokenizer and weights of a handle. Knows nothing of single attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inspect_ai.model import Model

from tokendeep import models
from tokendeep.attacks.base import Attack, Victim
from tokendeep.errors import InputError
from tokendeep.evals.provider import TokendeepAPI, prefill_route
from tokendeep.models.options import ModelOptions
from tokendeep.types import Decoding, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def victim(
    model: Model, given: Mapping[str, Any], decoding: Decoding, folder: Callable[[], Path] | None = None
) -> Victim:
    """What an attack may ask of `model`.

    Args:
        given: for models that run elsewhere: whose `tokenizer` counts tokens, and whether the server `continues`.
        folder: where long work can be kept.
    """
    return Victim(
        tokenizer=lambda: _tokenizer(model, given.get("tokenizer")),
        route=lambda: prefill_route(model, bool(given.get("continues"))),
        subject=lambda: _subject(model),
        decoding=decoding,
        options=model.api.options if isinstance(model.api, TokendeepAPI) else ModelOptions(),
        folder=folder,
    )


def check_victim(attack: Attack[Any], model: Model) -> None:
    """Raises InputError where the attack needs weights that are not here."""
    if attack.weights and (not isinstance(model.api, TokendeepAPI) or model.api.served):
        raise InputError(f"{attack.name} reads the model's own logits: it is for models that tokendeep loads itself.")


def _tokenizer(model: Model, name: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that counts prefill tokens: the model's own, or the one named for a model that runs elsewhere."""
    if isinstance(model.api, TokendeepAPI):
        if name is not None:
            raise InputError("tokenizer is only for models that run elsewhere: a local model's own one is used.")
        return model.api.tokenizer
    if name is not None:
        return models.load_tokenizer(name)
    try:
        return models.load_tokenizer(model.api.model_name)
    except InputError as error:
        raise InputError(
            f"The tokenizer of {model}, which counts the tokens of a prefill, is not at hand: name its folder or hub id "
            "with tokenizer."
        ) from error


def _subject(model: Model) -> Subject:
    assert isinstance(model.api, TokendeepAPI)  # see check_victim
    return model.api.load()
