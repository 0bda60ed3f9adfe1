"""Sequence classifiers: a model with a head that names one of a few labels. Knows nothing of what the labels are for.

Importing it loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokendeep.errors import InputError
from tokendeep.models.checks import check_spec
from tokendeep.models.devices import device_map, dtype_of
from tokendeep.models.locate import explained, hub, locate
from tokendeep.models.options import ModelOptions


@dataclass(frozen=True)
class Classifier:
    """A classifier and its tokenizer; `longest` is its longest input in tokens."""

    model: Any
    tokenizer: Any
    longest: int


def labels(spec: str, options: ModelOptions) -> tuple[list[str], str]:
    """A classifier's labels in the order of its outputs, and its revision; reads no weights.

    Raises:
        InputError: it is not there, is no classifier, or gives an answer several labels.
    """
    from transformers import AutoConfig

    check_spec(spec, options, needs_template=False)
    place = locate(spec, options)
    with explained(spec), hub(place.offline):
        config: Any = AutoConfig.from_pretrained(
            place.source, trust_remote_code=options.trust_remote_code, **place.where
        )
    kinds = config.architectures or []
    if place.adapter or not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise InputError(
            f"{spec} is no sequence classifier ({', '.join(kinds) or 'its config.json names no architecture'}): name one with "
            "--grader, or a judge that asks a language model with --judge."
        )
    if config.problem_type in ("multi_label_classification", "regression"):
        raise InputError(f"{spec} gives an answer no single label ({config.problem_type}): name another classifier.")
    return [config.id2label[place] for place in sorted(config.id2label)], place.revision()


def load(spec: str, options: ModelOptions) -> Classifier:
    """The classifier with its weights. Raises InputError where they are incomplete or not numbers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place, code = locate(spec, options), options.trust_remote_code
    with explained(spec), hub(place.offline):
        tokenizer: Any = AutoTokenizer.from_pretrained(place.source, trust_remote_code=code, **place.where)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            place.source,
            dtype=dtype_of(options),
            device_map=device_map(options),
            trust_remote_code=code,
            use_safetensors=None if options.allow_pickle else True,
            output_loading_info=True,
            **place.where,
        )
    model, report = loaded
    if report["missing_keys"]:  # transformers fills them with random numbers
        example = sorted(report["missing_keys"])[0]
        raise InputError(f"{spec} is incomplete: {example} is missing from its weights, so copy or download it again.")
    return Classifier(model.eval(), _padded(tokenizer, model), _longest(tokenizer, model.config))


def _padded(tokenizer: Any, model: Any) -> Any:
    """The tokenizer with a padding token; decoders find an answer's end by it."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _longest(tokenizer: Any, config: Any) -> int:
    """The longest input: what tokenizer and positions both allow. RoBERTa counts positions from behind the padding."""
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    before = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type or "camembert" in config.model_type else 0
    return int(min(tokenizer.model_max_length, positions - before))
