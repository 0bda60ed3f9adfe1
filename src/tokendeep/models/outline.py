"""What is known of a model without its weights: how long a text it takes, how many ids it has, what ends its answers.

Knows nothing of who has the weights.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokendeep.models import packaged
from tokendeep.models.checks import check_tokenizer
from tokendeep.models.compare import context_length
from tokendeep.models.folders import read_json
from tokendeep.models.locate import adapter_base, base_of, explained, hub, is_adapter, local_path, locate
from tokendeep.models.options import ModelOptions


@dataclass(frozen=True)
class Outline:
    """`ends` are those of the model's own files; `vocabulary` 0 and a context of sys.maxsize where no file says them."""

    ends: tuple[int, ...] = ()
    vocabulary: int = 0
    context: int = sys.maxsize


def layer_count(spec: str, *, base: str | None = None) -> int | None:
    """The decoder layers that the configuration of a model on this machine tells; None where none does without loading it."""
    if spec == packaged.SMOLLM2:
        folder = packaged.cache_dir() / packaged.FOLDER
        return _told_layers(folder) if packaged.converted(folder) else None
    path = local_path(spec)
    if path is None or path.is_file():
        return None
    if not is_adapter(spec):
        return _told_layers(path)
    if read_json(path / "adapter_config.json").get("layer_replication"):
        return None
    return layer_count(base or adapter_base(path))


def _told_layers(folder: Path) -> int | None:
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    config = {**config, **(text if isinstance(text, dict) else {})}
    count = config.get("num_hidden_layers", config.get("n_layer"))
    return count if isinstance(count, int) else None


def outline(
    spec: str, options: ModelOptions | None = None, *, base: str | None = None, needs_template: bool = True
) -> Outline:
    """Read a model's configuration; a folder with a tokenizer alone has none. Raises InputError as `load_tokenizer` does."""
    from transformers import AutoConfig, GenerationConfig

    options = options or ModelOptions()
    check_tokenizer(spec, options, base=base, needs_template=needs_template)
    place = locate(spec, options)
    whole = base_of(place, base, options)[0] if place.adapter else place
    if whole.local and not whole.file and not (Path(whole.source) / "config.json").is_file():
        return Outline()
    with explained(spec), hub(whole.offline):
        config: Any = AutoConfig.from_pretrained(
            whole.source, trust_remote_code=options.trust_remote_code, **whole.where
        )
        try:
            ends = GenerationConfig.from_pretrained(whole.source, **whole.where).eos_token_id
        except OSError:  # as where such a model is loaded
            ends = config.get_text_config().eos_token_id
    given = [ends] if isinstance(ends, int) else list(ends or [])
    return Outline(tuple(given), config.get_text_config().vocab_size, context_length(SimpleNamespace(config=config)))  # type: ignore[arg-type]
