"""What is known of a model without its weights is what the loaded one says."""

from __future__ import annotations

import sys
from pathlib import Path

from tokendeep import models
from tokendeep.engines.architecture import end_tokens, ends_of
from tokendeep.models.outline import Outline, outline


def test_it_is_what_the_loaded_model_says(tiny_folder: Path) -> None:
    subject = models.load(str(tiny_folder))
    found = outline(str(tiny_folder))
    assert ends_of(found.ends, subject.tokenizer) == end_tokens(subject.model, subject.tokenizer)
    assert found.context == models.context_length(subject.model)
    assert found.vocabulary == subject.model.get_input_embeddings().weight.shape[0]


def test_weights_are_not_needed_nor_a_configuration(tiny_folder: Path) -> None:
    whole = outline(str(tiny_folder))
    for file in tiny_folder.glob("*.safetensors"):
        file.unlink()
    assert outline(str(tiny_folder)) == whole
    (tiny_folder / "generation_config.json").unlink()
    assert outline(str(tiny_folder)) == whole
    (tiny_folder / "config.json").unlink()
    assert outline(str(tiny_folder)) == Outline((), 0, sys.maxsize)
