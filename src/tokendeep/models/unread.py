"""A model whose weights the first process alone reads, where a launcher asks for that (accelerate's FSDP2).

The others have the same model with weights that are set aside in memory and never touched, so that they take none; accelerate
sends each its shard of every weight, one after the other, when the training begins. transformers 5.23 would read the
weights in every process. Knows nothing of trainings.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tokendeep.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tokendeep.models.locate import Place

SWITCH = "fsdp_cpu_ram_efficient_loading"
OFF = f"set {SWITCH} to false in the launcher's settings"


def first_reads() -> bool:
    """Whether the launcher asks that the first process alone reads the weights that are trained in shards."""
    from accelerate.utils import parse_flag_from_env

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    asked = parse_flag_from_env("ACCELERATE_USE_FSDP") and parse_flag_from_env(SWITCH.upper())
    return several and asked and os.environ.get("FSDP_VERSION") == "2"


def check_read(what: str) -> None:
    """Raise InputError where `what` needs a model in the memory of every process, and only the first reads it."""
    if first_reads():
        raise InputError(
            f"{what} needs the model before it is trained, but {SWITCH} has the first process alone read it, into the "
            f"machine's memory: {OFF}, or do without."
        )


def meet(device: torch.device) -> None:
    """Let all processes find each other before a model is loaded; `device` is where each will train."""
    from accelerate import PartialState

    PartialState(cpu=device.type == "cpu", timeout=timedelta(minutes=30))


def share(model: PreTrainedModel) -> None:
    """Tell the other processes, which wait in `unread`, of what weights and buffers this model is.

    Raises:
        InputError: it has buffers that are no weights but are saved with them, which accelerate does not shard.
    """
    from accelerate.utils import broadcast_object_list

    weights = {name: (tuple(one.shape), one.dtype) for name, one in model.named_parameters(remove_duplicate=False)}
    kept = sorted(model.state_dict().keys() - weights.keys())
    broadcast_object_list([(weights, {name: one.cpu() for name, one in model.named_buffers()}, kept)])
    _check_kept(kept)


def unread(place: Place, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """The model that the first process reads, of its configuration alone: weights that hold anything and take no memory.

    Raises:
        InputError: as `share`; the configuration makes another model than the first process has.
    """
    import torch
    from accelerate import init_empty_weights
    from accelerate.utils import broadcast_object_list
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(place.source, trust_remote_code=trust_remote_code, **place.where)
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()
    told: list[Any] = [None]
    broadcast_object_list(told)
    weights, buffers, kept = told[0]
    _check_kept(kept)
    own = {name: tuple(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
    if (
        own != {name: shape for name, (shape, _) in weights.items()}
        or buffers.keys() != dict(model.named_buffers()).keys()
    ):
        raise InputError(
            f"{place.spec} has other weights in the first process than its configuration makes in this one: {OFF}."
        )
    made: dict[int, Any] = {}  # tied weights stay one
    for name, (shape, kind) in weights.items():
        module, _, last = name.rpartition(".")
        meta = getattr(model.get_submodule(module), last)
        made.setdefault(id(meta), torch.nn.Parameter(torch.empty(shape, dtype=kind), requires_grad=meta.requires_grad))
        setattr(model.get_submodule(module), last, made[id(meta)])
    for name, values in buffers.items():
        model.get_buffer(name).data = values
    model.get_input_embeddings().register_forward_pre_hook(_refuse)
    loaded: PreTrainedModel = model
    return loaded


def _check_kept(kept: list[str]) -> None:
    if kept:
        raise InputError(
            f"The model keeps {kept[0]} beside its weights, which accelerate does not send to the other processes: {OFF}."
        )


def _refuse(module: Any, given: Any) -> None:
    """What runs a model that has not been sent its weights would compute with anything."""
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(module, FSDPModule):
        check_read("Something here")
