"""A run of ours through Inspect: the model's handle, all tasks in one queue, and what stopped them as one error.

Knows nothing of what an attack does or of what a folder holds beside the logs.
"""

import asyncio
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from inspect_ai import Task, eval_set
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, get_model
from platformdirs import user_data_path

from tokendeep import chat, models, runs
from tokendeep.attacks.base import Attack
from tokendeep.defences.options import DefenceOptions
from tokendeep.engines.base import MOST_ROWS
from tokendeep.engines.options import FREE, EngineOptions
from tokendeep.errors import InputError, explain, guarded
from tokendeep.evals import flushing, grading, logs, served
from tokendeep.evals.provider import NAME, OPTIONS, SERVING, TokendeepAPI, live_model
from tokendeep.evals.session import Session, outside_loops, use
from tokendeep.evals.tasks import LATER, SERVED, TASKS, arguments, prefills
from tokendeep.models.options import ModelOptions
from tokendeep.progress import Bar
from tokendeep.runs.files import remove
from tokendeep.types import Subject

T = TypeVar("T")
DATA_HOME = "XDG_DATA_HOME"  # where Inspect keeps its traces, in a folder of its own
TRACE_LEVEL = "INSPECT_TRACE_LEVEL"  # what of its doings it writes there: a file that grows with the run
ELSEWHERE = "inspect/"  # any other Inspect provider: inspect/PROVIDER/NAME
# Inspect providers of which a second object would load the model again.
STARTING = frozenset({"vllm", "vllm-completions", "sglang", "hf", "llama-cpp-python", "transformer_lens", "nnterp"})
NO_IDENTITY = ("batch_size", "device", "device_map")  # Inspect would take a run with others for another one


def open_model(
    name: str,
    options: ModelOptions,
    batch_size: int,
    subject: Subject | None = None,
    base: str | None = None,
    engine: EngineOptions | None = None,
    max_retries: int = 6,
    needs_template: bool = True,
    defence: DefenceOptions | None = None,
) -> Model:
    """Inspect's handle on the model; weights are loaded at the first request.

    Args:
        name: what `models.load` takes, or an Inspect model that runs elsewhere.
        subject: the model, where the caller has it in memory already.
        base: the full model that an adapter belongs to, in place of the one it names.
        engine: who answers, where that is not the model loaded here.
        max_retries: how often a server that fails is asked again.
        needs_template: False for a model that gets its prompts as token ids alone.
        defence: what stands between requests and answers.

    Raises:
        InputError: a model that cannot be there, or options for one that runs elsewhere.
    """
    defended = defence.defended() if defence else {}
    if engine is not None and engine.served:
        more = defended | ({} if needs_template else {"needs_template": False})
        return _on_server(name, options, subject, base, engine, max_retries, more)
    if subject is not None:
        models.check_no_base(base)
        return live_model(subject, batch_size=batch_size, defended=defended)
    spec = name.removeprefix(ELSEWHERE)
    if spec != name or spec.split("/")[0] in SERVING:
        if base is not None:
            raise InputError(
                f"--base is for adapters that tokendeep loads itself: {spec} is loaded where it is served."
            )
        if defended:
            raise InputError(
                f"--defence gives the model token ids, and {spec} takes texts: name the model's folder or hub id with --model, "
                "and a server with --engine."
            )
        return _served(spec, options)
    loading = {field: getattr(options, field) for field in OPTIONS}
    loading |= {"adapter_base": base} if base is not None else {}
    loading |= {} if needs_template else {"needs_template": False}
    loading |= defended
    model = get_model(f"{NAME}/{name}", memoize=False, batch_size=batch_size, **loading)
    dated = ["date"] if options.date == ModelOptions().date else []  # which was not always there
    for field in (*NO_IDENTITY, *dated):
        model.model_args.pop(field, None)
    return model


def _on_server(
    name: str,
    options: ModelOptions,
    subject: Subject | None,
    base: str | None,
    engine: EngineOptions,
    max_retries: int,
    more: Mapping[str, Any],
) -> Model:
    """A model whose weights are on a server, which is given token ids."""
    if subject is not None:
        raise InputError("The model is in memory already, so no server is asked: leave --engine out.")
    if name.startswith(ELSEWHERE) or name.split("/")[0] in SERVING:
        raise InputError(
            f"--engine is given token ids, and {name} texts: name the model's folder or hub id with --model."
        )
    own = {field: getattr(options, field) for field in OPTIONS} | {"adapter_base": base, "max_retries": max_retries}
    own |= more
    where = {field.name: getattr(engine, field.name) for field in fields(EngineOptions)}
    model = get_model(f"{NAME}/{name}", memoize=False, **own, **where)
    for field in (*NO_IDENTITY, *where, "max_retries"):
        model.model_args.pop(field, None)
    model.model_args["engine"] = "server"
    return model


