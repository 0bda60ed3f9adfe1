"""VERB attack: put attacked prompts to a model, judge what it says, count.

All attacks go through one model load and one queue. Each judged sample is on disk before the next one starts to be
written, so a run that is killed goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from inspect_ai import Task, eval_set
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, get_model
from tqdm import tqdm

from tokendeep import chat, data, models, runs
from tokendeep.attacks import decoding as sampling
from tokendeep.attacks import prefill as attacks
from tokendeep.attacks import suffix as endings
from tokendeep.attacks import walks
from tokendeep.errors import InputError, explain, guarded
from tokendeep.evals import logs, rates, tasks
from tokendeep.evals.provider import CONTINUING, NAME, OPTIONS, TokendeepAPI, live_model
from tokendeep.evals.scorers import JUDGED, JUDGES, unknown
from tokendeep.evals.session import Session, use
from tokendeep.models.options import ModelOptions
from tokendeep.records import Params, Rates
from tokendeep.runs import parts
from tokendeep.types import Subject
from tokendeep.verbs.options import AttackConfig

WALKED = "rank-prefill"
ELSEWHERE = "inspect/"  # any other Inspect provider: inspect/PROVIDER/NAME
QUEUED = 8  # batches of samples under way in each task: prefixes are shared, and the first batch starts at once
ROLES = ("harmful", "twins", "unseen")  # what asking for the rows is
FLUSHES = 2000  # a log is rewritten whole at each flush: beyond so many samples, not after each of them
NO_IDENTITY = ("batch_size", "device", "device_map")  # Inspect would take a run with others for another one
LEFTOVERS = (".inspect_tmp_*.writing", "logs.json", "eval-set.json", ".eval-set-id")


def run(config: AttackConfig, subject: Subject | None = None, *, show: bool = True) -> Path:
    """Attack `config.model`, write the logs, asr.json and manifest.json into `config.out` and return that folder.

    Args:
        subject: the model, where the caller has it in memory already.
        show: print the table of rates.

    Raises:
        InputError: anything wrong with the settings, the data or the model, before the weights are loaded where it shows.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    names = check(config)
    model = _model(config, subject)
    if WALKED in names and not isinstance(model.api, TokendeepAPI):
        raise InputError(f"{WALKED} reads the model's own logits: it is for models that tokendeep loads itself")
    with use(Session(model)) as session:
        todo = [_task(name, config) for name in names if name != WALKED]
        state = runs.open_run(config.out, "attack", _recorded(config), _inputs(config), overwrite=config.overwrite)
        if state.finished:
            print(f"attack: {state.out} already holds this finished run")
            return state.out
        runs.private_dir(state.out)
        cost: dict[str, Any] = {}
        if "suffix" in names:
            prompts = tasks.read_prompts(config.data, _settings(config))
            source = str(config.suffixes)
            cost["suffix"] = {**endings.cost(endings.load(source), prompts), **endings.search_of(source)}
        if WALKED in names:
            task, cost[WALKED] = _walked(config, model, state)
            todo.append(task)
        runs.write_jsonl(state.out / "attacked.jsonl", (row for task in todo for row in _attacked(task)), private=True)
        with _private():
            _evaluate(todo, session, config, state.out)
    rows = rates.asr(logs.read_samples(state.out), logs.read_skipped(state.out))
    runs.write_json(state.out / "asr.json", rows.dump())
    said = {name: value for name in ("label", "role") if (value := getattr(config, name))}
    parts.remove(state)
    state.finish(**_facts(model, config), **said, **({"cost": cost} if cost else {}))
    if show:
        print(describe(rows))
    return state.out


def _walked(config: AttackConfig, model: Model, state: runs.Run) -> tuple[Task, dict[str, Any]]:
    """The task of the attack that needs the victim's weights to find its prefixes, and what finding them has cost."""
    api = model.api
    assert isinstance(api, TokendeepAPI)
    api.subject = api.subject or models.load(config.model, options=config)
    settings = _settings(config)
    prompts, cost = walks.attacked(tasks.read_prompts(config.data, settings), api.subject, config, state)
    return tasks.build(WALKED, config.data, prompts, settings), cost


