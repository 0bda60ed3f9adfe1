"""Where a model lies and whether its parts are there, found out without loading weights.

Knows hub ids, folders, adapters, GGUF files and the alias of the demo model. Importing it loads no torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokendeep import chat
from tokendeep.errors import InputError, memory_full
from tokendeep.models import packaged
from tokendeep.models.options import ModelOptions
from tokendeep.runs.identity import adapter_name, weights_name

DTYPES = ("auto", "float32", "bfloat16", "float16")
TOKENIZERS = (  # at least one of these files is in a folder that has a tokenizer
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model"),
    *("spiece.model", "sentencepiece.bpe.model"),
)
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"

log = logging.getLogger(__name__)


def check_spec(
    spec: str, options: ModelOptions | None = None, *, base: str | None = None, needs_template: bool = True
) -> None:
    """Look whether a model can be loaded, without loading weights, torch or anything from the network.

    Raises:
        InputError: in this order: an unknown dtype, two devices or an unknown chat template; nothing at this path; a
            broken adapter configuration; no weights; pickled weights; a missing shard; no tokenizer; no chat template
            while none is given; an adapter whose base is missing (then its base is looked at in the same way).
    """
    options = options or ModelOptions()
    check_options(options)
    if spec == packaged.SMOLLM2:
        if not packaged.converted(packaged.cache_dir() / packaged.FOLDER):
            packaged.smollm2_gguf()
        return
    path = _local(spec)
    if path is None:
        return
    if path.is_file():
        _check_gguf(path)
        return
    if (path / "adapter_config.json").is_file():
        _check_adapter(path, options, base, needs_template)
        return
    _check_config(path)
    _check_weight_files(path, options)
    _check_tokenizer_files(path, options, needs_template)


def is_adapter(spec: str) -> bool:
    """True for a local folder that holds a PEFT adapter."""
    return spec != packaged.SMOLLM2 and (Path(spec).expanduser() / "adapter_config.json").is_file()


# --- where a model lies --------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where the parts of a model are read from."""

    spec: str  # as the user wrote it
    source: str  # folder or hub id
    file: str | None = None  # the GGUF inside it
    commit: str | None = None  # of a model on the hub
    adapter: Path | None = None  # the adapter's folder

    @property
    def local(self) -> bool:
        return self.commit is None

    @property
    def has_tokenizer(self) -> bool:
        return not self.adapter or any((self.adapter / name).is_file() for name in TOKENIZERS)

    @property
    def where(self) -> dict[str, Any]:
        """Arguments of from_pretrained."""
        if not self.local:
            return {"revision": self.commit}
        return {"local_files_only": True, **({"gguf_file": self.file} if self.file else {})}

    def revision(self) -> str:
        """The hub's commit, or a fingerprint of the local weights."""
        if self.commit is not None:
            return self.commit
        folder = Path(self.source)
        return weights_name([folder / self.file] if self.file else weight_files(folder))


def _local(spec: str) -> Path | None:
    """The path of a local model, or None where `spec` is a hub id."""
    if not spec:
        raise InputError("no model is given: name a hub id, a folder, a GGUF file or smollm2")
    path = Path(spec).expanduser()
    if path.exists():
        return path
    if spec.endswith(".gguf") or not re.fullmatch(HUB_ID + r"(@[\w./-]+)?", spec):
        raise InputError(f"there is no model at {spec}: name a hub id, a folder, a GGUF file or smollm2")
    return None


def locate(spec: str, options: ModelOptions) -> Place:
    """Find a model that has passed check_spec; a hub adapter is fetched, the demo model unpacked."""
    path = None if spec == packaged.SMOLLM2 else _local(spec)
    if options.revision and (path is not None or spec == packaged.SMOLLM2):
        raise InputError(f"{spec} is no hub model, so it has no revision {options.revision}: leave the revision out")
    if spec == packaged.SMOLLM2:
        return Place(spec, str(packaged.smollm2_folder()))
    if path is None:
        return _on_hub(spec, options)
    if path.is_file():
        return Place(spec, str(path.parent), file=path.name)
    return Place(spec, str(path), adapter=path if is_adapter(spec) else None)


def _on_hub(spec: str, options: ModelOptions) -> Place:
    """A model on the hub, pinned to the commit its revision stands for now; an adapter is fetched."""
    from huggingface_hub import snapshot_download
    from transformers.utils import cached_file

    name, _, revision = spec.partition("@")
    revision = revision or options.revision or "main"
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    with explained(spec):
        if cached_file(name, "adapter_config.json", revision=revision, **quiet) is None:
            config = cached_file(name, "config.json", revision=revision)
            return Place(spec, name, commit=Path(str(config)).parent.name)  # .../snapshots/COMMIT/config.json
        wanted = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
        wanted += ["*.bin"] if options.allow_pickle else []
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    _check_adapter_weights(folder, options)
    return Place(spec, str(folder), adapter=folder)


def base_of(place: Place, base: str | None, options: ModelOptions) -> tuple[Place, ModelOptions]:
    """The full model of an adapter, and the options to load it with."""
    assert place.adapter is not None
    name, revision = base or adapter_base(place.adapter), None
    if base is None:
        revision = _read_json(place.adapter / "adapter_config.json").get("revision")
    options = replace(_plain(options), revision=revision)
    whole = locate(name, options)
    if whole.adapter:
        raise InputError(f"the base of {place.spec} is itself an adapter ({name}): merge that one into its base first")
    return whole, options


