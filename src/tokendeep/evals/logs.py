"""Evaluation logs back into values: judged samples, and what was skipped.

Reads what Inspect wrote, whoever started it (our command or `inspect eval`); in the folder of an attack only the logs
that its run wrote. Knows nothing of models or generation.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from inspect_ai.log import EvalLog, read_eval_log, read_eval_log_sample_summaries

from tokendeep.attacks import ATTACKS
from tokendeep.errors import InputError
from tokendeep.evals import rejudging, stored
from tokendeep.evals.rates import evaluation
from tokendeep.evals.samples import identity, judged, model_of, settings_of, unjudged
from tokendeep.runs import manifest as manifests
from tokendeep.runs.folder import LOGS
from tokendeep.runs.written import covers
from tokendeep.types import Sample

VERB = "attack"  # in the folders of its runs, logs that they did not write are other people's
SET_ID = ".eval-set-id"  # the name that Inspect gives all evaluations of one run, beside their logs


def read_samples(folder: str | Path, every: Sequence[EvalLog] | None = None) -> list[Sample]:
    """Every completion under `folder`, each once, in the order of tasks, prompts and seeds.

    Where the same task was run again (same model, data, settings and judge), the later answer counts. A sample that
    failed or was not judged has the outcome judge-error. Logs that cannot be read are left out: see `unfinished`.

    Args:
        every: the logs, where they have been read already.

    Raises:
        InputError: the folder holds no evaluation log of ours.
    """
    found: dict[str, Sample] = {}
    place: dict[str, int] = {}
    every = every or of(folder)
    for log in every:
        place |= {str(name): n for n, name in enumerate(log.eval.dataset.sample_ids or [])}
        for sample in log.samples or []:
            for one in (told := judged(log, sample)):
                found[identity(one)] = one
            for one in [] if told else unjudged(log, sample):
                found.setdefault(identity(one), one)
    found |= {identity(one): one for one in rejudging.kept(every, stored.read(Path(folder)))}
    order = list(ATTACKS)
    return sorted(found.values(), key=lambda one: (order.index(one.attack), place.get(one.id, 0), one.seed))


def read_skipped(folder: str | Path, every: Sequence[EvalLog] = ()) -> dict[str, dict[int, int]]:
    """For each evaluation and each k of `prefill`, how many answers were too short for it; `every` as in `read_samples`."""
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for log in every or of(folder, header_only=True):
        skipped = {int(k): count for k, count in (log.eval.metadata or {})["skipped"].items()}
        counts[evaluation(model_of(log), settings_of(log))] |= skipped
    return dict(counts)


def unfinished(folder: str | Path) -> list[str]:
    """Names of the logs of ours that did not come to their end, and of those that cannot be read.

    A log whose task was run again to its end is not among them.
    """
    open_logs: dict[str, str] = {}
    for name, log in _read_logs(folder, header_only=True):
        if log is None:
            open_logs[name] = name
        elif _is_ours(log):
            task = json.dumps(
                [log.eval.task, log.eval.task_args, evaluation(model_of(log), settings_of(log))], default=str
            )
            open_logs.pop(task, None)
            if log.status != "success":
                open_logs[task] = name
    return sorted(open_logs.values())


def has_logs(folder: str | Path) -> bool:
    """Whether the folder itself holds an evaluation log of ours."""
    return any((log := _read_log(path, True)) is not None and _is_ours(log) for path in _listed(Path(folder)))


def finished_samples(folder: str | Path) -> int:
    """How many samples of an unfinished run are judged and on disk: the place where its progress goes on."""
    newest: dict[str, int] = {}
    for path in sorted([*_listed(Path(folder) / LOGS), *_listed(Path(folder))], key=_age):
        try:
            judged = sum(bool(one.scores) for one in read_eval_log_sample_summaries(str(path)) if not one.error)
            newest[read_eval_log(str(path), header_only=True).eval.task] = judged
        except (OSError, ValueError, KeyError):  # cut off before its first line was written
            continue
    return sum(newest.values())


def grader_of(folder: str | Path) -> str | None:
    """What the newest log of an unfinished run calls the model that grades; None where none names it."""
    for path in sorted([*_listed(Path(folder) / LOGS), *_listed(Path(folder))], key=_age, reverse=True):
        try:
            metadata = read_eval_log(str(path), header_only=True).eval.metadata or {}
        except (OSError, ValueError, KeyError):  # cut off before its first line was written
            continue
        if names := [name for one in metadata.get("judgings", ()) if (name := one.get("grader"))]:
            return str(names[0])
    return None


def gather(folder: Path) -> Path:
    """A folder for the logs of a run that goes on, with those that its earlier attempts have left.

    Inspect reads and clears away all logs below the folder it is given, so there is nothing but the run's own in it.
    """
    inner = folder / LOGS
    inner.mkdir(mode=0o700, exist_ok=True)
    for path in inner.iterdir():
        if path.is_dir():
            raise InputError(f"{path} lies among the logs of a run that has not finished; move it elsewhere.")
        if path.suffix == ".writing":  # of a write that was cut off
            path.unlink()
    for path in _earlier(folder):
        path.rename(inner / path.name)
    return inner


def _earlier(folder: Path) -> list[Path]:
    """What attempts of the run have left in the folder itself: logs of a finished one, and all that older versions wrote."""
    ours, mark = dict(_read_logs(folder, header_only=True)), folder / SET_ID
    if not mark.is_file():
        return [folder / name for name in ours]
    run = mark.read_text(encoding="utf-8").strip()  # an older version's, whose manifest does not name its logs
    return [mark, *(folder / name for name, log in ours.items() if log and log.eval.eval_set_id == run)]


def of(folder: str | Path, header_only: bool = False) -> list[EvalLog]:
    """Our logs in `folder`, oldest first."""
    ours = [log for _, log in _read_logs(folder, header_only) if log is not None and _is_ours(log)]
    if not ours:
        raise InputError(f"{folder} holds no evaluation log of an attack: run tokendeep attack --out {folder} first.")
    for log in ours:
        if (attack := (log.eval.metadata or {})["attack"]) not in ATTACKS:
            raise InputError(
                f"{folder}/{name_of(log)} holds the attack {attack}, which this tokendeep does not know; a newer one does."
            )
    return ours


def _read_logs(folder: str | Path, header_only: bool) -> list[tuple[str, EvalLog | None]]:
    """Name and content of every log in `folder`, oldest first; None where it cannot be read.

    How old one is it says itself: copies, and logs that were scored anew, have younger files.
    """
    read = [(path, _read_log(path, header_only)) for path in _listed(Path(folder))]
    read.sort(key=lambda one: datetime.fromisoformat(one[1].eval.created).timestamp() if one[1] else 0.0)
    return [(path.name, log) for path, log in read]


def _read_log(path: Path, header_only: bool) -> EvalLog | None:
    try:
        return read_eval_log(str(path), header_only=header_only)
    except Exception:  # cut off or damaged: the zip and the JSON in it fail in many ways
        return None


def _listed(folder: Path) -> list[Path]:
    """The logs in `folder`, by the age of their files; where an attack was run, those alone that it wrote."""
    manifest = manifests.read(folder)
    ours = manifest["files"] if manifest and manifest["verb"] == VERB else ["*"]
    return sorted((path for path in folder.glob("*.eval") if covers(ours, path.name)), key=_age)


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, path.name


def name_of(log: EvalLog) -> str:
    """The name of a log's file."""
    return log.location.rpartition("/")[2]


def _is_ours(log: EvalLog) -> bool:
    return {"skipped", "judge", "judged", "system"} <= (log.eval.metadata or {}).keys()
