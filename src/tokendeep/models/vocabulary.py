"""Makes room in a base for the tokens that were added for an adapter.

Knows an adapter's files and a model's embeddings. Importing it loads no torch.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep.models.compare import rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def fit_vocabulary(adapter: Path, model: PreTrainedModel, tokens: int) -> None:
    """Give a base as many rows of embeddings as its adapter was trained with, where tokens were added for it.

    New rows are the mean of the old ones until the adapter's own weights take their place.

    Args:
        tokens: how many the adapter's own tokenizer knows; 0 where it has none.
    """
    rows, stored = rows_of(model.get_input_embeddings()), _stored_rows(adapter, model)
    wanted = max([*stored, tokens])
    if wanted <= rows:
        return
    model.resize_token_embeddings(wanted, mean_resizing=False)
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for weights in (layer.weight.data for layer in layers if layer is not None):
        weights[rows:] = weights[:rows].mean(0)
    if not stored:
        log.warning("%s adds %d tokens to its base but has no weights for them", adapter, wanted - rows)


def _stored_rows(adapter: Path, model: PreTrainedModel) -> list[int]:
    """The numbers of rows of what an adapter's weights hold for embeddings and language-model head."""
    from safetensors import safe_open

    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        return []
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    ends = [f".{name}.{rest}" for name in names for rest in ("weight", "base_layer.weight", "lora_B.weight")]
    with safe_open(path, framework="pt") as file:
        keys: Any = file.keys()
        return [file.get_slice(key).get_shape()[0] for key in keys if key.endswith(tuple(ends))]
