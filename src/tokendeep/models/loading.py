"""Loads a model with its tokenizer, and lends out the same model without its adapter.

Where a model lies is `locate`'s business; local models are read without asking the network. Knows nothing of data,
conversations or scoring. Importing it loads no torch.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep import chat
from tokendeep.errors import InputError
from tokendeep.models import packaged
from tokendeep.models.locate import (
    DTYPES,
    Place,
    adapter_base,
    adapter_hash,
    base_of,
    check_spec,
    explained,
    is_adapter,
    locate,
    weight_files,
)
from tokendeep.models.options import ModelOptions
from tokendeep.models.packaged import cache_dir, smollm2_folder
from tokendeep.types import Subject

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "adapter_base",
    "cache_dir",
    "check_same_vocabulary",
    "check_spec",
    "context_length",
    "is_adapter",
    "load",
    "load_tokenizer",
    "reference",
    "smollm2_folder",
]
QUIET_BYTES = 4_000_000_000  # progress bars are for loads that take longer than this


def load(
    spec: str,
    *,
    base: str | None = None,
    options: ModelOptions | None = None,
    dtype: str | torch.dtype | None = None,
    needs_template: bool = True,
    trainable: bool = False,
) -> Subject:
    """Load a model and its tokenizer, ready for inference.

    Args:
        spec: hub id (`owner/name` or `owner/name@revision`), folder of a full model or of a PEFT adapter, GGUF file, or
            `smollm2`.
        base: the full model an adapter belongs to, in place of the one it names.
        options: dtype, device, chat template and what is allowed; the defaults where left out.
        dtype: overrides that of the options.
        needs_template: False also takes a tokenizer without chat template, for a model that is only compared with.
        trainable: leave an adapter's weights open to training, in float32; those of a full model always are.

    Returns:
        The Subject. `revision` is the hub's commit, or a fingerprint of local weights; `adapter` a hash of the
        adapter's weights and settings. The tokenizer has a padding token: EOS where it came without one.

    Raises:
        InputError: in this order: a bad option; nothing there; a part is missing (see `check_spec`); the device or the
            memory is not there; weights that are incomplete, NaN or infinite; a tokenizer that does not fit.
    """
    options = options or ModelOptions()
    check_spec(spec, options, base=base, needs_template=needs_template)
    place = locate(spec, options)
    kind, device_map = _dtype(options, dtype), _device_map(options)
    if place.adapter is None:
        if base is not None:
            raise InputError(f"{spec} is no adapter, so it takes no base: leave the base out")
        whole = place
        model = _load_weights(place, options, kind, device_map)
    else:
        whole, whole_options = base_of(place, base, options)
        model = _load_adapter(place, _load_weights(whole, whole_options, kind, device_map), device_map, trainable)
    tokenizer = _load_tokenizer(place if place.has_tokenizer else whole, options, needs_template)
    _check_weights(spec, model, tokenizer)
    adapter = adapter_hash(place.adapter) if place.adapter else None
    return Subject(model.eval(), tokenizer, spec, whole.revision(), adapter)


def load_tokenizer(
    spec: str, options: ModelOptions | None = None, *, base: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer alone, as `load` gives it. Raises InputError as `load` does."""
    options = options or ModelOptions()
    check_spec(spec, options, base=base)
    place = locate(spec, options)
    if place.adapter and not place.has_tokenizer:
        place, _ = base_of(place, base, options)
    return _load_tokenizer(place, options, True)


@contextlib.contextmanager
def reference(model: Any) -> Iterator[Any]:
    """The same model with its adapter off, at no second copy in memory.

    Raises:
        InputError: the model has no adapter.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise InputError("the model has no adapter that could be taken off: give the model to compare with")
    with same_trainable(model) as flags, model.disable_adapter():
        restore(flags)  # FSDP looks at its first forward, which may be this one, for what is trained
        yield model


@contextlib.contextmanager
def same_trainable(model: Any) -> Iterator[list[tuple[nn.Parameter, bool]]]:
    """Afterwards the weights that were trainable are so again: PEFT changes that when adapters are switched.

    Gives every weight with whether it is trained, for `restore`.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield flags
    finally:
        restore(flags)


