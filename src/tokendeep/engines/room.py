"""How many rows are decoded together where nobody says it: as many as are known to pay, where the memory holds them."""

from pathlib import Path
from typing import Any

import psutil
import torch

from tokendeep.engines.base import MOST_ROWS

MOST = {"cpu": 96}  # more rows make the model no faster there
SHARE = 0.3  # of the memory that is free: keys and values are copied once where their columns grow
CGROUP = Path("/sys/fs/cgroup")  # where Linux says what a container may take


def rows(lm: Any, longest: int) -> int:
    """How many rows of up to `longest` tokens to decode together, at least 1."""
    device = lm.get_input_embeddings().weight.device
    fit = int(SHARE * free(device) / (token_bytes(lm) * longest))
    return max(1, min(fit, MOST.get(device.type, MOST_ROWS)))


def token_bytes(lm: Any) -> int:
    """Bytes that the keys and values of one token take in all layers (at most, where an architecture compresses them)."""
    config = lm.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1  # a recurrent model has none
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return 2 * int(config.num_hidden_layers * kept * size) * lm.dtype.itemsize


def free(device: torch.device) -> int:
    """Bytes that may still be taken on a device: of a CPU, within the limit of a container as well."""
    if device.type == "cuda":
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    return min(psutil.virtual_memory().available, _container())


def _container() -> int:
    try:
        most, used, told = ((CGROUP / name).read_text() for name in ("memory.max", "memory.current", "memory.stat"))
        kept = dict(line.split() for line in told.splitlines())[
            "inactive_file"
        ]  # files read before, given up when needed
        return max(0, int(most) - int(used) + int(kept))
    except (OSError, ValueError, KeyError):  # no container, or none with a limit ("max")
        return 2**62
