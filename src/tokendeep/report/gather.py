"""Run folders -> what the report compares: every measurement and every series of rates, under a short model name.

Reads profile.json, asr.json, manifest.json and evaluation logs; never guesses what is not there. Knows nothing of words
or figures.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokendeep.errors import InputError
from tokendeep.types import Sample

Reader = Callable[[Path], list[Sample]]
Condition = tuple[str, Any]  # (attack, k or prefix or None)

MANIFEST, PROFILE, ASR, LOGS = "manifest.json", "profile.json", "asr.json", "*.eval"
TABLE, DYNAMICS, TRAINING = "table.json", "dynamics.json", "training.json"
ROLES = {"measure": "harmful", "attack": "harmful", "overrefusal": "twins", "unseen": "unseen"}  # by folder name
STORY = ("base", "aligned", "deepened")  # models with these names are shown in this order, before all others
SKIPPED_FOLDERS = ("checkpoint", "rows", "trainer")  # parts of a run, not runs
WHAT = ("k", "prefix", "lead", "thinking")  # the parameters that say which attack it is; all others are settings
SCORERS = {
    "base": " by an unaligned model",
    "judge": " by the offline judge",
}  # of rank-prefill, as its cost names them
NOT_SETTINGS = (*WHAT, "seed", "data")  # the data has its own place, and seeds may differ in a comparison
PROFILE_KEYS = ("recovery", "depth", "meta")
RECOVERY_KEYS, KL_KEYS = ("k", "log_odds", "recovered", "n"), ("mean", "stderr", "n")
ROW_KEYS = ("attack", "params", "judge", "rate", "low", "high", "n", "unscored", "model")


@dataclass(frozen=True)
class Run:
    """One folder that a verb wrote. `rows` are those of asr.json; None is a part that is not there.

    `cut` names the logs of a folder without a manifest that did not come to their end.
    """

    folder: Path
    manifest: Mapping[str, Any]
    profile: Mapping[str, Any] | None = None
    rows: Sequence[Mapping[str, Any]] | None = None
    samples: Sequence[Sample] | None = None
    label: str = ""
    role: str = "harmful"
    attack_checkpoint: bool = False  # the model was trained on attack rows
    cut: Sequence[str] = ()
    table: Sequence[Mapping[str, Any]] | None = None  # of a fine-tuning attack
    dynamics: Mapping[str, Any] | None = None  # of a training that was watched
    training: Mapping[str, Any] | None = None  # the log of a fine-tuning
    one_lead: bool = False  # whether all runs of the report that have a text before their prefills have the same one

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run; nothing where there is no manifest."""
        return self.manifest.get("config") or {}

    @property
    def file(self) -> str:
        """The data file by its name alone."""
        return file_name(self.config.get("data"))

    def cost(self, attack: str) -> Mapping[str, Any]:
        """What finding the attack's prompts has cost, before the model was asked."""
        return (self.manifest.get("cost") or {}).get(attack) or {}

    def digest(self, params: Mapping[str, Any]) -> str | None:
        """The hash of the data, as a row's parameters or the manifest tell it."""
        found = params.get("data") or (self.manifest.get("inputs") or {}).get("data")
        return found if isinstance(found, str) else None

    @cached_property
    def answers(self) -> Mapping[str, list[Sample]]:
        """The samples by what they are about (`key_of`, with the attack)."""
        found: dict[str, list[Sample]] = defaultdict(list)
        for one in self.samples or ():
            found[key_of(one.model, one.judge, one.params, one.attack)].append(one)
        return dict(found)

    def behind(self, row: Mapping[str, Any]) -> list[Sample]:
        """The samples that a row counts."""
        return self.answers.get(key_of(row["model"], row["judge"], row["params"], row["attack"]), [])

    @property
    def verb(self) -> str:
        return str(self.manifest.get("verb") or ("measure" if self.profile else "attack"))

    @property
    def finished(self) -> bool:
        return self.manifest.get("status") != "running" and not self.cut