def _served(spec: str, options: ModelOptions) -> Model:
    """A model that runs elsewhere."""
    for name in OPTIONS:
        if getattr(options, name) != getattr(ModelOptions(), name):
            raise InputError(f"{name} is for models that tokendeep loads itself: set it where {spec} is served.")
    try:
        model = get_model(spec, memoize=False)
    except Exception as error:  # each provider has its own way to say what it misses
        plain = " ".join(re.sub(r"\[/?[a-z]+\]", "", str(error)).split())  # without marks of boldness
        why = plain.removeprefix("ERROR: ").rstrip(". ")
        way = "install tokendeep[servers], which has it" if _misses_openai(why) else "check its name and set-up"
        raise InputError(f"The Inspect model {spec} cannot be used ({why}): {way}.") from error
    served.tell_of_waiting(model)
    return model


def _misses_openai(why: str) -> bool:
    """Whether the package openai is what a provider lacks."""
    return re.search(r"\bopenai\b", why) is not None and re.search(r"install|upgrade|No module", why) is not None


def facts(model: Model, name: str) -> dict[str, Any]:
    """What the manifest keeps of the model, also where it was not loaded since all answers were there."""
    if not isinstance(model.api, TokendeepAPI):
        return {"model": {"name": name}}  # what a prefill becomes there stands in the logs
    known = {} if model.api.served else model.api.about()
    about = {field: known[field] for field in ("revision", "adapter", "dtype") if field in known}
    return {"model": {**about, "name": name}, "template": chat.template_hash(model.api.tokenizer)}


def tasks_of(attacks: Sequence[Attack[Any]], options: Any, session: Session) -> list[Task]:
    """The tasks of a run whose prompts are prepared.

    Args:
        options: has the options of all attacks and those that all share, by their names.
    """
    with use(session):
        return [TASKS[attack.name](options.data, **_arguments(attack, options)) for attack in attacks]


def _arguments(attack: Attack[Any], options: Any) -> dict[str, Any]:
    """The arguments of a task; those that older versions did not have where they are given, so that Inspect knows its runs."""
    given = {name: getattr(options, name) for name in arguments(attack)}
    return {name: value for name, value in given.items() if value or name not in (*LATER, *SERVED)}


def attacked(task: Task) -> Iterator[Mapping[str, Any]]:
    """The task's prompts as rows of attacked.jsonl: what the model is given, prefill included."""
    for sample in task.dataset:
        messages = [{"role": message.role, "content": message.text} for message in sample.input]  # type: ignore[union-attr]
        yield {"id": sample.id, "messages": messages, **(sample.metadata or {})}


def evaluate(
    todo: Sequence[Task], session: Session, run: runs.Run, *, samples: int, batch_size: int, max_retries: int
) -> None:
    """Run the tasks to their end, reusing what earlier attempts in the run's folder have finished.

    Raises:
        InputError: what went wrong with a sample, or that the disk is full.
        KeyboardInterrupt: the user stopped the run.
    """
    sizes, out = [len(task.dataset) * samples for task in todo], run.out
    api = session.model.api
    ours = api if isinstance(api, TokendeepAPI) else None
    if ours and ours.served:
        run.agree("engine", ours.serving(), free=FREE)
    with guarded(out), _private() as place:
        inner, done, total = logs.gather(out), logs.finished_samples(out), sum(sizes)
        if done < total:  # what is wrong with the model is told before there is a bar
            outside_loops(partial(_meet, todo, session, max_retries), session)
        link = place / "logs"  # Inspect reads paths as addresses: #, % and ? in the user's must not reach it
        link.symlink_to(inner.resolve(), target_is_directory=True)
        with Bar(total, "answers", "answer", initial=done, settle=min(batch_size or MOST_ROWS, total - done)) as bar:
            session.judges = {(task.metadata or {})["attack"]: len(task.scorer or ()) for task in todo}
            session.on_judged = lambda: bar.update() and None
            if ours:
                session.on_failure = ours.fail
            try:
                with use(session):
                    work = partial(_eval_set, todo, session, link, max(sizes), batch_size, max_retries)
                    written = outside_loops(work, session)
            finally:
                for local in filter(None, (ours, _ours(session.grader))):
                    local.close()
        if len(written) < len(todo) or any(log.status != "success" for log in written):
            _raise_failure(session, written, inner)
        for log in written:
            name = logs.name_of(log)
            (inner / name).rename(run.claim(name))
        remove(inner)  # attempts that were cut off, and Inspect's own bookkeeping


