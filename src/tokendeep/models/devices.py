"""Number formats and devices: what options say, as torch and transformers take it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tokendeep.errors import InputError
from tokendeep.models.options import ModelOptions

if TYPE_CHECKING:
    import torch


def dtype_of(options: ModelOptions) -> torch.dtype:
    import torch

    if options.dtype == "auto":
        on_gpu = torch.cuda.is_available() and options.device != "cpu"
        return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    kind: torch.dtype = getattr(torch, options.dtype)
    return kind


def device_map(options: ModelOptions) -> Any:
    """What from_pretrained takes: a device for the whole model, or accelerate's own map."""
    import torch

    if options.device_map:
        return options.device_map
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{_own_gpu()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise NotImplementedError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"There is no device {name} here: use cpu, cuda or auto.") from error
    return {"": device}


def _own_gpu() -> int:
    """The GPU of this process: the first, or with several processes on a machine (torchrun) one each."""
    import torch

    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())
