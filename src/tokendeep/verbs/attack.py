"""VERB attack: put attacked prompts to a model, judge what it says, count.

All attacks go through one model load and one queue. Each judged sample is on disk before the next one starts to be
written, so a run that is killed goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from tokendeep import data, models, runs
from tokendeep.attacks import ATTACKS
from tokendeep.attacks.base import Attack, Prepared, Rows
from tokendeep.data.options import DataOptions
from tokendeep.defences import DEFENCES
from tokendeep.defences.options import DefenceOptions
from tokendeep.engines.options import EngineOptions
from tokendeep.errors import InputError, NoTemplate, causes, check_least
from tokendeep.evals.options import EvalOptions, Grader, GraderOptions
from tokendeep.judges.base import FAILED
from tokendeep.models.options import ModelOptions, own
from tokendeep.records import Outcomes, Rate, Rates
from tokendeep.runs import parts
from tokendeep.types import Subject
from tokendeep.verbs.common import Place, advanced, beside, ending, given, heading, loading, output
from tokendeep.verbs.rated import describe, unscored

if TYPE_CHECKING:
    from tokendeep.evals.running import Model

MODELS = ("grader", *(name for attack in ATTACKS.values() for name in attack.models))  # options that name them
SHARED = (ModelOptions, EngineOptions, DefenceOptions, GraderOptions, EvalOptions)
what = heading("What to attack")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttackOptions(*SHARED, *(ATTACKS[name].options for name in reversed(ATTACKS))):  # type: ignore[misc]
    """Attack a model at inference time and judge what it says."""

    model: Annotated[
        str,
        what(
            help="Hub id, local folder, adapter folder, GGUF file, smollm2, or an Inspect model: vllm/NAME, sglang/NAME, or "
            "inspect/PROVIDER/NAME for any other provider."
        ),
    ]
    data: Annotated[
        str,
        what(help="Prompts, or pairs where an attack prefills tokens of a harmful answer (JSONL, JSON, CSV, text)."),
    ]
    attack: Annotated[str, what(help=f"Comma-separated names: {', '.join(ATTACKS)}.")] = "none,prefill"
    base: models.AdapterBase = None
    grader: Grader = None
    batch_size: Annotated[
        int,
        loading(help="Rows decoded together; 0 is as many as the memory holds, at most 96 on a CPU, else 256."),
    ] = 0
    tokenizer: Annotated[
        str | None,
        advanced(
            help="Folder or hub id of the tokenizer that counts prefill tokens for a model that runs elsewhere; the model's "
            "own name where left out."
        ),
    ] = None
    continues: Annotated[
        bool,
        advanced(
            help="The server does continue the beginning of an answer: for servers where the one request that finds out "
            "cannot tell."
        ),
    ] = False
    max_retries: Annotated[
        int, advanced(help="How often a server that fails is asked again, after waits that grow from 3 seconds.")
    ] = 6
    out: Annotated[str, output(help="Folder for logs, attacked.jsonl, asr.json, outcomes.jsonl and manifest.json.")]
    label: Annotated[str | None, output(help="Short name in reports; the path where left out.")] = None
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False


# The options of an attack are written in its own file, in names that are not known in this one.
AttackOptions.__init__.__annotations__ = get_type_hints(AttackOptions, include_extras=True)


@dataclass(frozen=True)
class AttackPlan:
    """Everything that `attack` reads, checked, and the attacked prompts as far as no weights are needed for them."""

    options: AttackOptions
    attacks: Sequence[Attack[Any]]
    rows: Rows
    inputs: Mapping[str, str | Path]  # the files of the run, which tell it from another
    model: Model = field(repr=False)  # a handle; its weights are loaded at the first request
    prepared: Mapping[str, Prepared] = field(repr=False)
    grader: Model | None = field(default=None, repr=False)

    @property
    def trained_on(self) -> int | None:
        """How many of the requests the model was trained on; None where nothing tells."""
        return runs.trained.count(self.options.model, map(data.asked, self.rows.prompts))

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        return Place("attack", self.options, self.inputs, _recorded(self.options), models=MODELS, begun=_begun)

    def lines(self) -> list[str]:
        """What would run, on how many rows, what is there already and what it will cost at most."""
        options, rows = self.options, len(self.rows.prompts)
        prompts = {one.name: self._prompts(one) for one in self.attacks}
        answers = sum(prompts.values()) * options.samples
        return [
            f"model: {options.model}{f', asked at {options.engine}' if options.served else ''}",
            *(
                [f"defence: {name}, which {DEFENCES[options.defence or ''].does}"]
                if (name := options.defence_name())
                else []
            ),
            f"rows: {rows} of {options.data}" + (f"; {learnt(self.trained_on, rows)}" if self.trained_on else ""),
            *(f"{one.name}: {prompts[one.name]} prompts{self._more(one)}" for one in self.attacks),
            f"answers: {answers}, {options.samples} to each prompt, of {options.max_new_tokens} tokens at most; "
            f"{0 if options.overwrite else _finished(options.out)} are there already",
            f"judge: {options.judge}{f', graded by {self.grader}' if self.grader else ''}",
            *self.place.lines(),
        ]

    def _prompts(self, attack: Attack[Any]) -> int:
        prepared = self.prepared.get(attack.name)
        return len(prepared.prompts) if prepared else len(self.rows.prompts)

    def _more(self, attack: Attack[Any]) -> str:
        """What finding the prompts will take, and rows that are left out."""
        prepared = self.prepared.get(attack.name)
        short = {k: count for k, count in (prepared.skipped if prepared else {}).items() if count}
        left_out = "".join(f"; {count} rows too short for {attack.group} = {k}" for k, count in short.items())
        return left_out + (f"; {effort}" if (effort := attack.effort(self.rows, self.options)) else "")


def plan(options: AttackOptions, subject: Subject | None = None, rows: Iterable[Any] | None = None) -> AttackPlan:
    """Read and check everything `attack` needs, each file once; loads no weights and writes nothing.

    Args:
        subject: the model, where the caller has it in memory already.
        rows: dicts or typed values, where the caller has them in memory; `options.data` is only their name then.

    Raises:
        InputError: an option out of range, a file or row that cannot be used, or a model that is not there.
    """
    from tokendeep.evals import running, tasks
    from tokendeep.evals.victim import check_victim, victim

    attacks = _check(options)
    options.check_engine(options)
    options.check_defence()
    model = running.open_model(
        options.model, options, options.batch_size, subject, options.base, options, options.max_retries, defence=options
    )
    grader = _open_grader(options)
    for attack in attacks:
        check_victim(attack, model)
        for spec in filter(None, (getattr(options, name) for name in attack.models)):
            models.check_spec(spec, options, needs_template=False)
    needs = "pairs" if any(attack.needs == "pairs" for attack in attacks) else "prompts"
    source = options.data if rows is None else list(rows)
    asked = tasks.read_rows(source, needs, options.system, options)
    inputs: dict[str, str | Path] = {"data": data.identity(source)}
    view = victim(model, _served(options), options.decoding())
    prepared = {attack.name: attack.prepare(asked, options, view) for attack in attacks if not attack.weights}
    for attack in attacks:
        inputs |= attack.files(options)
    return AttackPlan(options, attacks, asked, inputs, model, prepared, grader)


def _open_grader(options: AttackOptions) -> Model | None:
    """The model that grades, if any; it waits for a server as the model under attack does."""
    from tokendeep.evals import graders, judging

    every = judging.named(options.judge, options.judged)
    loading = models.ModelOptions(dtype=options.dtype, device=options.device)
    patience = {"max_retries": options.max_retries, "timeout": options.answer_timeout}
    try:
        return graders.open_grader(options.grader, every, loading, options.batch_size, place=options, **patience)
    except InputError as error:
        if not any(isinstance(one, NoTemplate) for one in causes(error)):
            raise
        raise InputError(
            f"{options.grader} has no chat template, and --chat-template of attack is that of the model under attack: judge "
            "afterwards with tokendeep judge, whose --chat-template is the grader's."
        ) from error


def run(plan: AttackPlan, *, show: bool = True, kept: bool = True) -> Path:
    """Attack the model, write the logs, asr.json and manifest.json into `options.out` and return that folder.

    Args:
        show: print the table of rates.
        kept: the folder stays; of one that does not, the rates are good also where a grader has failed, which is said.

    Raises:
        InputError: the output folder holds another run, or an answer that cannot be had.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it stopped.
    """
    state = plan.place.open()
    if not state.finished:
        _attack(plan, state, show)
    elif show:
        print(f"attack: {state.out} already holds this finished run")
    _grade(plan, state.out, kept)
    if show:
        _show(plan, state.out)
    return state.out


def _attack(plan: AttackPlan, state: runs.Run, show: bool) -> None:
    """Ask, judge and count, to the end of the run."""
    from tokendeep.evals import judging, logs, outcomes, rates, running
    from tokendeep.evals.session import Session

    options = plan.options
    runs.private_dir(state.out)
    if plan.trained_on and show:
        print(f"attack: {learnt(plan.trained_on, len(plan.rows.prompts))}")
    prepared = _prepared(plan, state)
    session = Session(
        plan.model,
        prepared,
        runs.hash_input("data", plan.inputs["data"]),
        grader=plan.grader,
        grader_name=logs.grader_of(state.out),
    )
    todo = running.tasks_of(plan.attacks, options, session)
    attacked = (row for task in todo for row in running.attacked(task))
    runs.write_jsonl(state.out / "attacked.jsonl", attacked, private=True)
    running.evaluate(
        todo, session, state, samples=options.samples, batch_size=options.batch_size, max_retries=options.max_retries
    )
    samples = logs.read_samples(state.out)
    outcomes.write(state.out, samples, outcomes.keys(plan.rows.prompts))
    rows = rates.asr(samples, logs.read_skipped(state.out))
    runs.write_json(state.out / Rates.FILE, rows.dump())
    parts.remove(state)
    names = {name: value for name in ("label", "role") if (value := getattr(options, name))}
    names |= {} if plan.trained_on is None else {"trained_on": plan.trained_on}
    cost = {name: one.cost for name, one in prepared.items() if one.cost is not None}
    signed = {one.judge: name for one in samples if (name := one.params.get("grader"))}
    names |= {"judges": judging.facts(judging.named(options.judge, options.judged), plan.grader, signed)}
    state.finish(**running.facts(plan.model, options.model), **names, **({"cost": cost} if cost else {}))


def _missing(out: Path) -> int:
    """How many verdicts the grader has failed to give."""
    return sum(row.count(FAILED) for row in Rate.load_all(out) if row.params.any_of is None)


def _grade(plan: AttackPlan, out: Path, kept: bool) -> None:
    """Ask for the grades that the grader of this run has failed to give. Raises InputError where it fails again."""
    if plan.grader is None or not _missing(out):
        return
    from tokendeep.evals import judging, logs
    from tokendeep.evals.provider import TokendeepAPI
    from tokendeep.verbs import judge

    options = plan.options
    every = [one for one in judging.named(options.judge, options.judged) if one.by.rubric]
    again = judge.JudgeOptions(str(out), judge=options.judge, judged=options.judged)
    ours = isinstance(plan.grader.api, TokendeepAPI)  # another's client belongs to the event loop that it has worked in
    grader = plan.grader if ours else _open_grader(options)
    asked = judge.JudgePlan(again, out, every, logs.of(out), grader)
    try:
        judge.run(asked, show=False)
    except InputError as error:
        judge.recount(asked)
        if kept:
            raise InputError(
                f"All answers are in {out}, and {_missing(out)} verdicts on them are missing: {error}"
            ) from error
        log.warning(
            "%d verdicts are missing, counted as %s; give out=FOLDER to keep answers until their grader is back: %s",
            _missing(out), FAILED, error,
        )  # fmt: skip


def learnt(count: int, rows: int) -> str:
    """What to think of requests that the model was trained on."""
    return f"{count} of {rows} requests are among those that this model was trained on; ask others to learn how it generalises"


def _show(plan: AttackPlan, out: Path) -> None:
    """The rates of a finished run, and the way on: to pairs, where nothing was prefilled, and to a report."""
    options = plan.options
    rows = Rate.load_all(out)
    print(describe(rows))
    for sentence in unscored(rows):
        print(f"attack: {sentence}")
    prefilled = any(one.needs == "pairs" for one in plan.attacks)
    same = given(options, ModelOptions, EngineOptions, DataOptions)
    pairs = ["pairs", "--model", options.model, *same, "--data", options.data, "--out", beside(out, "pairs")]
    ending(
        f"{out / Rates.FILE} (rates) and {Outcomes.FILE} (answers by hash) hold no texts; the *.eval and attacked.jsonl beside "
        "them do, readable by you alone",
        *([] if prefilled or options.base else [pairs]),  # pairs takes no base of an adapter
        ["report", out, "--out", "report.html"],
    )


def _check(options: AttackOptions) -> list[Attack[Any]]:
    """The attacks to run. Raises InputError for anything wrong that shows without reading a file."""
    from tokendeep.evals import tasks
    from tokendeep.evals.judging import unknown

    names = list(dict.fromkeys(name.strip() for name in options.attack.split(",") if name.strip()))
    if not names:
        raise InputError(f"No attack is named: choose from {', '.join(ATTACKS)}.")
    for name in names:
        if name not in ATTACKS:
            raise InputError(unknown("attack", name, ATTACKS))
    tasks.check_shared(options)
    check_least(options, {"batch_size": 0, "max_retries": 0})
    for name, attack in ATTACKS.items():
        if name in names or own(attack.options, options) != attack.options():  # what is not asked for must be right too
            attack.check(options)
    return [ATTACKS[name] for name in names]


def _prepared(plan: AttackPlan, state: runs.Run) -> dict[str, Prepared]:
    """The prompts of every attack; now those too that are found with the victim's weights."""
    from tokendeep.evals.victim import victim

    view = victim(plan.model, _served(plan.options), plan.options.decoding(), folder=lambda: parts.folder(state))
    return {
        attack.name: plan.prepared.get(attack.name) or attack.prepare(plan.rows, plan.options, view)
        for attack in plan.attacks
    }


def _served(options: AttackOptions) -> dict[str, Any]:
    """What is said of a model that runs elsewhere."""
    return {"tokenizer": options.tokenizer, "continues": options.continues}


def _recorded(options: AttackOptions) -> dict[str, Any]:
    """The options as the manifest keeps them: texts of the user by their hash."""
    texts = {name: value for attack in ATTACKS.values() for name, value in attack.recorded(options).items()}
    return {**asdict(options), **options.recorded(), **texts, "system": runs.system_name(options.system)}


def _finished(out: str) -> int:
    """The judged answers that an earlier attempt has left."""
    from tokendeep.evals import logs

    return logs.finished_samples(out)


def _begun(folder: Path) -> bool:
    """Whether a run that was cut off has judged an answer, or kept a part of a search."""
    return bool(_finished(str(folder)) or any(path.stat().st_size for path in (folder / parts.FOLDER).glob("*")))
