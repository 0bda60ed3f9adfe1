"""Whether a model can be loaded, found out without loading weights, torch or anything from the network."""

import logging
from dataclasses import replace
from pathlib import Path

from tokendeep import chat
from tokendeep.errors import InputError
from tokendeep.models import packaged
from tokendeep.models.folders import (
    check_adapter_weights,
    check_config,
    check_gguf,
    check_tokenizer_files,
    check_weight_files,
    has_tokenizer,
)
from tokendeep.models.locate import adapter_base, is_adapter, local_path, plain
from tokendeep.models.options import ModelOptions
from tokendeep.runs.identity import model_identity

log = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_spec(
    spec: str, options: ModelOptions | None = None, *, base: str | None = None, needs_template: bool = True
) -> None:
    """Look whether a model can be loaded, without loading weights, torch or anything from the network.

    Raises:
        InputError: in this order: an unknown dtype, two devices or an unknown chat template; nothing at this path; a
            base for what is no adapter; a broken adapter configuration; no weights; pickled weights; a missing shard; no
            tokenizer; no chat template while none is given; an adapter whose base is missing (then its base is looked at
            in the same way).
    """
    options = options or ModelOptions()
    check_options(options)
    if spec == packaged.SMOLLM2:
        if base:
            raise InputError(f"{spec} is no adapter, so it takes no base: leave the base out.")
        if not packaged.converted(packaged.cache_dir() / packaged.FOLDER):
            packaged.smollm2_gguf()
        return
    path = local_path(spec)
    if path is None:
        return
    if base and not is_adapter(spec):
        raise InputError(f"{spec} is no adapter, so it takes no base: leave the base out.")
    if path.is_file():
        check_gguf(path, options, needs_template)
        return
    if (path / "adapter_config.json").is_file():
        _check_adapter(path, options, base, needs_template)
        return
    check_config(path)
    check_weight_files(path, options)
    check_tokenizer_files(path, options, needs_template)


def check_no_base(base: str | None) -> None:
    """Raises InputError where a model that is in memory is given the base of an adapter."""
    if base is not None:
        raise InputError(f"The model is in memory already, so it takes no base: leave {base} out.")


def missing_base(spec: str, base: str | None, options: ModelOptions) -> str | None:
    """`base` where `spec` is an adapter whose own base is not there, so that `base` takes its place; else None.

    Raises:
        InputError: the adapter cannot be loaded onto either.
    """
    if base is None or not is_adapter(spec):
        return None
    try:
        check_spec(spec, options)
    except InputError:
        check_spec(spec, options, base=base)  # raises where the base is not what is wrong
        log.warning("the base that %s names is not there; %s takes its place", spec, base)
        return base
    return None


def same_model(first: str, second: str) -> bool:
    """Whether two names stand for the same weights, as far as files tell; a GGUF file and its conversion do."""
    one, other = (_whole(name) for name in (first, second))
    return (
        first == second
        or one == other
        or (Path(one).exists() and Path(other).exists() and model_identity(one) == model_identity(other))
    )


def _whole(name: str) -> str:
    """Where the files of a model lie that every library loads, whether they are there yet or not."""
    if name == packaged.SMOLLM2:
        return str(packaged.cache_dir() / packaged.FOLDER)
    path = Path(name).expanduser()
    return str(packaged.folder_of(path) if path.is_file() else path)


def check_tokenizer(spec: str, options: ModelOptions, *, base: str | None = None, needs_template: bool = True) -> None:
    """As `check_spec` for the tokenizer alone: a folder that holds nothing else is enough."""
    path = None if spec == packaged.SMOLLM2 else local_path(spec)
    if path is None or not path.is_dir() or not has_tokenizer(path):
        check_spec(spec, options, base=base, needs_template=needs_template)
        return
    check_options(options)
    if (path / "config.json").is_file():
        check_config(path)
    check_tokenizer_files(path, options, needs_template)


def check_options(options: ModelOptions) -> None:
    if options.dtype not in DTYPES:
        raise InputError(f"Dtype {options.dtype} is unknown: use one of {', '.join(DTYPES)}.")
    if options.device_map and options.device != "auto":
        raise InputError(f"Device {options.device} and device_map {options.device_map} exclude each other: give one.")
    if options.chat_template:
        chat.read_template(options.chat_template)
    chat.read_date(options.date)


def _check_adapter(folder: Path, options: ModelOptions, base: str | None, needs_template: bool) -> None:
    check_adapter_weights(folder, options)
    name = base or adapter_base(folder)
    if is_adapter(name):
        raise InputError(f"The base of {folder} is itself an adapter ({name}): merge that one into its base first.")
    own = has_tokenizer(folder)
    if own:
        check_tokenizer_files(folder, options, needs_template)
    check_spec(name, replace(plain(options), revision=None), needs_template=needs_template and not own)
