"""Run folders -> runs: the records that the verbs left, each under a short model name.

Reads manifests, profiles, rates, tables and evaluation logs; never guesses what is not there. Knows nothing of words or
figures.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from tokendeep import records
from tokendeep.attacks import ATTACKS
from tokendeep.depth.profile import with_excess
from tokendeep.errors import InputError
from tokendeep.evals import rates as counted
from tokendeep.records import (
    Audit,
    Cost,
    Dynamics,
    Manifest,
    PoisonTable,
    Profile,
    Rate,
    Rates,
    Settings,
    Strengths,
    Training,
)
from tokendeep.report import names, views
from tokendeep.runs import identity
from tokendeep.runs.files import user_path
from tokendeep.types import Sample

log = logging.getLogger(__name__)
Reader = Callable[[Path], list[Sample]]

LOGS = "*.eval"
FIGURES = (records.PROFILE, records.ASR, records.TABLE, records.DYNAMICS, Training.FILE, Audit.FILE, Strengths.FILE)
ROLES = {"measure": "harmful", "attack": "harmful", "overrefusal": "twins", "unseen": "unseen"}  # by folder name
STORY = ("base", "aligned", "deepened")  # models with these names are shown in this order, before all others
MAKERS = ("deepen", "finetune", "mend")  # verbs that make a model from another
NO_RESULTS = ("demo", "pairs")  # verbs whose folders hold other runs or rows, and nothing to report
SKIPPED_FOLDERS = ("checkpoint", "rows", "trainer")  # parts of a run, not runs
TOGETHER = {name for name, attack in ATTACKS.items() if attack.together}  # attacks whose rows are settings of one
BY_ROW = {name for attack in ATTACKS.values() for name in attack.by_row}  # what these change from row to row
WHAT = {name for attack in ATTACKS.values() for name in attack.tells} - BY_ROW  # which attack it is, not how it is set


@dataclass(frozen=True)
class Run:
    """One folder that a verb wrote; None is a part that is not there.

    `cut` names the logs of a folder without a manifest that did not come to their end.
    """

    folder: Path
    manifest: Manifest = field(default_factory=Manifest)
    profile: Profile | None = None
    rates: Rates | None = None
    samples: Sequence[Sample] | None = None
    label: str = ""
    role: str = "harmful"
    attack_checkpoint: bool = False  # the model was trained on attack rows
    cut: Sequence[str] = ()
    table: PoisonTable | None = None  # of a fine-tuning attack
    strengths: Strengths | None = None  # how strong each objective of it was made
    dynamics: Dynamics | None = None  # of a training that was watched
    training: Training | None = None  # the log of a fine-tuning
    audit: Audit | None = None  # of the rows of a data set
    one_lead: bool = False  # whether all runs of the report that have a text before their prefills have the same one

    @property
    def config(self) -> Settings:
        """The settings of the run."""
        return self.manifest.config

    @property
    def has_manifest(self) -> bool:
        return bool(self.manifest.model_fields_set or self.manifest.model_extra)

    @property
    def verb(self) -> str:
        return self.manifest.verb or ("measure" if self.profile else "attack")

    @property
    def finished(self) -> bool:
        return self.manifest.status != "running" and not self.cut

    @property
    def made(self) -> str | None:
        """The checkpoint that the run made of its model."""
        return str(self.folder / "checkpoint") if self.verb in MAKERS else None

    @property
    def model(self) -> str:
        """The model that was run, as the run names it."""
        measured = self.profile.meta.model if self.profile else None
        asked = self.rates[0].model if self.rates else None
        return self.config.model or measured or asked or self.folder.name

    @cached_property
    def identity(self) -> str:
        """The model that was run, or the one that the run made, by where it lies on this machine."""
        return names.key(self.made or self.model)

    @property
    def file(self) -> str:
        """The data file by its name alone."""
        return names.file_name(self.config.data)

    @property
    def data(self) -> str:
        """The data file by its name and the first signs of its hash; nothing where the manifest does not say."""
        digest = self.manifest.data_hash
        return f"{self.file} ({digest[:8]})" if self.file and digest else self.file

    @property
    def template(self) -> str:
        """The chat template that was asked for, by the name of its file; nothing for the model's own."""
        return names.file_name(self.config.chat_template)

    def cost(self, attack: str) -> Cost:
        """What finding the attack's prompts has cost, before the model was asked."""
        return self.manifest.cost.get(attack, Cost())

    def digest(self, data: object) -> str | None:
        """The hash of the data, as a row's parameters (`data`) or the manifest tell it."""
        return data if data and isinstance(data, str) else self.manifest.data_hash

    @cached_property
    def labels(self) -> dict[str, str]:
        """Model -> its label; a folder of logs can hold several models."""
        models = {rate.model for rate in self.rates or ()}
        return names.short(models) if len(models) > 1 else dict.fromkeys(models, self.label)

    @cached_property
    def answers(self) -> Mapping[str, list[Sample]]:
        """The samples by what they are about (`key_of`, with the attack)."""
        groups: dict[str, list[Sample]] = defaultdict(list)
        for one in self.samples or ():
            groups[key_of(one.model, one.judge, one.params, one.attack)].append(one)
        return dict(groups)

    def behind(self, rate: Rate) -> list[Sample]:
        """The samples that a row counts."""
        return self.answers.get(key_of(rate.model, rate.judge, rate.params.given(), rate.attack), [])

    @cached_property
    def batches(self) -> Mapping[str, list[list[Rate]]]:
        """For each attack its rows, by all but what settings of one attack change from row to row."""
        groups: dict[tuple[str, str], list[Rate]] = defaultdict(list)
        for rate in views.distinct(self.rates or ()):
            shared = {name: value for name, value in rate.params.given().items() if name not in BY_ROW}
            groups[rate.attack, key_of(rate.model, rate.judge, shared, rate.attack)].append(rate)
        batches: dict[str, list[list[Rate]]] = defaultdict(list)
        for (attack, _), rates in groups.items():
            batches[attack].append(rates)
        return batches