def adapter_base(folder: Path) -> str:
    """What an adapter calls its base, as something `load` takes, also after both folders were moved together."""
    name = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not name:
        raise InputError(f"{folder}/adapter_config.json names no base model: give the base")
    path = Path(name).expanduser()
    if name == packaged.SMOLLM2 or (path.name == packaged.FOLDER and not path.exists()):
        return packaged.SMOLLM2
    if path.is_absolute():
        if path.exists():
            return str(path)
        moved = folder.resolve().parent / path.name
        if (moved / "config.json").is_file():
            log.warning("the adapter %s names %s; using %s, which lies beside it", folder, path, moved)
            return str(moved)
    else:
        for near in (folder / path, path):
            if near.exists():
                return str(near)
        if re.fullmatch(HUB_ID, name):
            return str(name)  # a hub id
    raise InputError(
        f"the adapter {folder} belongs to {name}, which is not there: give the base, or correct "
        "base_model_name_or_path in its adapter_config.json"
    )


@contextlib.contextmanager
def explained(spec: str) -> Iterator[None]:
    """Turns what the libraries raise for a model that cannot be loaded into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError, ValueError, RuntimeError, MemoryError, KeyError, ImportError, AttributeError, SafetensorError,
    ) as error:  # fmt: skip
        if isinstance(error, InputError):
            raise
        if memory_full(error):
            raise InputError(f"{spec} does not fit into the memory: use bfloat16, or --device-map auto") from error
        if "trust_remote_code" in str(error):
            raise InputError(f"{spec} comes with its own code: pass --trust-remote-code if you trust it") from error
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"{spec} cannot be loaded ({reason.rstrip('.')}): check its name and files") from error


# --- checks that read no weights -----------------------------------------------------------------


def check_options(options: ModelOptions) -> None:
    if options.dtype not in DTYPES:
        raise InputError(f"dtype {options.dtype} is unknown: use one of {', '.join(DTYPES)}")
    if options.device_map and options.device != "auto":
        raise InputError(f"device {options.device} and device_map {options.device_map} exclude each other: give one")
    if options.chat_template:
        chat.read_template(options.chat_template)


def _check_gguf(path: Path) -> None:
    if _read_start(path) != b"GGUF":
        raise InputError(f"{path} is no GGUF file: name the folder of the model, or a .gguf file")


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def _check_config(folder: Path) -> None:
    if (folder / "config.json").is_file():
        _read_json(folder / "config.json")
        return
    inside = [p.name for p in sorted(folder.iterdir()) if p.suffix == ".gguf"]
    marks = ("config.json", "adapter_config.json")
    inside += [name for name in ("checkpoint", "model") if any((folder / name / mark).is_file() for mark in marks)]
    hint = f"name {folder / inside[0]}" if inside else "name a folder written by save_pretrained"
    raise InputError(f"{folder} holds no model (config.json is missing): {hint}")


def _check_weight_files(folder: Path, options: ModelOptions) -> None:
    if (folder / "model.safetensors").is_file():
        return
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted({*_read_json(index).get("weight_map", {}).values()})
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            what = missing[0] if missing else "every shard"
            raise InputError(f"{folder} is incomplete, {what} is missing: copy or download the model again")
        return
    pickles = [name for name in PICKLES if (folder / name).is_file()]
    if not pickles:
        raise InputError(f"{folder} holds no weights (model.safetensors is missing): copy or download the model again")
    if not options.allow_pickle:
        raise InputError(
            f"the weights in {folder} are pickled ({pickles[0]}), which can run code: convert them to safetensors, or "
            "pass --allow-pickle if you trust them"
        )


def _check_tokenizer_files(folder: Path, options: ModelOptions, needs_template: bool) -> None:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(f"{folder} holds no tokenizer (tokenizer.json is missing): copy it from the model's source")
    if needs_template and not options.chat_template and not _has_template(folder):
        raise InputError(
            f"{folder} has no chat template: give one with --chat-template "
            f"({', '.join(chat.template_names())}, or a Jinja file)"
        )


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in TEMPLATES):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(_read_json(config).get("chat_template"))


def _check_adapter(folder: Path, options: ModelOptions, base: str | None, needs_template: bool) -> None:
    _check_adapter_weights(folder, options)
    name = base or adapter_base(folder)
    if is_adapter(name):
        raise InputError(f"the base of {folder} is itself an adapter ({name}): merge that one into its base first")
    own = any((folder / file).is_file() for file in TOKENIZERS)
    if own:
        _check_tokenizer_files(folder, options, needs_template)
    check_spec(name, replace(_plain(options), revision=None), needs_template=needs_template and not own)


def _check_adapter_weights(folder: Path, options: ModelOptions) -> None:
    if (folder / "adapter_model.safetensors").is_file():
        return
    if not (folder / "adapter_model.bin").is_file():
        raise InputError(f"the adapter {folder} has no weights (adapter_model.safetensors is missing): save it again")
    if not options.allow_pickle:
        raise InputError(
            f"the adapter {folder} is pickled (adapter_model.bin), which can run code: save it as safetensors, or pass "
            "--allow-pickle if you trust it"
        )


def _plain(options: ModelOptions) -> ModelOptions:
    """The options without the settings of a verb that may surround them."""
    return ModelOptions(**{name: getattr(options, name) for name in ModelOptions.__dataclass_fields__})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy or download the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object: copy or download the model again")
    return content


# --- fingerprints --------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") and p.is_file())


def adapter_hash(folder: Path) -> str:
    """What results call an adapter, the same after it or its base was moved."""
    weights = (folder / name for name in ("adapter_model.safetensors", "adapter_model.bin"))
    return adapter_name(_read_json(folder / "adapter_config.json"), next((p for p in weights if p.is_file()), None))
