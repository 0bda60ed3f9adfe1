"""What lies in the folder of a model or an adapter, looked at without reading weights.

Importing it loads no torch.
"""

import json
from pathlib import Path
from typing import Any

from tokendeep import chat
from tokendeep.errors import InputError, NoTemplate
from tokendeep.models.options import ModelOptions
from tokendeep.runs.identity import adapter_name

TOKENIZERS = (  # at least one of these files is in a folder that has a tokenizer
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model"),
    *("spiece.model", "sentencepiece.bpe.model"),
)
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
GGUF_HEADER = 2**26  # bytes; that of a model with 250,000 tokens takes 15 MB
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZERS)


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): copy or download the model again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object: copy or download the model again.")
    return content


def weight_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") and p.is_file())


def adapter_hash(folder: Path) -> str:
    """What results call an adapter, the same after it or its base was moved."""
    weights = (folder / name for name in ("adapter_model.safetensors", "adapter_model.bin"))
    return adapter_name(read_json(folder / "adapter_config.json"), next((p for p in weights if p.is_file()), None))


def check_gguf(path: Path, options: ModelOptions, needs_template: bool) -> None:
    start = _read_start(path)
    if start[:4] != b"GGUF":
        raise InputError(f"{path} is no GGUF file: name the folder of the model, or a .gguf file.")
    if needs_template and not options.chat_template and b"tokenizer.chat_template" not in start:
        raise no_template(path)


def no_template(name: object) -> NoTemplate:
    """The error for a model that has no chat template while none is given."""
    return NoTemplate(
        f"{name} has no chat template: give one with --chat-template ({', '.join(chat.template_names())}, or a Jinja file)."
    )


def _read_start(path: Path) -> bytes:
    """The beginning of a GGUF file, in which the names of all that it says of the model stand."""
    try:
        with path.open("rb") as file:
            return file.read(GGUF_HEADER)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error


def check_config(folder: Path) -> None:
    if (folder / "config.json").is_file():
        read_json(folder / "config.json")
        return
    inside = [p.name for p in sorted(folder.iterdir()) if p.suffix == ".gguf"]
    marks = ("config.json", "adapter_config.json")
    inside += [name for name in ("checkpoint", "model") if any((folder / name / mark).is_file() for mark in marks)]
    which = "one of them: " if len(inside) > 1 else ""
    hint = (
        f"name {which}{', '.join(str(folder / name) for name in inside)}"
        if inside
        else "name a folder written by save_pretrained"
    )
    raise InputError(f"{folder} holds no model (config.json is missing): {hint}.")


def check_weight_files(folder: Path, options: ModelOptions) -> None:
    if (folder / "model.safetensors").is_file():
        return
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        shards = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            what = missing[0] if missing else "every shard"
            raise InputError(f"{folder} is incomplete, {what} is missing: copy or download the model again.")
        return
    pickles = [name for name in PICKLES if (folder / name).is_file()]
    if not pickles:
        raise InputError(f"{folder} holds no weights (model.safetensors is missing): copy or download the model again.")
    if not options.allow_pickle:
        raise InputError(
            f"The weights in {folder} are pickled ({pickles[0]}), which can run code: convert them to safetensors, or "
            "pass --allow-pickle if you trust them."
        )


def check_tokenizer_files(folder: Path, options: ModelOptions, needs_template: bool) -> None:
    if not has_tokenizer(folder):
        raise InputError(f"{folder} holds no tokenizer (tokenizer.json is missing): copy it from the model's source.")
    if needs_template and not options.chat_template and not _has_template(folder):
        raise no_template(folder)


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in TEMPLATES):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and bool(read_json(config).get("chat_template"))


def check_adapter_weights(folder: Path, options: ModelOptions) -> None:
    if (folder / "adapter_model.safetensors").is_file():
        return
    if not (folder / "adapter_model.bin").is_file():
        raise InputError(f"The adapter {folder} has no weights (adapter_model.safetensors is missing): save it again.")
    if not options.allow_pickle:
        raise InputError(
            f"The adapter {folder} is pickled (adapter_model.bin), which can run code: save it as safetensors, or pass "
            "--allow-pickle if you trust it."
        )