def key_of(model: str, judge: str, params: Mapping[str, Any], attack: str | None = None) -> str:
    """What a row is about: with the attack all of it, without it what the rows of one series share."""
    left_out = () if attack else (*WHAT, "judged")
    shared = {name: value for name, value in params.items() if name not in left_out and value is not None}
    return json.dumps([model, judge, attack, shared], sort_keys=True, default=str)


def runs(dirs: Sequence[str | Path], read: Reader | None = None) -> list[Run]:
    """Every run in `dirs` and the folders below them, each once, models of the demo in the order of its story.

    Args:
        read: reads the judged samples of a folder; the default reads Inspect logs.

    Raises:
        InputError: a folder that is missing, none that holds a run, or a damaged file. What holds no run beside others that
            do is passed over, and said; so are other people's evaluation logs: see `foreign`.
    """
    if not dirs:
        raise InputError("No run folder is given; name the folders that the other verbs wrote.")
    inside = {str(name): _run_folders(name) for name in dirs}
    empty = [name for name, paths in inside.items() if not paths]
    if len(empty) == len(inside):
        raise InputError(
            f"{empty[0]} holds no {records.PROFILE}, {records.ASR}, {records.MANIFEST} or evaluation log of an attack, nor do "
            "the folders below; name folders that the other verbs wrote."
        )
    if others := [name for name in empty if _verb(user_path(name)) is None]:
        log.warning("passed over, for no run is in it: %s", ", ".join(others))
    folders: dict[Path, Path] = {}
    for path in chain.from_iterable(inside.values()):
        folders.setdefault(path.resolve(), path)
    every = [_read(path, read or read_logs) for path in folders.values()]
    leads = {lead for run in every for rate in run.rates or () if (lead := rate.params.lead)}
    labelled = [replace(run, one_lead=len(leads) == 1) for run in _label(every)]
    order = list(dict.fromkeys([*STORY, *(run.label for run in labelled)]))
    return sorted(labelled, key=lambda run: order.index(run.label))


def foreign(dirs: Sequence[str | Path]) -> list[Path]:
    """The folders in `dirs` and below them that hold evaluation logs and nothing of ours."""
    folders = {path.resolve(): path for name in dirs for path in _walk(user_path(name))}
    return [path for path in folders.values() if _has_logs(path) and not _is_run(path)]


def read_logs(folder: Path) -> list[Sample]:
    """The judged samples of a folder, none where all logs are other people's."""
    samples: list[Sample] = _logs().read_samples(folder) if _logs().has_logs(folder) else []
    return samples


def _logs() -> ModuleType:
    """The reader of logs: Inspect is loaded only where there are any."""
    from tokendeep.evals import logs

    return logs


# --- finding and reading ------------------------------------------------------------------------


def _run_folders(name: str | Path) -> list[Path]:
    """The runs in a folder and below; none in a file, which `report out/*` names as well."""
    folder = user_path(name)
    if not os.path.exists(folder):  # unlike Path.exists it is False, and no error, for a name too long
        raise InputError(f"There is no folder {name}; name folders that the other verbs wrote.")
    return [path for path in _walk(folder) if _is_run(path) and _verb(path) not in NO_RESULTS]