def check(config: AttackConfig) -> list[str]:
    """The attacks to run. Raises InputError for anything wrong that shows without reading a file."""
    names = list(dict.fromkeys(name.strip() for name in config.attack.split(",") if name.strip()))
    if not names:
        raise InputError(f"no attack is named: choose from {', '.join(rates.ATTACKS)}")
    for name in names:
        if name not in rates.ATTACKS:
            raise InputError(unknown("attack", name, rates.ATTACKS))
    if config.judge not in JUDGES:
        raise InputError(unknown("judge", config.judge, JUDGES))
    if config.judged not in JUDGED:
        raise InputError(unknown("value of judged", config.judged, JUDGED))
    if config.role is not None and config.role not in ROLES:
        raise InputError(unknown("role", config.role, ROLES))
    _settings(config).decoding()
    if config.batch_size < 1:
        raise InputError(f"batch_size = {config.batch_size} is below 1")
    if "prefill" in names:
        attacks.check_ks(config.k)
    if "refusal-prefix" in names:
        attacks.check_prefixes(config.prefixes)
    if "decoding" in names:
        sampling.parse_grid(config.grid)
    if WALKED in names:
        walks.check(config)
    if "suffix" in names:
        if not config.suffixes:
            raise InputError("suffix needs --suffixes: the folder that gcg wrote, or a file with rows of suffixes")
        endings.load(config.suffixes)
    return names


def describe(rows: Rates) -> str:
    """The rates as a table for the terminal: no text of prompts or answers."""
    lines = [("attack", "", "non-refusal", "95 % interval", "n", "broken off", "unscored")]
    for row in rows:
        rate, interval, partial = "-", "-", "-"
        if row.rate is not None:
            rate, interval = f"{row.rate:.3f}", f"{row.low:.3f}-{row.high:.3f}"
            partial = "-" if row.partial_rate is None else f"{row.partial_rate:.3f}"
        lines.append((row.attack, _which(row.params)[:27], rate, interval, str(row.n), partial, str(row.unscored)))
    return "\n".join("{:<16}{:<28}{:>12}  {:<14}{:>5}{:>12}{:>10}".format(*line) for line in lines)


def _which(params: Params) -> str:
    """What tells a row from others of its attack."""
    if params.any_of is not None:
        return f"any of {params.settings} ({params.any_of})"
    return f"k={params.k}" if params.k is not None else params.prefix or params.setting or params.suffix or ""


def _model(config: AttackConfig, subject: Subject | None) -> Model:
    """Inspect's handle on the model; weights are loaded at the first request."""
    if subject is not None:
        return live_model(subject, batch_size=config.batch_size)
    spec = config.model.removeprefix(ELSEWHERE)
    if spec != config.model or spec.split("/")[0] in CONTINUING:
        for name in OPTIONS:
            if getattr(config, name) != getattr(ModelOptions(), name):
                raise InputError(f"{name} is for models that tokendeep loads itself: set it where {spec} is served")
        try:
            return get_model(spec, memoize=False)
        except Exception as error:  # each provider has its own way to say what it misses
            raise InputError(f"the Inspect model {spec} cannot be used ({error}): check its name and set-up") from error
    options = {field.name: getattr(config, field.name) for field in fields(ModelOptions) if field.name in OPTIONS}
    model = get_model(f"{NAME}/{config.model}", memoize=False, batch_size=config.batch_size, **options)
    for name in NO_IDENTITY:
        model.model_args.pop(name, None)
    return model


def _facts(model: Model, config: AttackConfig) -> dict[str, Any]:
    """What the manifest keeps of the model; a run that only had to be counted has not loaded it."""
    if not isinstance(model.api, TokendeepAPI):
        return {"model": {"name": config.model}}
    loaded = model.api.subject
    about = {"revision": loaded.revision, "adapter": loaded.adapter} if loaded else {}
    return {"model": {"name": config.model, **about}, "template": chat.template_hash(model.api.tokenizer)}


def _recorded(config: AttackConfig) -> dict[str, Any]:
    """The settings as the manifest keeps them: prefixes and system prompts of the user by their hash."""
    names = None if config.prefixes is None else attacks.prefix_names(config.prefixes)
    lead = runs.fingerprint(config.lead) if config.lead else ""
    return {**asdict(config), "prefixes": names, "lead": lead, "system": runs.system_name(config.system)}


