"""The reference of a constrained training: what the model said about every supervised token before step 1.

A value in nats per token, and where an anchor asks for them the final hidden states at the first positions of every
answer. Computed once, kept in one safetensors file under a key of model and rows, and never computed from weights that
have been trained. Knows nothing of losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokendeep import runs

SAMPLED = 256  # values of every weight that its fingerprint looks at


@dataclass
class Store:
    """Per row: `logps` (R,) float32 of its R supervised tokens; `states` (A, H) at its A anchored ones, or None."""

    key: str
    logps: list[Tensor]
    states: list[Tensor] | None = None


def fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of weights: name, shape, type and `SAMPLED` values of each, spread evenly; quick for any size."""

    def pieces() -> Iterable[bytes]:
        for name, tensor in sorted(named, key=lambda item: item[0]):
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // SAMPLED)
            yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
            yield flat[::step][:SAMPLED].cpu().contiguous().view(torch.uint8).numpy().tobytes()

    return runs.sha256(pieces())


def frozen_weights(model: nn.Module, *, without_adapter: bool) -> list[tuple[str, Tensor]]:
    """The weights that a reference depends on: all, or those that stay when the adapter is off."""
    return [(name, p) for name, p in model.named_parameters() if not (without_adapter and "lora_" in name)]


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

    folder.mkdir(parents=True, exist_ok=True)
    whole = path(folder, store.key)
    tensors = {"logps": torch.cat(store.logps), "lengths": torch.tensor([len(x) for x in store.logps])}
    if store.states is not None:
        tensors["states"] = torch.cat(store.states)
        tensors["anchored"] = torch.tensor([len(x) for x in store.states])
    with runs.whole(whole) as part:
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


def ordered(count: int, pieces: Sequence[Mapping[int, Any]]) -> list[Any]:
    """The values of rows 0 .. count - 1 from several processes' shares of them."""
    together = {index: value for piece in pieces for index, value in piece.items()}
    return [together[index] for index in range(count)]