def _ours(model: Model | None) -> TokendeepAPI | None:
    """The provider of a model that runs here."""
    return model.api if model is not None and isinstance(model.api, TokendeepAPI) else None


def _meet(todo: Sequence[Task], session: Session, max_retries: int) -> None:
    """Load the model, render the rows; or ask a server what it does with a prefill. Raises InputError for each."""
    model = session.model
    if isinstance(model.api, TokendeepAPI):
        model.api.start()
        _render(todo, model.api)
    elif any(prefills(task) for task in todo):
        trusted = any(bool((task.metadata or {}).get("continues")) for task in todo)
        asyncio.run(_ask_apart(model, trusted, max_retries))


async def _ask_apart(model: Model, trusted: bool, max_retries: int) -> None:
    """Find out a server's habit with a client that is closed with this event loop: the run has a loop of its own."""
    if str(model).split("/")[0] in STARTING:
        await served.habit(model, trusted, max_retries)
        return
    async with _served(str(model), ModelOptions()) as apart:
        await served.habit(apart, trusted, max_retries)
    served.take_over(apart, model)


def _render(todo: Sequence[Task], api: TokendeepAPI) -> None:
    """Render each conversation once. Raises InputError, naming the row, for one that the template cannot render."""
    asked = {repr([(m.role, m.text) for m in sample.input]): sample for task in todo for sample in task.dataset}  # type: ignore[union-attr]
    for sample in asked.values():  # many settings ask the same
        try:
            api.check(sample.input)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"Row {(sample.metadata or {})['prompt_id']}: {error}") from error


def _eval_set(
    todo: Sequence[Task], session: Session, folder: Path, largest: int, batch_size: int, max_retries: int
) -> list[EvalLog]:
    ours = session.model.api if isinstance(session.model.api, TokendeepAPI) else None
    with flushing.rhythm(largest, bool(ours and ours.served)) as at_once:
        _, written = eval_set(
            list(todo),
            log_dir=str(folder),
            log_dir_allow_dirty=True,  # a task that Inspect does not know again, of an older version, is asked anew
            model=session.model,
            model_roles={grading.ROLE: session.grader} if session.grader else None,
            max_tasks=len(todo),
            max_samples=ours.queue if ours else None,
            max_connections=ours.max_connections() if ours else None,
            log_realtime=False,  # its database would keep the texts outside the run's folder
            log_buffer=at_once,
            max_retries=max_retries, retry_attempts=1, retry_immediate=False,
            display="none", log_level="error", log_model_api=False, ctl_server=False, score_display=False,
        )  # fmt: skip
    return written


def _raise_failure(session: Session, written: Sequence[EvalLog], folder: Path) -> None:
    """Turn the status of unfinished tasks into the error that stopped them; their logs lie in `folder`."""
    if session.failures:
        raise session.failures[0]
    local = isinstance(session.model.api, TokendeepAPI)
    if not written or any(log.status == "cancelled" for log in written):  # Inspect keeps Ctrl-C to itself
        raise KeyboardInterrupt
    failed = [(log, log.error) for log in written if log.error is not None]
    for _, error in failed:  # what a full disk broke says so further back: one log's error can come of another's
        if full := explain(RuntimeError(f"{error.message}\n{error.traceback}"), folder):
            raise full
    for log, error in failed:  # a server's message can quote a prompt
        why = error.message if local else f"the reason is in {folder / logs.name_of(log)}"
        raise InputError(f"The run stopped and can go on with the same command: {why.rstrip('.')}.")
    raise InputError(f"The run did not finish: the same command goes on in {folder.parent}.")


@contextmanager
def _private() -> Iterator[Path]:
    """Files made meanwhile are readable by their owner alone; what Inspect keeps for itself has a place it can write.

    Yields a folder for the time of the run.
    """
    before, kept = os.umask(0o077), {name: os.environ.get(name) for name in (DATA_HOME, TRACE_LEVEL)}
    with tempfile.TemporaryDirectory() as place:
        try:
            os.environ.setdefault(TRACE_LEVEL, "CRITICAL")
            if not _can_write(user_data_path("inspect_ai")):
                os.environ[DATA_HOME] = place
            yield Path(place)
        finally:
            os.umask(before)
            for name, value in kept.items():
                os.environ.pop(name, None)
                os.environ |= {} if value is None else {name: value}


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