def _walk(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    yield folder
    if _verb(folder) == "poison":  # what lies below is in its table; name a folder below to see that run alone
        return
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith((".", "checkpoint-")) or path.name in SKIPPED_FOLDERS
        if path.is_dir() and not path.is_symlink() and not hidden:
            yield from _walk(path)


def _verb(folder: Path) -> str | None:
    manifest = _manifest(folder)
    return manifest.verb if manifest else None


def _manifest(folder: Path) -> Manifest | None:
    """The manifest of a run; None where there is none, or that of another program, which names no verb."""
    path = folder / Manifest.FILE
    value: Any = records.read_json(path) if path.is_file() else None
    ours = isinstance(value, dict) and isinstance(value.get("verb"), str)
    return Manifest.parse(value, str(path)) if ours else None


def _is_run(folder: Path) -> bool:
    """Whether there is a result of ours."""
    results = any((folder / name).is_file() for name in (records.PROFILE, records.ASR, records.DYNAMICS))
    return results or _verb(folder) is not None or (_has_logs(folder) and _logs().has_logs(folder))


def _has_logs(folder: Path) -> bool:
    return next(folder.glob(LOGS), None) is not None


F = TypeVar("F", Profile, Dynamics, Training, Audit, Strengths)


def _load(kind: type[F], folder: Path) -> F | None:
    return kind.load(folder) if (folder / kind.FILE).is_file() else None


def _read(folder: Path, read: Reader) -> Run:
    manifest = _manifest(folder) or Manifest()
    _check_results(folder, manifest)
    running, has_logs = manifest.status == "running", _has_logs(folder)
    profile = _load(Profile, folder)
    profile = profile and with_excess(profile)
    samples = (read(folder) or None) if has_logs and not running else None
    run = Run(
        folder,
        manifest,
        profile,
        _rates(folder, samples),
        samples,
        role=manifest.role
        or next((s.role for s in samples or () if s.role), None)
        or ROLES.get(folder.name, "harmful"),
        attack_checkpoint=_trained_on_attack(manifest),
        table=PoisonTable.load(folder) if manifest.verb == "poison" and (folder / records.TABLE).is_file() else None,
        strengths=_load(Strengths, folder) if manifest.verb == "poison" else None,
        dynamics=_load(Dynamics, folder),
        audit=_load(Audit, folder) if manifest.verb == "audit" and not running else None,
        training=_load(Training, folder) if manifest.verb in ("finetune", "mend") and not running else None,
    )
    return replace(run, cut=_logs().unfinished(folder) if has_logs and not run.has_manifest else ())


def _check_results(folder: Path, manifest: Manifest) -> None:
    """Raises InputError for a file of figures that is not as its run wrote it; of a log, which people score anew, it is said."""
    for name, digest in manifest.results.items():
        path = folder / name
        if path.parent != folder or not path.is_file() or identity.file_identity(path) == digest:
            continue
        if path.suffix == ".eval":
            log.warning("%s is not as its run wrote it; its answers are counted as they stand there now", path)
        elif path.name in FIGURES:
            raise InputError(
                f"{path} is not as its run wrote it; run that verb again with the same --out, which mends it."
            )


def _rates(folder: Path, samples: Sequence[Sample] | None) -> Rates | None:
    """The rows of asr.json; counted anew in a folder that plain `inspect eval` wrote."""
    if (folder / records.ASR).is_file():
        rates = Rate.load_all(folder)
        if strange := sorted({rate.attack for rate in rates} - ATTACKS.keys()):
            raise InputError(
                f"{folder / records.ASR} holds the attack {strange[0]}, which this tokendeep does not know."
            )
        if not rates:
            raise InputError(f"{folder / records.ASR} holds no rate; run the attack again with the same --out.")
        return rates
    return counted.asr(samples, _logs().read_skipped(folder)) if samples else None


def _trained_on_attack(manifest: Manifest) -> bool:
    """Whether this run, or the checkpoint it used, was trained on attack rows and says so."""
    model = names.place(manifest.config.model or "")
    nearby = [model / records.MANIFEST, model.parent / records.MANIFEST] if model and model.is_dir() else []
    told = [Manifest.trained_on_attack(path) for path in nearby if path.is_file()]
    return manifest.attack is True or any(told)


# --- labels -------------------------------------------------------------------------------------


def _label(runs: Sequence[Run]) -> list[Run]:
    """Give each run the short name of its model, or of the one it made: the manifest's label, else the folder above where
    that tells models apart (aligned/measure, deepened/measure), else the model's own name."""
    above = _folders_above(runs)
    models = {run.folder: run.identity for run in runs}
    short = names.short(set(models.values()))
    return [
        replace(run, label=run.manifest.label or above.get(run.folder) or short[models[run.folder]]) for run in runs
    ]


def _folders_above(runs: Sequence[Run]) -> dict[Path, str]:
    """Run folder -> name of the folder above, where two or more of them each hold the runs of one model."""
    parents: dict[Path, list[Run]] = defaultdict(list)
    for run in runs:
        if run.folder.name in ROLES:
            parents[run.folder.resolve().parent].append(run)
    one_each = all(len({run.model for run in group}) == 1 for group in parents.values())
    if len({parent.name for parent in parents}) < max(2, len(parents)) or not one_each:
        return {}
    return {run.folder: parent.name for parent, group in parents.items() for run in group}
