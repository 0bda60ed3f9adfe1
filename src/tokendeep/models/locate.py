"""Where a model lies: hub ids, folders, adapters and their bases, GGUF files and the alias of the demo model.

Importing it loads no torch.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokendeep.errors import InputError, memory_full, nearest
from tokendeep.models import packaged
from tokendeep.models.folders import check_adapter_weights, has_tokenizer, read_json, weight_files
from tokendeep.models.options import ModelOptions
from tokendeep.runs.files import user_file, user_path
from tokendeep.runs.identity import weights_name

TIMEOUT = 10  # seconds that the hub has for its first answer
HUB_ID = r"[\w-][\w.-]*(/[\w-][\w.-]*)?"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where the parts of a model are read from."""

    spec: str  # as the user wrote it
    source: str  # folder or hub id
    file: str | None = None  # the GGUF inside it
    commit: str | None = None  # of a model on the hub
    offline: bool = False  # the hub cannot be reached, so that its cache has to be enough
    adapter: Path | None = None  # the adapter's folder

    @property
    def local(self) -> bool:
        return self.commit is None

    @property
    def has_tokenizer(self) -> bool:
        return not self.adapter or has_tokenizer(self.adapter)

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


def local_path(spec: str) -> Path | None:
    """The path of a local model, or None where `spec` is a hub id."""
    if not spec:
        raise InputError("No model is given: name a hub id, a folder, a GGUF file or smollm2.")
    path = user_file(spec)
    if os.path.exists(path):
        return path
    if "/" not in spec and (near := nearest(spec.lower(), [packaged.SMOLLM2])):
        raise InputError(f"There is no model {spec}; did you mean {near}?")
    if spec.endswith(".gguf") or not re.fullmatch(HUB_ID + r"(@[\w./-]+)?", spec):
        raise InputError(f"There is no model at {spec}: name a hub id, a folder, a GGUF file or smollm2.")
    return None


def on_hub(spec: str) -> bool:
    """Whether a model's name is a hub id, so that nothing on this machine tells that it exists."""
    return spec != packaged.SMOLLM2 and local_path(spec) is None


def is_adapter(spec: str) -> bool:
    """True for a local folder that holds a PEFT adapter."""
    return spec != packaged.SMOLLM2 and os.path.exists(user_path(spec) / "adapter_config.json")


def locate(spec: str, options: ModelOptions) -> Place:
    """Find a model that has passed check_spec; a hub adapter is fetched, the demo model unpacked."""
    path = None if spec == packaged.SMOLLM2 else local_path(spec)
    if options.revision and (path is not None or spec == packaged.SMOLLM2):
        raise InputError(f"{spec} is no hub model, so it has no revision {options.revision}: leave the revision out.")
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
    offline = not _reached(spec, name, revision)
    quiet: dict[str, Any] = {
        f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")
    }
    with explained(spec), hub(offline):
        if cached_file(name, "adapter_config.json", revision=revision, **quiet) is None:
            config = cached_file(name, "config.json", revision=revision, **quiet)
            if config is None:
                away = "the hub cannot be reached, and its cache on this machine does not hold it"
                why = away if offline else "it holds no config.json"
                raise InputError(f"{spec} cannot be loaded: {why}; check its name.")
            return Place(spec, name, commit=Path(str(config)).parent.name, offline=offline)  # .../COMMIT/config.json
        wanted = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt"]
        wanted += ["*.bin"] if options.allow_pickle else []
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    check_adapter_weights(folder, options)
    return Place(spec, str(folder), adapter=folder)