@dataclass(frozen=True)
class Series:
    """The rates of one model on the same data under one judge and one set of sampling settings."""

    name: str
    label: str
    role: str
    judge: str
    settings: Mapping[str, Any]
    rows: Mapping[Condition, Mapping[str, Any]]
    samples: Mapping[Condition, Sequence[Sample]] | None
    folder: Path = field(compare=False)
    file: str = field(default="", compare=False)  # the name of the data
    seed: int | None = None  # the first of its samples; two models may be compared under different ones

    def first_samples(self, condition: Condition) -> dict[str, Sample]:
        """Prompt id -> its sample with the lowest seed, so that each prompt counts once."""
        found: dict[str, Sample] = {}
        for sample in sorted((self.samples or {}).get(condition, ()), key=lambda sample: sample.seed):
            found.setdefault(sample.prompt_id, sample)
        return found

    def plain(self) -> Condition | None:
        """The condition with nothing prefilled."""
        return next((c for c in (("prefill", 0), ("none", None)) if c in self.rows), None)

    def ks(self) -> list[int]:
        return sorted(k for attack, k in self.rows if attack == "prefill")


def runs(dirs: Sequence[str | Path], read: Reader | None = None) -> list[Run]:
    """Every run in `dirs` and the folders below them, each once, models of the demo in the order of its story.

    Args:
        read: reads the judged samples of a folder; the default reads Inspect logs.

    Raises:
        InputError: a folder that is missing, holds no run, or holds a damaged file. Folders below it with nothing but
            other people's evaluation logs are passed over: see `foreign`.
    """
    if not dirs:
        raise InputError("No run folder is given; name the folders that the other verbs wrote.")
    found: dict[Path, Run] = {}
    for name in dirs:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise InputError(f"There is no folder {name}; name folders that the other verbs wrote.")
        here = [path for path in _walk(folder) if _is_run(path) and not _is_frame(path)]
        if not here:
            raise InputError(
                f"{name} holds no {PROFILE}, {ASR}, {MANIFEST} or evaluation log of an attack, nor do the folders below; "
                "name folders that the other verbs wrote."
            )
        for path in here:
            found.setdefault(path.resolve(), _read(path, read or _inspect_samples))
    leads = {lead for run in found.values() for row in run.rows or () if (lead := row["params"].get("lead"))}
    labelled = [replace(run, one_lead=len(leads) == 1) for run in _label(list(found.values()))]
    order = list(dict.fromkeys([*STORY, *(run.label for run in labelled)]))
    return sorted(labelled, key=lambda run: order.index(run.label))


def _is_frame(folder: Path) -> bool:
    """Whether the folder is that of a demo, which only holds the folders of other runs."""
    return _verb(folder) == "demo"


def _verb(folder: Path) -> Any:
    return (_json(folder / MANIFEST, dict) or {}).get("verb")


def foreign(dirs: Sequence[str | Path]) -> list[Path]:
    """The folders in `dirs` and below them that hold evaluation logs and nothing of ours."""
    folders = {path.resolve(): path for name in dirs for path in _walk(Path(name).expanduser())}
    return [path for path in folders.values() if _has_logs(path) and not _is_run(path)]


def series(found: Iterable[Run]) -> list[Series]:
    """The rates of all runs, one series for each model, data, judge and set of settings."""
    built = _merged([one for run in found if run.rows is not None for one in _of_run(run)])
    groups: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in built:
        groups[one.role, one.label].append(one)
    named = [replace(one, name=_name(one, groups[one.role, one.label])) for one in built]
    names = [(one.role, one.name) for one in named]
    twice = [one for one in named if names.count((one.role, one.name)) > 1]  # the same attack under the same settings
    folders = [(one.role, one.name, one.folder.name) for one in twice]
    where = [o.folder.name if folders.count(f) == 1 else str(o.folder) for o, f in zip(twice, folders, strict=True)]
    told = {id(one): replace(one, name=f"{one.name}, {folder}") for one, folder in zip(twice, where, strict=True)}
    return [told.get(id(one), one) for one in named]


def _merged(built: Sequence[Series]) -> list[Series]:
    """One series of those that only differ in the attacks that were run, each in a folder of its own."""
    merged: list[Series] = []
    for one in built:
        at = next((i for i, other in enumerate(merged) if _same_series(other, one)), None)
        if at is None:
            merged.append(one)
        else:
            other = merged[at]
            samples = None if other.samples is None else {**other.samples, **(one.samples or {})}
            merged[at] = replace(other, rows={**other.rows, **one.rows}, samples=samples)
    return merged


def _same_series(first: Series, second: Series) -> bool:
    def same(one: Series) -> tuple[Any, ...]:
        model = next(iter(one.rows.values()))["model"]
        return one.label, model, one.role, one.judge, one.settings, one.seed, one.samples is None

    return "data" in first.settings and same(first) == same(second) and not first.rows.keys() & second.rows.keys()


