"""Which model was made from which, as far as runs, checkpoints and adapters tell: only a pair is compared in words.

Knows nothing of rates.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokendeep import records
from tokendeep.records import Manifest
from tokendeep.report import names
from tokendeep.report.load import MAKERS, Run


def origins(runs: Sequence[Run]) -> dict[str, set[str]]:
    """Label -> its model and all that this is known to come from."""
    starts = {names.key(run.made): run.config.model for run in runs if run.made and run.config.model}
    found: dict[str, set[str]] = {}
    for run in runs:
        known = {run.model, *([run.config.base] if run.config.base and run.verb not in MAKERS else [])}
        for model, label in {run.model: run.label, **run.labels}.items():
            known_of = known if label == run.label else {model}
            found.setdefault(label, set()).update(_traced(known_of, starts))
    return found


def _traced(models: Iterable[str], starts: Mapping[str, str]) -> set[str]:
    known: set[str] = set()
    waiting = list(models)
    while waiting:
        model = waiting.pop()
        if names.key(model) not in known:
            known.add(names.key(model))
            waiting += [*_told(model), *([starts[names.key(model)]] if names.key(model) in starts else [])]
    return known


def _told(model: str) -> list[str]:
    """What a folder says that its model was made from: the manifest in it or above, an adapter's settings."""
    folder = names.place(model)
    if folder is None or not folder.is_dir():
        return []
    made = [folder / records.MANIFEST, folder.parent / records.MANIFEST]
    told = [Manifest.load(path) for path in made if path.is_file()]
    starts = [one.config.model for one in told if one.verb in MAKERS and one.config.model]
    return starts + _base_of_adapter(folder / "adapter_config.json")


def _base_of_adapter(path: Path) -> list[str]:
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return []
    return [base] if isinstance(base, str) else []
