"""The reference of a constrained training: what the model said about every supervised token before step 1.

A value in nats per token, and where an anchor asks for them the final hidden states at the first positions of every
answer. Computed once, kept in one safetensors file under a key of the weights that computed it and of the rows, and never
computed from weights that have been trained. Knows nothing of losses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from tokendeep import runs
from tokendeep.errors import guarded
from tokendeep.runs.files import make_folder

FOLDER = (
    "_reference"  # beside the checkpoints; names that begin with _ are not pushed to a hub, and no server looks inside
)


@dataclass
class Store:
    """Per row: `logps` (R,) float32 of its R supervised tokens; `states` (A, H) at its A anchored ones, or None."""

    key: str
    logps: list[Tensor]
    states: list[Tensor] | None = None


def weights_hash(model: Any, *, without_adapter: bool) -> str:
    """A hash of all values of all weights that a reference depends on: all, or those beneath a new adapter.

    Shards are gathered one after the other, so all processes have to call it together.
    """
    parts = [(name, digest(tensor)) for name, tensor in whole_weights(model, frozen_only=without_adapter)]
    return runs.sha256_text(repr(sorted(parts)))


def digest(tensor: Tensor) -> str:
    """A quick hash of all values of a tensor, with its shape and type."""
    values: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return f"{tuple(tensor.shape)} {tensor.dtype} {xxhash.xxh3_128_hexdigest(values)}"


def digests(module: Any) -> list[str]:
    """The digest of every weight of a module, also where it is kept in shards."""
    found = []
    for weights in module.parameters():
        with _whole(weights) as values:
            found.append(digest(values))
    return found


def copy_weights(module: Any, copy: Any) -> None:
    """Give the copy of a module the values that the module has now, also where it is kept in shards."""
    for weights, copied in zip(module.parameters(), copy.parameters(), strict=True):
        with _whole(weights) as values:
            copied.data = values.detach().clone().to(copied)


def whole_weights(model: Any, *, frozen_only: bool) -> Iterator[tuple[str, Tensor]]:
    """Name and values of every weight and buffer, each whole for as long as it is looked at."""
    summoned: Any = contextlib.nullcontext()
    if isinstance(model, FullyShardedDataParallel):
        options = {"writeback": False, "offload_to_cpu": True, "rank0_only": True}
        summoned = FullyShardedDataParallel.summon_full_params(model, **options)
    with summoned:
        for name, weights in list(model.named_parameters()):
            if not (frozen_only and weights.requires_grad):
                with _whole(weights) as values:
                    yield name, values
            scales = getattr(getattr(weights, "quant_state", None), "absmax", None)  # of 4-bit weights
            if scales is not None:
                yield f"{name}.absmax", scales
        yield from model.named_buffers()


@contextlib.contextmanager
def _whole(weights: Any) -> Iterator[Tensor]:
    """Within it a weight is whole, also where FSDP2 or DeepSpeed ZeRO-3 keep it in shards."""
    if hasattr(weights, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([weights]):
            yield weights
    else:
        yield weights.full_tensor() if isinstance(weights, DTensor) else weights


def rows_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """A hash of the ids, labels and packed lengths of rows, in order."""
    return runs.sha256(repr((row["input_ids"], row["labels"], row.get("seq_lengths"))).encode() for row in rows)


def key(*parts: object) -> str:
    """One short name for model, rows and settings together."""
    return runs.sha256_text(repr(parts))[:16]


def path(folder: Path, name: str) -> Path:
    """The file of the store with this key."""
    return folder / f"reference-{name}.safetensors"


def others(folder: Path, names: set[str]) -> bool:
    """Whether the folder holds stores with other keys than these: of other models, rows or settings."""
    known = {path(folder, name) for name in names}
    return any(found not in known for found in folder.glob("reference-*.safetensors"))


def save(folder: Path, store: Store) -> Path:
    """Write the store in one step: into a file beside it that is then renamed."""
    from safetensors.torch import save_file

    make_folder(folder)
    whole = path(folder, store.key)
    tensors = {"logps": torch.cat(store.logps), "lengths": torch.tensor([len(x) for x in store.logps])}
    if store.states is not None:
        tensors["states"] = torch.cat(store.states)
        tensors["anchored"] = torch.tensor([len(x) for x in store.states])
    with guarded(whole), runs.whole(whole) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"key": store.key})
    return whole


def load(folder: Path, name: str) -> Store | None:
    """The store with this key, or None where there is none that can be read and is marked with it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path(folder, name), framework="pt") as file:
            if (file.metadata() or {}).get("key") != name:
                return None
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError):
        return None
    logps = list(tensors["logps"].split(tensors["lengths"].tolist()))
    states = list(tensors["states"].split(tensors["anchored"].tolist())) if "states" in tensors else None
    return Store(name, logps, states)
