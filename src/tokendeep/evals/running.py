"""A run of ours through Inspect: the model's handle, all tasks in one queue, and what stopped them as one error.

Knows nothing of what an attack does or of what a folder holds beside the logs.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from inspect_ai import Task, eval_set
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, get_model

from tokendeep import chat, models
from tokendeep.attacks.base import Attack
from tokendeep.errors import InputError, explain, guarded
from tokendeep.evals import logs
from tokendeep.evals.provider import CONTINUING, NAME, OPTIONS, TokendeepAPI, live_model
from tokendeep.evals.session import Session, use
from tokendeep.evals.tasks import LATER, SERVED, TASKS, arguments
from tokendeep.models.options import ModelOptions
from tokendeep.progress import Bar
from tokendeep.types import Subject

T = TypeVar("T")
ELSEWHERE = "inspect/"  # any other Inspect provider: inspect/PROVIDER/NAME
QUEUED = 8  # batches of samples under way in each task: prefixes are shared, and the first batch starts at once
FLUSHES = 2000  # a log is rewritten whole at each flush: beyond so many samples, not after each of them
NO_IDENTITY = ("batch_size", "device", "device_map")  # Inspect would take a run with others for another one
LEFTOVERS = (".inspect_tmp_*.writing", "logs.json", "eval-set.json", ".eval-set-id")


def open_model(
    name: str, options: ModelOptions, batch_size: int, subject: Subject | None = None, base: str | None = None
) -> Model:
    """Inspect's handle on the model; weights are loaded at the first request.

    Args:
        name: what `models.load` takes, or an Inspect model that runs elsewhere.
        subject: the model, where the caller has it in memory already.
        base: the full model that an adapter belongs to, in place of the one it names.

    Raises:
        InputError: a model that cannot be there, or options for one that runs elsewhere.
    """
    if subject is not None:
        models.check_no_base(base)
        return live_model(subject, batch_size=batch_size)
    spec = name.removeprefix(ELSEWHERE)
    if spec != name or spec.split("/")[0] in CONTINUING:
        if base is not None:
            raise InputError(
                f"--base is for adapters that tokendeep loads itself: {spec} is loaded where it is served."
            )
        return _served(spec, options)
    loading = {field: getattr(options, field) for field in OPTIONS}
    loading |= {"adapter_base": base} if base is not None else {}
    model = get_model(f"{NAME}/{name}", memoize=False, batch_size=batch_size, **loading)
    for field in NO_IDENTITY:
        model.model_args.pop(field, None)
    return model


def _served(spec: str, options: ModelOptions) -> Model:
    """A model that runs elsewhere."""
    for name in OPTIONS:
        if getattr(options, name) != getattr(ModelOptions(), name):
            raise InputError(f"{name} is for models that tokendeep loads itself: set it where {spec} is served.")
    try:
        return get_model(spec, memoize=False)
    except Exception as error:  # each provider has its own way to say what it misses
        raise InputError(f"The Inspect model {spec} cannot be used ({error}): check its name and set-up.") from error


def facts(model: Model, name: str) -> dict[str, Any]:
    """What the manifest keeps of the model; a run that only had to be counted has not loaded it."""
    if not isinstance(model.api, TokendeepAPI):
        return {"model": {"name": name}}
    loaded = model.api.subject
    about = {"revision": loaded.revision, "adapter": loaded.adapter} if loaded else {}
    return {"model": {"name": name, **about}, "template": chat.template_hash(model.api.tokenizer)}


def tasks_of(attacks: Sequence[Attack[Any]], options: Any, session: Session) -> list[Task]:
    """The tasks of a run whose prompts are prepared.

    Args:
        options: has the options of all attacks and those that all share, by their names.
    """
    with use(session):
        return [TASKS[attack.name](options.data, **_arguments(attack, options)) for attack in attacks]


def _arguments(attack: Attack[Any], options: Any) -> dict[str, Any]:
    """An argument of later versions is only given where it says something: Inspect knows older runs again without it."""
    given = {name: getattr(options, name) for name in arguments(attack) if name not in SERVED}
    return {name: value for name, value in given.items() if value or name not in LATER}


def attacked(task: Task) -> Iterator[Mapping[str, Any]]:
    """The task's prompts as rows of attacked.jsonl: what the model is given, prefill included."""
    for sample in task.dataset:
        messages = [{"role": message.role, "content": message.text} for message in sample.input]  # type: ignore[union-attr]
        yield {"id": sample.id, "messages": messages, **(sample.metadata or {})}


def evaluate(todo: Sequence[Task], session: Session, out: Path, *, samples: int, batch_size: int) -> None:
    """Run the tasks to their end, reusing what earlier attempts in `out` have finished.

    Args:
        samples: answers to each prompt.
        batch_size: rows that the model decodes together.

    Raises:
        InputError: what went wrong with a sample, or that the disk is full.
        KeyboardInterrupt: the user stopped the run.
    """
    for leftover in out.glob(LEFTOVERS[0]):  # of a write that was cut off
        leftover.unlink()
    sizes = [len(task.dataset) * samples for task in todo]
    api = session.model.api
    ours = api if isinstance(api, TokendeepAPI) else None
    total, there = sum(sizes), logs.finished_samples(out)
    if ours and there < total:
        ours.load()  # with a line of its own; the bar begins with the work
    with Bar(total, "answers", "answer", initial=there, settle=min(batch_size, total - there)) as bar:
        session.on_judged = lambda: bar.update() and None
        if ours:
            session.on_failure = ours.fail
        try:
            with guarded(out), use(session), _private():
                written = _outside_loops(lambda: _eval_set(todo, session, out, max(sizes), batch_size), session)
        finally:
            if ours:
                ours.close()
    if len(written) < len(todo) or any(log.status != "success" for log in written):
        _raise_failure(session, written, out)
    _tidy(written, out)


def _eval_set(todo: Sequence[Task], session: Session, out: Path, largest: int, batch_size: int) -> list[EvalLog]:
    ours = session.model.api if isinstance(session.model.api, TokendeepAPI) else None
    _, written = eval_set(
        list(todo),
        log_dir=str(out),
        log_dir_allow_dirty=True,  # a task that Inspect does not know again, of an older version, is asked anew
        model=session.model,
        max_tasks=len(todo),
        max_samples=QUEUED * batch_size if ours else None,
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
    return written


def _outside_loops(work: Callable[[], T], session: Session) -> T:
    """Do the work; in a thread of its own where an event loop is running here, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    result: Future[T] = Future()

    def done() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(done,), daemon=True)
    thread.start()
    try:
        return result.result()
    except KeyboardInterrupt:  # what waits for an answer gets none, nothing more is asked; what is on disk stays
        session.interrupt()
        thread.join()
        raise


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
            raise InputError(f"The run stopped and can go on with the same command: {why}")
    raise InputError(f"The run did not finish: the same command goes on in {out}.")


@contextmanager
def _private() -> Iterator[None]:
    """Files made meanwhile are readable by their owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
