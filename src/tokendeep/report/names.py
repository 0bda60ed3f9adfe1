"""Short names that still tell models and files apart. Knows nothing of runs."""

from collections.abc import Iterable
from pathlib import Path

from tokendeep.runs.files import user_path


def short(models: Iterable[str]) -> dict[str, str]:
    """Model -> the shortest end of its name that no other model shares."""
    parts = {model: _parts(model) for model in models}
    result = {}
    for model, own in parts.items():
        others = [other for name, other in parts.items() if name != model]
        size = next((n for n in range(1, len(own)) if all(o[-n:] != own[-n:] for o in others)), len(own))
        result[model] = "/".join(own[-size:])
    return result


def defended(label: str, defence: str | None) -> str:
    """What a model is called as it answered: behind a defence at inference time, or as it is."""
    return f"{label} + {defence}" if defence else label


def key(model: str) -> str:
    """A model by its folder where it lies on this machine, however it was named; else by its name."""
    path = place(model)
    return model if path is None else str(path.resolve())


def place(model: str) -> Path | None:
    """The file or folder of this name; None where there is none, or where no file could have such a name."""
    try:
        path = user_path(model)
        return path if model and path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _parts(model: str) -> list[str]:
    """The parts of a path without a closing `checkpoint`; a hub id (owner/name) is one part."""
    is_path = model.startswith(("/", ".", "~")) or model.count("/") > 1 or "\\" in model
    if not is_path:
        return [model]
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    return parts[:-1] if len(parts) > 1 and parts[-1] == "checkpoint" else parts


def file_name(path: str | None) -> str:
    """The last part of a path, on whatever system it was written."""
    return (path or "").replace("\\", "/").rsplit("/", 1)[-1]


def end(model: str) -> str:
    """A path by its last two parts; a hub id as it is."""
    parts = model.replace("\\", "/").rstrip("/").split("/")
    return model if len(parts) < 3 else "…/" + "/".join(parts[-2:])