def restore(flags: Iterable[tuple[nn.Parameter, bool]]) -> None:
    """Let the weights be trained or not as `same_trainable` found them."""
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def context_length(model: PreTrainedModel) -> int:
    """Most tokens, prompt and answer together, that `model` was built for; sys.maxsize where it names no limit."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        if isinstance(limit := getattr(config, name, None), int) and limit > 0:
            return limit
    return sys.maxsize


def check_same_vocabulary(a: Subject, b: Subject, *, sizes: tuple[int | None, int | None] = (None, None)) -> None:
    """Two models can be compared token by token only where every id means the same to both.

    Args:
        sizes: rows of the output heads, where the model of a Subject is not at hand.

    Raises:
        InputError: naming the first id that differs, or the two sizes.
    """
    ours, theirs = a.tokenizer.get_vocab(), b.tokenizer.get_vocab()
    if ours != theirs:
        differing = {*ours.items()} ^ {*theirs.items()}
        token = min(id_ for _, id_ in differing)
        raise InputError(
            f"{a.name} ({len(ours)} tokens) and {b.name} ({len(theirs)} tokens) have different vocabularies, first at "
            f"token {token}: compare models of one family"
        )
    rows, other = (size or _rows(s.model.get_output_embeddings()) for size, s in zip(sizes, (a, b), strict=True))
    if rows != other:
        raise InputError(
            f"{a.name} and {b.name} have {rows} and {other} output rows: compare models of one size of vocabulary"
        )


def _rows(layer: Any) -> int:
    return int(layer.weight.shape[0])


# --- loading -------------------------------------------------------------------------------------


def _dtype(options: ModelOptions, given: str | torch.dtype | None) -> torch.dtype:
    import torch

    name = given if given is not None else options.dtype
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise InputError(f"dtype {name} is unknown: use one of {', '.join(DTYPES)}")
    if name == "auto":
        on_gpu = torch.cuda.is_available() and options.device not in ("cpu",)
        return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
    kind: torch.dtype = getattr(torch, name)
    return kind


def _device_map(options: ModelOptions) -> Any:
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
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"there is no device {name} here: use cpu, cuda or auto") from error
    return {"": device}


def _own_gpu() -> int:
    """The GPU of this process: the first, or with several processes on a machine (torchrun) one each."""
    import torch

    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, torch.cuda.device_count())


def _load_weights(place: Place, options: ModelOptions, dtype: torch.dtype, device_map: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if place.file:
        if not isinstance(device_map, dict):
            raise InputError(f"a GGUF file is loaded onto one device: give --device instead of device_map {device_map}")
        with explained(place.spec):
            gguf = packaged.load_gguf(Path(place.source, place.file), dtype)
            return gguf.to(device_map[""])
    with explained(place.spec), _quiet(place):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place.source,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=options.trust_remote_code,
            use_safetensors=None if options.allow_pickle else True,
            output_loading_info=True,
            **place.where,
        )
    model, report = loaded
    if report["missing_keys"]:  # transformers fills them with random numbers
        example = sorted(report["missing_keys"])[0]
        raise InputError(
            f"{place.spec} is incomplete: {len(report['missing_keys'])} tensors such as {example} are missing from its "
            "weights, so copy or download the model again"
        )
    return model


def _load_adapter(place: Place, model: PreTrainedModel, device_map: Any, trainable: bool) -> PreTrainedModel:
    from peft import PeftModel

    assert place.adapter is not None
    device: dict[str, Any] = {"torch_device": str(device_map[""])} if isinstance(device_map, dict) else {}
    with explained(place.spec), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, str(place.adapter), is_trainable=trainable, **device)
    for warning in said:
        if "missing adapter keys" in str(warning.message):
            raise InputError(
                f"the adapter {place.spec} lacks weights for parts of its base: give the base it was made on"
            )
    adapted.peft_config["default"].base_model_name_or_path = model.name_or_path  # where it was found this time
    return adapted  # type: ignore[return-value]


def _load_tokenizer(place: Place, options: ModelOptions, needs_template: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    source = str(place.adapter) if place.adapter else place.source
    with explained(place.spec):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=options.trust_remote_code, **place.where)
    if options.chat_template:
        chat.use_template(tokenizer, options.chat_template)
    elif needs_template and not tokenizer.chat_template:
        raise InputError(
            f"{place.spec} has no chat template: give one with --chat-template "
            f"({', '.join(chat.template_names())}, or a Jinja file)"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_weights(spec: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Weights must be numbers, and there must be one row of them for every token."""
    import torch

    rows = _rows(model.get_input_embeddings())
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer of {spec} knows {len(tokenizer)} tokens but the model only {rows}: use its own one"
        )
    for name, tensor in model.named_parameters():
        if tensor.is_meta or tensor.detach().sum(dtype=torch.float32).isfinite():  # one quick pass
            continue
        if not tensor.isfinite().all():
            raise InputError(f"the weights of {spec} hold NaN or infinity in {name}: use an earlier or another copy")


@contextlib.contextmanager
def _quiet(place: Place) -> Iterator[None]:
    """Hides the progress bar of loads that take a second."""
    from transformers.utils import logging as hf_logging

    small = place.local and sum(p.stat().st_size for p in weight_files(Path(place.source))) < QUIET_BYTES
    if not hf_logging.is_progress_bar_enabled() or not (small or not sys.stderr.isatty()):
        yield
        return
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.enable_progress_bar()
