"""The manifest of a run: what was run, on what, by which versions, and what makes two runs the same.

Knows nothing of the folder's other files.
"""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tokendeep.errors import InputError
from tokendeep.records import SCHEMA
from tokendeep.runs.files import json_text, user_path, write_unclaimed
from tokendeep.runs.identity import hash_input, known_identity

MANIFEST = "manifest.json"
# Settings that do not change what a run computes; a run that ran out of memory goes on with a smaller batch.
NOT_COMPARED = (
    "out",
    "overwrite",
    "debug",
    "batch_size",
    "micro_batch",
    "device",
    "device_map",
    "label",
    "max_retries",
    "timeout",
    "reference_cache",
    "engine_model",
    "api_key_env",
    "in_flight",
    "answer_timeout",
    "grader_model",
    "grader_key_env",
)
OWN = {"tokendeep", "verb", "status", "config", "inputs", "models", "seed", "versions", "started", "resumed", "finished",
       "files", "results"}  # fmt: skip
KINDS: dict[str, Any] = {
    "tokendeep": (str, type(None)), "verb": str, "status": str, "config": dict, "inputs": dict, "models": dict, "files": list,
    "resumed": list, "results": dict,
}  # fmt: skip
MAY_LACK = {"resumed", "results"}
MODELS = ("model", "base", "unaligned", "others")  # settings whose local folders are part of a run's identity
TEXTS = ("chat_template", "openings")  # settings whose local files are
PACKAGES = ("tokendeep", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "inspect-ai", "gguf",
            "safetensors", "tokenizers", "numpy", "scipy")  # fmt: skip


def new(
    verb: str, config: Mapping[str, Any], inputs: Mapping[str, str | Path], names: Iterable[str],
    models: Iterable[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """The manifest of a run that begins now; `names` are what it will write, `models` its settings beside `MODELS`."""
    settings = json.loads(json_text({name: _plain(value) for name, value in config.items()}))
    texts = {name: path for name in TEXTS if (path := config.get(name)) and os.path.isfile(user_path(path))}
    return {
        "schema": SCHEMA,
        "tokendeep": _version("tokendeep"),
        "verb": verb,
        "status": "running",
        "config": settings,
        "inputs": {name: hash_input(name, value) for name, value in {**texts, **inputs}.items()},
        "models": {name: identity for name in (*MODELS, *models) if (identity := known_identity(config.get(name)))},
        "seed": settings.get("seed"),
        "versions": versions(),
        "started": now(),
        "finished": None,
        "files": list(names),
    }


def read(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder; None where there is none. Raises InputError: it may not be read, or is none of ours."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        json_text(manifest)  # what cannot be written again, such as NaN, was not written by us
    except FileNotFoundError:
        return None
    except PermissionError:
        raise InputError(
            f"{path} may not be read by this user; change its permissions or give another --out."
        ) from None
    except (OSError, ValueError, RecursionError):
        manifest = None
    if not _is_ours(manifest):
        raise InputError(f"{path} was not written by tokendeep or is damaged; move it away or give another --out.")
    return manifest


def _is_ours(value: Any) -> bool:
    """Whether a JSON value is a manifest, as far as this package goes by one."""
    if not isinstance(value, dict) or not value.keys() >= KINDS.keys() - MAY_LACK:
        return False
    kinds = all(isinstance(value[name], kind) for name, kind in KINDS.items() if name in value)
    return kinds and all(isinstance(name, str) for name in value["files"])


def save(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_unclaimed(folder / MANIFEST, json_text(manifest))


def defaults(kind: type | None) -> dict[str, Any]:
    """The settings of a dataclass that have a default, with it, as a manifest keeps them."""
    values = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in (fields(kind) if kind else ())
    }
    known = {name: _plain(value) for name, value in values.items() if value is not MISSING}
    return dict(json.loads(json_text(known)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What makes two runs different, in words; "" for the same run. Texts are named, not shown."""
    if old["verb"] != new["verb"]:
        return f"its verb (this is {new['verb']})"
    hashed = {**new["inputs"], **new["models"], **old["inputs"], **old["models"]}
    parts = [f"the content of {name}" for name in sorted(hashed) if _content(old, name) != _content(new, name)]
    for name in sorted({*old["config"], *new["config"]} - {*NOT_COMPARED, *hashed}):
        before, after = old["config"].get(name), new["config"].get(name)
        if before != after:
            is_text = isinstance(before, str) or isinstance(after, str)
            parts.append(name if is_text else f"{name} ({before} there, {after} now)")
    return ", ".join(parts)


def _content(manifest: Mapping[str, Any], name: str) -> Any:
    """What identifies input or model `name`: its hash, or the setting where it is no local path."""
    for hashes in (manifest["inputs"], manifest["models"]):
        if name in hashes:
            return hashes[name]
    return manifest["config"].get(name)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results can depend on."""
    installed = {name: version for name in PACKAGES if (version := _version(name))}
    return {"python": platform.python_version(), "platform": platform.platform(), **installed}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
