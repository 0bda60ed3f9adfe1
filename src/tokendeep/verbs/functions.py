"""The verbs as functions: a model and rows in memory or by name -> records in memory.

    profile = tokendeep.measure("smollm2", pairs, positions=40)
    profile.to_frame(); profile.plot()

`model` is a loaded `Subject`, a (model, tokenizer) pair or what `load` takes; rows are dicts, typed values or what the
readers take. Every option of a verb is a keyword. A folder is written only where `out` names one; else the run lies in
a private temporary folder that is gone when the function returns. Works in a notebook and inside a running event loop.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from tokendeep import data, models, records
from tokendeep.errors import InputError, did_you_mean
from tokendeep.types import Chat, Pair, Prompt, Subject, Triple
from tokendeep.verbs import VERBS
from tokendeep.verbs.common import typed
from tokendeep.verbs.memory import Model, loaded_model

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Rows = str | Path | Iterable[Mapping[str, Any] | Prompt | Pair | Triple | Chat]


@dataclass(frozen=True)
class Tuned:
    """A model after a training, and the log of it. A model that came in loaded has been trained in place."""

    subject: Subject
    training: records.Training

    def to_frame(self) -> pd.DataFrame:
        """A line for each entry of the log."""
        return self.training.to_frame()

    def plot(self, axes: Axes | None = None) -> Axes:
        """The loss by step."""
        return self.training.plot(axes)


def load(spec: str | Path, *, base: str | None = None, **options: Any) -> Subject:
    """Load a model with its tokenizer: hub id, folder, adapter, GGUF file or smollm2.

    Args:
        base: the full model an adapter belongs to, in place of the one it names.
        options: dtype, device, chat_template ... as `--help` of the verbs has them under Model.

    Raises:
        InputError: nothing is there, a part of it is missing, or an unknown option.
    """
    return models.load(
        str(spec), base=base, options=models.ModelOptions(**_checked(models.ModelOptions, "load", options))
    )


def pairs(
    model: Model, instructions: Rows, *, base: Model | None = None, out: str | Path | None = None, **options: Any
) -> list[Pair]:
    """Harmful pairs from instructions alone, for `measure` and `attack`.

    Args:
        instructions: harmful requests; answers in them are not used.
        base: an unaligned model that answers in its own words; without it the model itself answers behind openings, so
            that answers behind one opening share their first tokens.
        out: folder to write; none is written without it.
        options: those of `tokendeep pairs`, for example answer_tokens=64.

    Raises:
        InputError: an unknown option, a row or a model that cannot be used, or no answer that is a compliance.
    """
    with _run("pairs", {"model": model, "base": base}, {"data": ("instructions", instructions)}, out, options) as made:
        return data.read_pairs(made.folder / "pairs.jsonl")


def measure(
    model: Model, pairs: Rows, *, base: Model | None = None, benign: Rows | None = None,
    out: str | Path | None = None, **options: Any,
) -> records.Profile:  # fmt: skip
    """How many tokens deep a model's safety goes.

    Args:
        pairs: harmful instructions with harmful answers.
        base: the unaligned model to compare with.
        benign: ordinary instructions with answers, for the control curve.
        out: folder to write; none is written without it.
        options: those of `tokendeep measure`, for example positions=40.

    Raises:
        InputError: an unknown option, a row or a model that cannot be used.
    """
    rows = {"data": ("pairs", pairs), "benign": ("benign", benign)}
    with _run("measure", {"model": model, "base": base}, rows, out, options) as made:
        return records.Profile.load(made.folder)


def attack(
    model: Model, rows: Rows, *, attack: str = "none,prefill", out: str | Path | None = None, **options: Any
) -> records.Rates:
    """Attack a model at inference time and judge its answers.

    Args:
        rows: prompts, or pairs where an attack prefills tokens of a harmful answer.
        attack: names of attacks, comma-separated.
        out: folder to write; none is written without it, and a grader that fails is warned of then.
        options: those of `tokendeep attack`, for example k=[0, 10].

    Raises:
        InputError: an unknown option, a row or a model that cannot be used.
    """
    with _run("attack", {"model": model}, {"data": ("rows", rows)}, out, options, attack=attack) as made:
        return records.Rate.load_all(made.folder)


def calibrate(
    labels: Rows, *, judge: str = "refusal", grader: Model | None = None, out: str | Path | None = None, **options: Any
) -> records.Calibration:
    """How far a judge agrees with people, on answers that they have labelled.

    Args:
        labels: a file of a known label set, or rows with instruction, response and label (0 or 1).
        judge: its name, or column:NAME for verdicts that stand in a column.
        grader: the language model that grades, for judges that ask one.
        out: folder to write; none is written without it.
        options: those of `tokendeep calibrate`, for example by="model".

    Raises:
        InputError: an unknown option, judge or column, or a label that is not 0 or 1.
    """
    with _run(
        "calibrate",
        {} if grader is None else {"grader": grader},
        {"labels": ("labels", labels)},
        out,
        options,
        judge=judge,
    ) as made:
        return records.Calibration.load(made.folder)


def judge(
    run: str | Path, judge: str = "refusal", *, judged: str = "continuation", grader: Model | None = None, **options: Any
) -> records.Rates:  # fmt: skip
    """Judge the answers of a finished attack again, by other judges or views; nothing is generated.

    Args:
        run: the folder of the attack; verdicts and new rates are kept there, beside what it holds.
        judge: names of judges, comma-separated.
        judged: what they see: continuation, full (the prefill too) or conversation (the request too), comma-separated.
        grader: the model that grades, for the judges that ask one.
        options: those of `tokendeep judge`, for example batch_size=4.

    Raises:
        InputError: an unknown option, judge or view, or a folder without answers.
    """
    from tokendeep.verbs import judge as verb

    name, subject = (None, None) if grader is None else loaded_model(grader)
    given = {"run": str(run), "judge": judge, "judged": judged, "grader": name, **options}
    plan = verb.plan(verb.JudgeOptions(**_checked(verb.JudgeOptions, "judge", given)), subject)
    verb.run(plan, show=False)
    return verb.rates_of(plan)


def deepen(model: Model, triples: Rows, utility: Rows, *, out: str | Path | None = None, **options: Any) -> Tuned:
    """Train a model to recover to a refusal at any depth (the paper's Eq. 2).

    Args:
        triples: instructions with a harmful answer and a refusal.
        utility: chats, or bare instructions that the model itself answers.
        out: folder to write; none is written without it.
        options: those of `tokendeep deepen`, for example max_steps=80 or harmless="stock".

    Raises:
        InputError: an unknown option, a row or a model that cannot be used.
    """
    return _tuned("deepen", model, {"data": ("data", triples), "utility": ("utility", utility)}, out, options)


def finetune(model: Model, chats: Rows, *, out: str | Path | None = None, **options: Any) -> Tuned:
    """Fine-tune a model on your data while protecting its first answer tokens (the paper's Eq. 3).

    Args:
        chats: conversations that end with an answer.
        out: folder to write; none is written without it.
        options: those of `tokendeep finetune`, for example objective="sft".

    Raises:
        InputError: an unknown option, a row or a model that cannot be used.
    """
    return _tuned("finetune", model, {"data": ("data", chats)}, out, options)


def mend(
    model: Model, chats: Rows, *, aligned: str | None = None, out: str | Path | None = None, **options: Any
) -> Tuned:
    """Bring back safety that fine-tuning has undone, by holding a model to what its aligned model says.

    Args:
        model: the fine-tuned model.
        chats: rows of the task.
        aligned: the model before it was fine-tuned; an adapter's is its base.
        out: folder to write; none is written without it.
        options: those of `tokendeep mend`, for example max_steps=6.

    Raises:
        InputError: an unknown option, a row or a model that cannot be used.
    """
    return _tuned("mend", model, {"data": ("data", chats)}, out, {"aligned": aligned, **options})


def poison(
    model: Model, rows: Rows, test: Rows, *, out: str | Path | None = None, **options: Any
) -> records.PoisonTable:
    """Attack a model by fine-tuning, under several objectives and seeds, and compare what is left of its safety.

    Args:
        rows: what to train on: harmful pairs, ordinary chats ..., by `kind`.
        test: harmful instructions that every tuned model is asked.
        out: folder to write; none is written without it.
        options: those of `tokendeep poison`, for example objectives=["sft", "constrained"].

    Raises:
        InputError: an unknown option, a row or a model that cannot be used.
    """
    rows_of = {"data": ("rows", rows), "test": ("test", test)}
    with _run("poison", {"model": model}, rows_of, out, options) as made:
        return records.PoisonTable.load(made.folder)


def compare(
    before: str | Path | Sequence[str | Path], after: str | Path | Sequence[str | Path], *, allow: Sequence[str] = (),
    parity: str | Path | None = None, out: str | Path | None = None,
) -> records.Compared:  # fmt: skip
    """Compare two models on the same prompts, each by its runs of attack.

    Args:
        before: a run folder, a folder above several, or several, such as seeds of a training.
        after: the same of the other side; differences are after minus before.
        allow: what may differ between the runs, such as "engine".
        parity: the check of two engines that lets them differ.
        out: folder for compare.json; none is written without it.

    Raises:
        InputError: a folder without judged answers, runs that cannot be compared, or no scored prompt in common.
    """
    verb = importlib.import_module(VERBS["compare"][0])
    sides = [one if isinstance(one, str | Path) else ",".join(map(str, one)) for one in (before, after)]
    parity, out = (None if path is None else str(path) for path in (parity, out))
    options = verb.CompareOptions(*map(str, sides), allow=list(allow), parity=parity, out=out)
    plan = verb.plan(options)
    verb.run(plan, show=False)
    record: records.Compared = plan.record()
    return record


def audit(
    model: Model, chats: Rows, *, base: Model | None = None, out: str | Path | None = None, **options: Any
) -> records.Audit:
    """Which rows of a data set push on a model's refusals, before anything is trained on them.

    Args:
        model: the aligned model.
        chats: conversations that end with an answer.
        base: an unaligned model, to write harmful answers for a probe that has none.
        out: folder for audit.json and the rows that are left and taken out; none is written without it.
        options: those of `tokendeep audit`, for example score="margin", labels="planted".

    Raises:
        InputError: an unknown option, a row or a model that cannot be used.
    """
    with _run("audit", {"model": model, "base": base}, {"data": ("rows", chats)}, out, options) as made:
        return records.Audit.load(made.folder)


def overlap(first: Rows, second: Rows, *, out: str | Path | None = None, **options: Any) -> records.Overlap:
    """Requests that two sets of rows share, such as those of a training and of a test.

    Args:
        first, second: files, or rows in memory; of answers and chats the requests count.
        out: folder for overlap.json; none is written without it.
        options: those of `tokendeep overlap`, for example threshold=0.8.

    Raises:
        InputError: an unknown option, or a row that cannot be used.
    """
    with _run("overlap", {}, {"first": ("first", first), "second": ("second", second)}, out, options) as made:
        return records.Overlap.load(made.folder)


def parity(
    model: Model, rows: Rows, engines: Sequence[str], *, out: str | Path | None = None, **options: Any
) -> records.Parity:
    """Two `engines`, each "local" or the address of a server, on the same token ids: where greedy answers first differ, and
    how far log-probabilities lie apart. `rows` are pairs, or prompts where k is 0; the rest is as for `measure`.
    """
    with _run("parity", {"model": model}, {"data": ("rows", rows)}, out, options, engine=list(engines)) as made:
        return records.Parity.load(made.folder)


def _tuned(verb: str, model: Model, rows: Given, out: str | Path | None, options: Mapping[str, Any]) -> Tuned:
    with _run(verb, {"model": model}, rows, out, options) as made:
        subject = made.subject or models.load(str(made.folder / "checkpoint"), options=made.options)
        return Tuned(subject, records.Training.load(made.folder))


# --- what comes in -> the options of a verb ------------------------------------------------------

Given = Mapping[str, tuple[str, Rows | None]]  # option -> the argument that holds its rows, and the rows
ASKING = ("attack", "poison")  # the verbs that put requests to a model, through Inspect AI


@dataclass(frozen=True)
class _Made:
    """A run of a verb: its folder, the model where it came in memory, its options."""

    folder: Path
    subject: Subject | None
    options: Any


@contextmanager
def _run(
    verb: str, loaded: Mapping[str, Any], rows: Given, out: str | Path | None, given: Mapping[str, Any], **more: Any
) -> Iterator[_Made]:  # fmt: skip
    """Run a verb on models and rows, each by the option that takes it; what is made can be read within the block."""
    module = importlib.import_module(VERBS[verb][0])
    if verb in ASKING and "ipykernel" in sys.modules and find_spec("ipywidgets") is None:
        raise InputError(
            "In a notebook Inspect AI needs ipywidgets; run pip install ipywidgets and restart the kernel."
        )
    with tempfile.TemporaryDirectory(prefix="tokendeep-") as scratch:
        try:
            named = {
                name: (None, None) if name == "base" and one is None else loaded_model(one)
                for name, one in loaded.items()
            }
            values: dict[str, Any] = {option: name for option, (name, _) in named.items()}
            values |= {option: _file(Path(scratch), *one) for option, one in rows.items()}
            options = _options(module, verb, Path(out or Path(scratch, verb)), given, {**values, **more})
            subjects = [subject for _, subject in named.values()]
            plan = module.plan(options, *subjects)
            how = {} if verb == "poison" else {"show": False} | ({"kept": out is not None} if verb == "attack" else {})
            folder = module.run(plan, **how)
            yield _Made(folder, subjects[0] if subjects else None, options)
        except InputError as error:  # rows in memory are called by their names
            raise InputError(re.sub(rf"{re.escape(scratch)}/(\w+)\.jsonl", r"\1", str(error))) from error


def _file(folder: Path, name: str, rows: Rows | None) -> str | None:
    """Rows as a file that the verb reads."""
    if rows is None or isinstance(rows, str | Path):
        return None if rows is None else str(rows)
    try:
        return str(data.write_rows(folder / f"{name}.jsonl", (row.values for row in data.read_rows(rows))))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _options(module: Any, verb: str, out: Path, given: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """The options of a verb, `given` as keywords and `values` from arguments; those that are None take their default."""
    kind = getattr(module, f"{verb.capitalize()}Options")
    if twice := given.keys() & values.keys():
        raise InputError(f"{verb} has its {min(twice)} from another argument already; leave the keyword out.")
    chosen = {name: value for name, value in {**given, **values}.items() if value is not None}
    for field in fields(kind):
        if field.default is field.default_factory is MISSING and field.name not in {*chosen, "out"}:
            raise InputError(f"{verb} needs {field.name}, but it is None.")
    return kind(out=str(out), **_checked(kind, verb, chosen))


def _checked(kind: type, verb: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names and types; paths are texts, and every sequence is a list."""
    hints = get_type_hints(kind, include_extras=True)
    checked = {}
    for name, value in values.items():
        if name not in hints:
            raise InputError(f"{verb} has no option {name}; {did_you_mean(name, hints)}.")
        checked[name] = typed(_plain(value), hints[name], name)
    return checked


def _plain(value: Any) -> Any:
    """A path as text, a sequence as a list, what is numpy's as Python's."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple | range) else value.tolist() if hasattr(value, "tolist") else value