def pairs(found: Sequence[Series]) -> list[tuple[Series, Series]]:
    """Each series with the one of the model before it on the same data under the same judge, settings and role; of
    several, the one with most attacks in common, then the one with the same seed."""
    result = []
    for index, after in enumerate(found):
        earlier = [before for before in reversed(found[:index]) if _comparable(before, after)]
        nearest = [before for before in earlier if before.label == earlier[0].label]
        if nearest:
            alike = [(len(one.rows.keys() & after.rows.keys()), one.seed == after.seed) for one in nearest]
            result.append((nearest[alike.index(max(alike))], after))
    return result


def _comparable(before: Series, after: Series) -> bool:
    same = (before.role, before.judge, before.settings) == (after.role, after.judge, after.settings)
    return same and before.label != after.label


def condition(run: Run, row: Mapping[str, Any]) -> Condition:
    """What a row's attack did to the prompt, without the sampling settings."""
    attack, params = row["attack"], row["params"]
    if attack == "rank-prefill":  # other walks are other attacks
        length, by = run.config.get("rank_length"), SCORERS.get(str(run.cost(attack).get("scorer")), "")
        return f"{attack}{f' of {length} tokens' if length else ''}{by}", None
    if params.get("lead") or params.get("thinking"):  # another attack than the k tokens alone
        which = "" if run.one_lead else f" ({params.get('lead')})"
        where = f" behind a text{which}" if params.get("lead") else ""
        return f"prefill k = {params['k']}{where}{' inside the thinking block' if params.get('thinking') else ''}", None
    return attack, next((params[name] for name in ("k", "prefix") if name in params), None)


def settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling and judging settings among an attack's parameters."""
    return {name: value for name, value in sorted(params.items()) if name not in NOT_SETTINGS}


# --- reading ------------------------------------------------------------------------------------


def _walk(folder: Path) -> Iterator[Path]:
    yield folder
    if _verb(folder) == "poison":  # what lies below is in its table; name a folder below to see that run alone
        return
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith((".", "checkpoint-")) or path.name in SKIPPED_FOLDERS
        if path.is_dir() and not path.is_symlink() and not hidden:
            yield from _walk(path)


def _is_run(folder: Path) -> bool:
    if any((folder / name).is_file() for name in (MANIFEST, PROFILE, ASR, DYNAMICS)):
        return True
    return _has_logs(folder) and _has_our_logs(folder)


def _has_logs(folder: Path) -> bool:
    return next(folder.glob(LOGS), None) is not None


def _has_our_logs(folder: Path) -> bool:
    from tokendeep.evals import logs

    return logs.has_logs(folder)


def _read(folder: Path, read: Reader) -> Run:
    manifest = _json(folder / MANIFEST, dict) or {}
    profile = _json(folder / PROFILE, dict, PROFILE_KEYS)
    if profile is not None:
        _check_profile(profile, folder / PROFILE)
    samples = (read(folder) or None) if _has_logs(folder) and manifest.get("status") != "running" else None
    rows = _json(folder / ASR, list)
    for number, row in enumerate(rows or [], 1):
        _need(row, ROW_KEYS, f"{folder / ASR}, row {number}")
        _object(row["params"], f"{folder / ASR}, row {number}, params")
    if rows == [] and not samples:
        raise InputError(f"{folder / ASR} holds no rate; run the attack again with --overwrite.")
    if rows is None and samples:
        rows = _rates(folder, samples)
    role = manifest.get("role") or ROLES.get(folder.name, "harmful")
    cut = _unfinished(folder) if not manifest and _has_logs(folder) else ()
    flagged = _from_attack(manifest)
    table = _json(folder / TABLE, list) if manifest.get("verb") == "poison" else None
    for number, line in enumerate(table or [], 1):
        _need(line, ("objective", "seeds"), f"{folder / TABLE}, line {number}")
    dynamics = _json(folder / DYNAMICS, dict, ("meta", "steps"))
    tuned = manifest.get("verb") == "finetune" and manifest.get("status") != "running"
    training = _json(folder / TRAINING, dict, ("history", "steps")) if tuned else None
    return Run(folder, manifest, profile, rows, samples, role=role, attack_checkpoint=flagged, cut=cut, table=table,
               dynamics=dynamics, training=training)  # fmt: skip


