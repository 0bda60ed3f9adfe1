"""Loads a model with its tokenizer; local models are read without asking the network.

Where a model lies is `locate`'s business. Knows nothing of data, conversations or scoring. Importing it loads no torch.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep import chat, runs
from tokendeep.errors import InputError, did_you_mean
from tokendeep.models import packaged, unread
from tokendeep.models.checks import check_spec, check_tokenizer
from tokendeep.models.compare import check_tokens
from tokendeep.models.devices import device_map, dtype_of
from tokendeep.models.folders import adapter_hash, no_template, weight_files
from tokendeep.models.locate import Place, base_of, explained, hub, locate
from tokendeep.models.options import ModelOptions
from tokendeep.models.vocabulary import fit_vocabulary
from tokendeep.progress import loading
from tokendeep.types import Subject

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUIET_BYTES = 4_000_000_000  # progress bars are for loads that take longer than this


def load(
    spec: str,
    *,
    base: str | None = None,
    options: ModelOptions | None = None,
    dtype: str | torch.dtype | None = None,
    needs_template: bool = True,
    trainable: bool = False,
    **settings: Any,
) -> Subject:
    """Load a model and its tokenizer, ready for inference: `load("smollm2", dtype="bfloat16")`.

    Args:
        spec: hub id (`owner/name` or `owner/name@revision`), folder of a full model or of a PEFT adapter, GGUF file, or
            `smollm2`.
        base: the full model an adapter belongs to, in place of the one it names.
        options: dtype, device, chat template and what is allowed; the defaults where left out.
        dtype: overrides that of the options.
        needs_template: False also takes a tokenizer without chat template, for a model that is only compared with.
        trainable: leave an adapter's weights open to training, in float32; those of a full model always are. A GGUF file
            is converted once into the cache, so that an adapter can name a base that every library loads. Where the launcher
            asks for it (see `unread`), the model stays in the machine's memory, and the first process alone has its weights.
        settings: fields of ModelOptions by name, such as `device="cpu"`; they override those of `options`.

    Returns:
        The Subject. `revision` is the hub's commit, or a fingerprint of local weights; `adapter` a hash of the
        adapter's weights and settings. The tokenizer has a padding token: EOS where it came without one.

    Raises:
        InputError: in this order: an unknown setting; a bad option; nothing there; a part is missing (see `check_spec`);
            the device or the memory is not there; weights that are incomplete, NaN or infinite; a tokenizer that does not
            fit.
    """
    settings |= {"dtype": dtype} if isinstance(dtype, str) else {}
    options = _changed(options or ModelOptions(), settings)
    check_spec(spec, options, base=base, needs_template=needs_template)
    place = locate(spec, options)
    if base is not None and place.adapter is None:
        raise InputError(f"{spec} is no adapter, so it takes no base: leave the base out.")
    whole, whole_options = base_of(place, base, options) if place.adapter else (place, options)
    revision = whole.revision()
    if trainable and whole.file:
        with explained(spec):
            whole = replace(whole, source=str(packaged.gguf_folder(Path(whole.source, whole.file))), file=None)
    loading(spec)
    devices = device_map(options)
    tokenizer = _load_tokenizer(place if place.has_tokenizer else whole, options, needs_template)  # faults come early
    kind = dtype_of(options) if dtype is None or isinstance(dtype, str) else dtype
    own = True  # whether this process reads the weights
    if trainable and unread.first_reads():
        unread.meet(_one_device(devices))
        devices, own = {"": "cpu"}, runs.is_main_process()
        model = _shared(whole, whole_options, kind, devices) if own else _unread(whole, whole_options, kind)
    else:
        model = _load_weights(whole, whole_options, kind, devices)
    if place.adapter:
        with explained(spec):
            fit_vocabulary(place.adapter, model, len(tokenizer) if place.has_tokenizer else 0)
        model = _load_adapter(place, model, devices, trainable)
    _check_weights(spec, model, tokenizer, own)
    adapter = adapter_hash(place.adapter) if place.adapter else None
    return Subject(model.eval(), tokenizer, spec, revision, adapter)


def load_tokenizer(
    spec: str, options: ModelOptions | None = None, *, base: str | None = None, needs_template: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer alone, as `load` gives it; a folder without weights is enough. Raises InputError as `load` does."""
    options = options or ModelOptions()
    check_tokenizer(spec, options, base=base, needs_template=needs_template)
    place = locate(spec, options)
    if place.adapter and not place.has_tokenizer:
        place, _ = base_of(place, base, options)
    return _load_tokenizer(place, options, needs_template)


def facts(spec: str, options: ModelOptions, *, base: str | None = None) -> dict[str, Any]:
    """What a model will be known by once it is loaded: revision, adapter and number format. Raises InputError as `load`."""
    place = locate(spec, options)
    whole = base_of(place, base, options)[0] if place.adapter else place
    return {
        "revision": whole.revision(),
        "adapter": adapter_hash(place.adapter) if place.adapter else None,
        "dtype": str(dtype_of(options)).removeprefix("torch."),
    }