def _inputs(config: AttackConfig) -> dict[str, Any]:
    """The files of the run, which tell it from another."""
    found: dict[str, Any] = {"data": data.identity(config.data)}
    if config.suffixes and "suffix" in config.attack:
        found["suffixes"] = endings.path_of(config.suffixes)
    return found


def _settings(config: AttackConfig) -> tasks.Settings:
    return tasks.Settings(**{field.name: getattr(config, field.name) for field in fields(tasks.Settings)})


def _task(name: str, config: AttackConfig) -> Task:
    shared = asdict(_settings(config))
    if name == "none":
        return tasks.none(config.data, **shared)
    if name == "prefill":
        return tasks.prefill(config.data, k=list(config.k), lead=config.lead, thinking=config.thinking, **shared)
    if name == "decoding":
        own = {key: value for key, value in shared.items() if key not in sampling.KNOBS}
        return tasks.decoding(config.data, grid=list(config.grid), **own)
    if name == "suffix":
        return tasks.suffix(config.data, suffixes=str(config.suffixes), **shared)
    return tasks.refusal_prefix(config.data, prefixes=config.prefixes, **shared)


def _attacked(task: Task) -> Iterator[dict[str, Any]]:
    """The task's prompts as rows of attacked.jsonl: what the model is given, prefill included."""
    for sample in task.dataset:
        messages = [{"role": message.role, "content": message.text} for message in sample.input]  # type: ignore[union-attr]
        yield {"id": sample.id, "messages": messages, **(sample.metadata or {})}


def _evaluate(todo: list[Task], session: Session, config: AttackConfig, out: Path) -> None:
    """Run the tasks to their end, reusing what earlier attempts in `out` have finished.

    Raises:
        InputError: what went wrong with a sample, or that the disk is full.
        KeyboardInterrupt: the user stopped the run.
    """
    for leftover in out.glob(LEFTOVERS[0]):  # of a write that was cut off
        leftover.unlink()
    total = sum(len(task.dataset) for task in todo) * config.samples
    largest = max(len(task.dataset) for task in todo) * config.samples
    api = session.model.api
    ours = api if isinstance(api, TokendeepAPI) else None
    with tqdm(total=total, initial=logs.finished_samples(out), desc="attack", unit="answer") as bar:
        session.on_judged = lambda: bar.update() and None
        if ours:
            session.on_failure = ours.fail
        try:
            with guarded(out):
                _, written = eval_set(
                    todo,
                    log_dir=str(out),
                    model=session.model,
                    max_tasks=len(todo),
                    max_samples=QUEUED * config.batch_size if ours else None,
                    max_connections=ours.max_connections() if ours else None,
                    retry_attempts=1,
                    retry_immediate=False,
                    display="none",
                    log_level="error",
                    log_realtime=False,  # its database would keep the texts outside the run's folder
                    log_buffer=max(1, largest // FLUSHES),
                    log_model_api=False,
                    ctl_server=False,
                    score_display=False,
                )
        finally:
            if ours:
                ours.close()
    if len(written) < len(todo) or any(log.status != "success" for log in written):
        _raise_failure(session, written, out)
    _tidy(written, out)


def _tidy(logs: Sequence[EvalLog], out: Path) -> None:
    """Leave one log for each task: remove those of attempts that were cut off, and Inspect's own bookkeeping."""
    kept = {Path(urlparse(log.location).path).name for log in logs}
    for path in [*out.glob("*.eval"), *(path for pattern in LEFTOVERS for path in out.glob(pattern))]:
        if path.name not in kept:
            path.unlink()


def _raise_failure(session: Session, logs: Sequence[EvalLog], out: Path) -> None:
    """Turn the status of unfinished tasks into the error that stopped them."""
    if session.failures:
        raise session.failures[0]
    served = not isinstance(session.model.api, TokendeepAPI)
    if not logs or any(log.status == "cancelled" for log in logs):  # Inspect keeps Ctrl-C to itself
        raise KeyboardInterrupt
    for log in logs:
        if log.error is not None:
            if full := explain(RuntimeError(log.error.message), out):
                raise full
            why = f"the reason is in {log.location}" if served else log.error.message  # a server can quote the prompt
            raise InputError(f"the run stopped and can go on with the same command: {why}")
    raise InputError(f"the run did not finish: the same command goes on in {out}")


@contextmanager
def _private() -> Iterator[None]:
    """Files made meanwhile are readable by their owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