def _json(path: Path, kind: type, keys: Sequence[str] = ()) -> Any:
    """The content of a JSON file of ours, or None where there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); run the verb that wrote it again.") from error
    if not isinstance(value, kind):
        raise InputError(f"{path} holds no {'object' if kind is dict else 'list'}; run the verb that wrote it again.")
    _need(value, keys, str(path))
    return value


def _check_profile(profile: Mapping[str, Any], path: Path) -> None:
    """The parts of profile.json that the report reads, so that a damaged file is named and not stumbled over."""
    _object(profile["meta"], f"{path}, meta")
    _need(profile["depth"], ("recovery_k",), f"{path}, depth")
    for name, figure in profile["depth"].items():
        _need(figure, ("value",), f"{path}, depth, {name}")
    _columns(profile["recovery"], RECOVERY_KEYS, f"{path}, recovery")
    for name in ("kl", "kl_benign"):
        if profile.get(name) is not None:
            _columns(profile[name], KL_KEYS, f"{path}, {name}")
    if profile.get("per_prompt") is not None:
        _object(profile["per_prompt"], f"{path}, per_prompt")


def _columns(value: Any, keys: Sequence[str], where: str) -> None:
    """An object with lists of one length, which is not 0."""
    _need(value, keys, where)
    sizes = {len(value[key]) if isinstance(value[key], list) else 0 for key in keys}
    if len(sizes) > 1 or 0 in sizes:
        raise InputError(f"{where} needs {', '.join(keys)} as lists of one length; run the verb that wrote it again.")


def _object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where} holds no object; run the verb that wrote it again.")


def _need(value: Any, keys: Sequence[str], where: str) -> None:
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}; run the verb that wrote it again.")


def _inspect_samples(folder: Path) -> list[Sample]:
    """The judged samples of a folder, none where all logs are other people's."""
    from tokendeep.evals import logs

    return logs.read_samples(folder) if logs.has_logs(folder) else []


def _unfinished(folder: Path) -> list[str]:
    from tokendeep.evals import logs

    return logs.unfinished(folder)


