"""A model as a function is given it, by name or in memory, as the options of a verb name it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokendeep import models, runs
from tokendeep.errors import InputError
from tokendeep.types import Subject

Model = Subject | tuple[Any, Any] | str | Path


def loaded_model(model: Model) -> tuple[str, Subject | None]:
    """The name of a model, and the model itself where it is in memory: the name tells its weights from others then."""
    if isinstance(model, str | Path):
        return str(model), None
    if isinstance(model, tuple) and len(model) == 2:
        model = Subject(model[0].eval(), model[1], getattr(model[0], "name_or_path", "") or type(model[0]).__name__)
    if not isinstance(model, Subject):
        raise InputError(
            f"The model is {type(model).__name__}; give what load returns, a pair (model, tokenizer), or a name."
        )
    models.check_tokens(model.name, model.model, model.tokenizer)
    return f"{model.name} in memory ({_fingerprint(model)})", model


def _fingerprint(subject: Subject) -> str:
    """Tells a model in memory from others: by the shape and the sum of each tensor, the adapters that act, the tokenizer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model, tokenizer = subject.model, subject.tokenizer
    sums = [
        (name, list(weight.shape), float(weight.detach().float().sum())) for name, weight in model.named_parameters()
    ]
    adapters = [
        (name, layer.active_adapters, layer.disable_adapters)
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    said = [tokenizer.chat_template, tokenizer.special_tokens_map, sorted(tokenizer.get_vocab().items())]
    return runs.fingerprint(json.dumps([sums, adapters, said]))