def _changed(options: ModelOptions, settings: dict[str, Any]) -> ModelOptions:
    """The options with some of them changed. Raises InputError for a name that is none of them."""
    known = [field.name for field in fields(ModelOptions)]
    for name in settings:
        if name not in known:
            raise InputError(f"There is no setting {name} for loading a model; {did_you_mean(name, known)}.")
    return replace(options, **settings)


def _load_gguf(place: Place, dtype: torch.dtype, devices: Any) -> PreTrainedModel:
    if not isinstance(devices, dict):
        raise InputError(f"A GGUF file is loaded onto one device: give --device instead of device_map {devices}.")
    with explained(place.spec):
        model: Any = packaged.load_gguf(Path(place.source, str(place.file)), dtype)
        gguf: PreTrainedModel = model.to(devices[""])
        return gguf


def _load_weights(place: Place, options: ModelOptions, dtype: torch.dtype, devices: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if place.file:
        return _load_gguf(place, dtype, devices)
    with explained(place.spec), _quiet(place), hub(place.offline):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place.source,
            dtype=dtype,
            device_map=devices,
            trust_remote_code=options.trust_remote_code,
            use_safetensors=None if options.allow_pickle else True,
            ignore_mismatched_sizes=True,  # else the sizes stand in a log only
            output_loading_info=True,
            **place.where,
        )
    model, report = loaded
    if report["mismatched_keys"]:
        name, stored, wanted = sorted(report["mismatched_keys"])[0]
        raise InputError(
            f"{place.spec} does not fit its config.json: {name} is {tuple(stored)} in its weights but {tuple(wanted)} by "
            "the configuration; copy or download the model again."
        )
    if report["missing_keys"]:  # transformers fills them with random numbers
        example = sorted(report["missing_keys"])[0]
        raise InputError(
            f"{place.spec} is incomplete: {len(report['missing_keys'])} tensors such as {example} are missing from its "
            "weights, so copy or download the model again."
        )
    return _named(place, model)


def _one_device(devices: Any) -> torch.device:
    if not isinstance(devices, dict):
        raise InputError(f"Shards and device_map {devices} do not go together: leave --device-map out.")
    device: torch.device = devices[""]
    return device


def _shared(place: Place, options: ModelOptions, dtype: torch.dtype, devices: Any) -> PreTrainedModel:
    """The weights, read for all processes."""
    model = _load_weights(place, options, dtype, devices)
    unread.share(model)
    return model


def _unread(place: Place, options: ModelOptions, dtype: torch.dtype) -> PreTrainedModel:
    """The same model without its weights."""
    with explained(place.spec), hub(place.offline):
        model = unread.unread(place, dtype, options.trust_remote_code)
    return _named(place, model)


def _named(place: Place, model: PreTrainedModel) -> PreTrainedModel:
    if place.local:  # an adapter trained on it names it so, and is loaded from anywhere
        model.name_or_path = model.config._name_or_path = str(Path(place.source).resolve())
    return model


def _load_adapter(place: Place, model: PreTrainedModel, devices: Any, trainable: bool) -> PreTrainedModel:
    from peft import PeftModel

    assert place.adapter is not None
    where: dict[str, Any] = {"torch_device": str(devices[""])} if isinstance(devices, dict) else {}
    with explained(place.spec), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, str(place.adapter), is_trainable=trainable, **where)
    for warning in said:
        if "missing adapter keys" in str(warning.message):
            raise InputError(
                f"The adapter {place.spec} lacks weights for parts of its base: give the base it was made on."
            )
    adapted.peft_config["default"].base_model_name_or_path = model.name_or_path  # where it was found this time
    return adapted  # type: ignore[return-value]


def _load_tokenizer(place: Place, options: ModelOptions, needs_template: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    source = str(place.adapter) if place.adapter else place.source
    with explained(place.spec), hub(place.offline):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=options.trust_remote_code, **place.where)
        tokenizer.decode(tokenizer("a b").input_ids)  # settings of the wrong type show at the first text only
    if options.chat_template:
        chat.use_template(tokenizer, options.chat_template)
    elif needs_template and not tokenizer.chat_template:
        raise no_template(place.spec)
    chat.set_date(tokenizer, options.date)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_weights(spec: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own: bool) -> None:
    """Weights must be numbers where they are this process's `own`, and there must be one row of them for every token."""
    import torch

    check_tokens(spec, model, tokenizer)
    _check_ends(spec, model)
    for name, tensor in model.named_parameters() if own else ():
        if tensor.is_meta or tensor.detach().sum(dtype=torch.float32).isfinite():  # one quick pass
            continue
        if not tensor.isfinite().all():
            raise InputError(f"The weights of {spec} hold NaN or infinity in {name}: use an earlier or another copy.")


def _check_ends(spec: str, model: PreTrainedModel) -> None:
    """What ends an answer must be token ids."""
    for config in (model.generation_config, model.config):
        given = getattr(config, "eos_token_id", None)
        ids = given if isinstance(given, list) else [given]
        if given is not None and not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise InputError(
                f"The configuration of {spec} names {str(given)[:40]!r} as what ends an answer, which is no token id: correct "
                "eos_token_id in its generation_config.json and config.json."
            )


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