def _rates(folder: Path, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The rows of asr.json for a folder that plain `inspect eval` wrote."""
    from tokendeep.evals import logs, rates

    return rates.asr(samples, logs.read_skipped(folder)).dump()


def _from_attack(manifest: Mapping[str, Any]) -> bool:
    """Whether this run, or the checkpoint it used, was trained on attack rows and says so."""
    model = Path(str((manifest.get("config") or {}).get("model") or "")).expanduser()
    nearby = [model / MANIFEST, model.parent / MANIFEST] if model.parts else []
    used = [_json(path, dict) for path in nearby if model.is_dir()]
    return any(found is not None and found.get("attack") is True for found in [manifest, *used])


# --- names --------------------------------------------------------------------------------------


def model_of(run: Run) -> str:
    """The model as the run names it."""
    meta = (run.profile or {}).get("meta") or {}
    first = run.rows[0]["model"] if run.rows else None
    return str(run.config.get("model") or meta.get("model") or first or run.folder.name)


def _label(found: list[Run]) -> list[Run]:
    """Give each run a short model name: the manifest's label, else the folder above where that tells models apart
    (aligned/measure, deepened/measure), else the model's own name."""
    above = _folders_above(found)
    names = _short({model_of(run) for run in found})
    return [
        replace(run, label=str(run.manifest.get("label") or above.get(run.folder) or names[model_of(run)]))
        for run in found
    ]


def _folders_above(found: Sequence[Run]) -> dict[Path, str]:
    """Run folder -> name of the folder above, where two or more of them each hold the runs of one model."""
    parents: dict[Path, list[Run]] = defaultdict(list)
    for run in found:
        if run.folder.name in ROLES:
            parents[run.folder.resolve().parent].append(run)
    one_each = all(len({model_of(run) for run in group}) == 1 for group in parents.values())
    if len({parent.name for parent in parents}) < max(2, len(parents)) or not one_each:
        return {}
    return {run.folder: parent.name for parent, group in parents.items() for run in group}


def _short(models: Iterable[str]) -> dict[str, str]:
    """Model -> the shortest end of its name that no other model shares."""
    result = {}
    parts = {model: _parts(model) for model in models}
    for model, own in parts.items():
        others = [other for name, other in parts.items() if name != model]
        size = next((n for n in range(1, len(own)) if all(o[-n:] != own[-n:] for o in others)), len(own))
        result[model] = "/".join(own[-size:])
    return result


def _parts(model: str) -> list[str]:
    """The parts of a path without a closing `checkpoint`; a hub id (owner/name) is one part."""
    is_path = model.startswith(("/", ".", "~")) or model.count("/") > 1 or "\\" in model
    if not is_path:
        return [model]
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    return parts[:-1] if len(parts) > 1 and parts[-1] == "checkpoint" else parts


def data_of(run: Run) -> str:
    """The run's data file by its name and the first signs of its hash; nothing where the manifest does not say."""
    digest = run.digest({})
    return f"{run.file} ({digest[:8]})" if run.file and digest else run.file


def file_name(path: Any) -> str:
    """The last part of a path, on whatever system it was written."""
    return str(path or "").replace("\\", "/").rsplit("/", 1)[-1]


# --- series -------------------------------------------------------------------------------------


def _of_run(run: Run) -> list[Series]:
    labels = labels_of(run)
    result = []
    for rows in _together(run.rows or ()):
        first = next((row for attack in ("prefill", "none") for row in rows if row["attack"] == attack), rows[0])
        label = labels[first["model"]]
        conditions = [condition(run, row) for row in rows]
        found = {which: run.behind(row) for which, row in zip(conditions, rows, strict=True)}
        result.append(
            Series(
                name=label,
                label=label,
                role=run.role,
                judge=first["judge"],
                settings={**settings(first["params"]), "samples": first.get("samples", 1), **_data(run, first)},
                rows=dict(zip(conditions, rows, strict=True)),
                samples=None if run.samples is None else found,
                folder=run.folder,
                file=run.file,
                seed=first["params"].get("seed"),
            )
        )
    return result


def labels_of(run: Run) -> dict[str, str]:
    """Model -> its label; a folder of logs can hold several models."""
    names = {row["model"] for row in run.rows or ()}
    return _short(names) if len(names) > 1 else dict.fromkeys(names, run.label)


def _together(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows by series: same model, judge, settings, data and seed.

    What is judged behind a prefix is a question of prefill alone: a plain request has no prefix, and behind a refusal
    prefix the judge decides. Those rows stand with the prefills however these are judged.
    """
    views: dict[str, Any] = {}
    rows = [row for row in rows if row["attack"] not in ("decoding", "suffix")]  # sections of their own
    for row in rows:
        if row["attack"] == "prefill":
            views.setdefault(key_of(row["model"], row["judge"], row["params"]), row["params"].get("judged"))
    groups: dict[tuple[str, Any], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        key = key_of(row["model"], row["judge"], row["params"])
        groups[key, row["params"].get("judged") if row["attack"] == "prefill" else views.get(key)].append(row)
    return list(groups.values())


def _data(run: Run, row: Mapping[str, Any]) -> dict[str, str]:
    """The data by the first signs of its hash, where the row or the manifest tells it."""
    digest = run.digest(row["params"])
    return {"data": digest[:8]} if digest else {}


def key_of(model: str, judge: str, params: Mapping[str, Any], attack: str | None = None) -> str:
    """What a row is about: with the attack all of it, without it what the rows of one series share."""
    left_out = () if attack else (*WHAT, "judged")
    kept = {name: value for name, value in params.items() if name not in left_out and value is not None}
    return json.dumps([model, judge, attack, kept], sort_keys=True, default=str)


def _name(one: Series, siblings: Sequence[Series]) -> str:
    """The label, with what tells this series from others of the same model."""
    if len(siblings) == 1:
        return one.label
    both = {(s.file, s.settings.get("data")) for s in siblings}
    by_file = len({file for file, _ in both}) == len({data for _, data in both}) == len(both)  # else by its hash

    def told(s: Series) -> dict[str, Any]:
        return {"judge": s.judge, **s.settings, "seed": s.seed, **({"data": s.file} if by_file else {})}

    mine, others = told(one), [told(other) for other in siblings]
    differing = {name: value for name, value in mine.items() if any(o.get(name) != value for o in others)}
    if differing.get("samples") == 1 and "temperature" in differing:  # said by the other
        del differing["samples"]
    words = [str(value) if name == "data" and by_file else _setting(name, value) for name, value in differing.items()]
    return f"{one.label} ({', '.join(filter(None, words)) or one.folder})"


def _setting(name: str, value: Any) -> str:
    if name == "samples":
        return f"{value} sample{'' if value == 1 else 's'}"
    if name == "temperature" and value == 0:
        return "greedy"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