def _reached(spec: str, name: str, revision: str) -> bool:
    """Whether the hub answers, asked once: its client would try again for a minute where there is no network.

    Raises:
        InputError: the hub answers that there is no such model or revision.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        model_info(name, revision=revision, timeout=TIMEOUT)
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{spec} cannot be loaded: the hub has no such model, or it is a private one; check its name."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{spec} cannot be loaded: the model has no revision {revision}; check it on the hub."
        ) from error
    except Exception:  # each network, proxy and version of the client has its own; what is in the cache may do
        return False
    return True


@contextlib.contextmanager
def hub(offline: bool) -> Iterator[None]:
    """Where the hub cannot be reached its client is told so: by itself it would try again and again, file by file."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def base_of(place: Place, base: str | None, options: ModelOptions) -> tuple[Place, ModelOptions]:
    """The full model of an adapter, and the options to load it with."""
    assert place.adapter is not None
    name, revision = base or adapter_base(place.adapter), None
    if base is None:
        revision = read_json(place.adapter / "adapter_config.json").get("revision")
    options = replace(plain(options), revision=revision)
    try:
        whole = locate(name, options)
    except InputError as error:
        if base is not None:
            raise
        told = str(error).removesuffix(".")
        raise InputError(f"{told}; it is the base of the adapter {place.spec}: give that model with --base.") from error
    if whole.adapter:
        raise InputError(f"The base of {place.spec} is itself an adapter ({name}): merge that one into its base first.")
    return whole, options


def adapter_base(folder: Path) -> str:
    """What an adapter calls its base, as something `load` takes, also after both folders were moved together."""
    name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise InputError(f"{folder}/adapter_config.json names no base model: give it with --base.")
    path = user_path(name)
    if name == packaged.SMOLLM2 or (path.name == packaged.FOLDER and not path.exists()):
        return packaged.SMOLLM2
    if path.is_absolute():
        if path.exists():
            return _only_gguf(folder, path) or str(path)
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
    if packaged.is_conversion(path):
        name = f"a GGUF file whose conversion lay in {name}"
    raise InputError(
        f"The adapter {folder} belongs to {name}, which is not there: give it with --base, or correct "
        "base_model_name_or_path in its adapter_config.json."
    )


def hub_id(spec: str) -> str | None:
    """The hub's name of a model, or of the base that an adapter or a model card names; None where that is not known."""
    if not os.path.exists(Path(spec).expanduser()) and not re.fullmatch(rf"{HUB_ID}(@.+)?", spec):
        return None  # a model in memory
    path = None if spec == packaged.SMOLLM2 else local_path(spec)
    if spec == packaged.SMOLLM2 or (path is not None and path.name == packaged.FOLDER):
        return packaged.HUB_ID
    if path is None:
        return spec.partition("@")[0]
    if is_adapter(spec):
        name = read_json(path / "adapter_config.json").get("base_model_name_or_path")
        return None if not name or (not Path(name).exists() and not re.fullmatch(HUB_ID, name)) else hub_id(name)
    card = path / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.search(rf"^base_model: *[\"']?({HUB_ID})[\"']? *$", text, re.MULTILINE)
    return found.group(1) if found and "/" in found.group(1) else None


def _only_gguf(adapter: Path, folder: Path) -> str | None:
    """The GGUF of a folder that holds no other model: adapters of older versions name the folder.

    Raises:
        InputError: it holds several.
    """
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() and not (folder / "config.json").is_file() else []
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(
            f"The adapter {adapter} names the folder {folder}, in which several models lie ({names}): give the one "
            "it was trained on with --base."
        )
    return str(files[0]) if files else None


def plain(options: ModelOptions) -> ModelOptions:
    """The options without the settings of a verb that may surround them."""
    return ModelOptions(**{name: getattr(options, name) for name in ModelOptions.__dataclass_fields__})


@contextlib.contextmanager
def explained(spec: str) -> Iterator[None]:
    """Turns what the libraries raise for a model that cannot be loaded into one sentence."""
    try:
        yield
    except BaseException as error:  # files of any content fail in any way; what is in Rust panics outside Exception
        if isinstance(error, InputError | KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        if memory_full(error):
            raise InputError(f"{spec} does not fit into the memory: use bfloat16, or --device-map auto.") from error
        if "trust_remote_code" in str(error):
            raise InputError(f"{spec} comes with its own code: pass --trust-remote-code if you trust it.") from error
        raise InputError(f"{spec} cannot be loaded ({_reason(error)}): check its name and files.") from error


def _reason(error: BaseException) -> str:
    """What an error says is wrong: its first line, and the next ones where that only announces them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    count = next((i for i, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:count])[:300].rstrip(".:") or type(error).__name__
