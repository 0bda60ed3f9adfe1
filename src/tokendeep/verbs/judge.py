"""VERB judge: the answers of finished attacks under other judges, without generating anything again.

What was found before stays: new rows of rates stand beside the old ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tokendeep import runs
from tokendeep.errors import InputError, check_least
from tokendeep.evals.options import GraderKey, GraderModel, GraderOptions, Label, MaxRetries, Timeout, Wording
from tokendeep.judges import JUDGED, JUDGES, Judge
from tokendeep.models.options import ModelOptions
from tokendeep.records import Manifest, Outcomes, Rate, Rates, StoredVerdict
from tokendeep.runs.files import user_path
from tokendeep.verbs.common import ending, heading, loading
from tokendeep.verbs.rated import describe, unscored

if TYPE_CHECKING:
    from tokendeep.evals.judging import Judging
    from tokendeep.evals.logs import EvalLog
    from tokendeep.evals.running import Model
    from tokendeep.types import Sample, Subject

what = heading("What to judge")


@dataclass(frozen=True)
class JudgeOptions:
    """Judge the answers of a finished attack again, by other judges or views; nothing is generated."""

    run: Annotated[str, what(help="Folder that attack wrote (or inspect eval, with its logs).")]
    judge: Annotated[str, what(help=f"Comma-separated names: {', '.join(JUDGES)}.")] = field(
        default="refusal", kw_only=True
    )
    judged: Annotated[
        str,
        what(
            help="What the judge sees, comma-separated: continuation is what the model wrote, full has the prefill before it, "
            "conversation the request too (a grader; a rule reads none). After a refusal prefix the judge decides."
        ),
    ] = field(default=JUDGED[0], kw_only=True)
    grader: Annotated[
        str | None,
        what(
            help="Language model that grades harm, for the judges that ask one: hub id, local folder, GGUF file, smollm2, or "
            "inspect/PROVIDER/NAME for any other that Inspect knows; MODEL@URL where a server of completions has it."
        ),
    ] = field(default=None, kw_only=True)
    judge_template: Wording = field(default=None, kw_only=True)
    judge_label: Label = field(default=None, kw_only=True)
    chat_template: Annotated[str | None, loading(help="Shipped chat template or Jinja file of a local grader.")] = (
        field(default=None, kw_only=True)
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], loading(help="Number format of the grader.")
    ] = field(default="auto", kw_only=True)
    device: Annotated[str, loading(help="cpu, cuda, cuda:0 ..., for the grader.")] = field(default="auto", kw_only=True)
    batch_size: Annotated[int, loading(help="Answers graded together; 0 is what the memory holds.")] = field(
        default=0, kw_only=True
    )
    grader_key_env: GraderKey = field(default=None, kw_only=True)
    grader_model: GraderModel = field(default=None, kw_only=True)
    max_retries: MaxRetries = field(default=6, kw_only=True)
    timeout: Timeout = field(default=600, kw_only=True)


SEES = {
    "continuation": "what the model wrote",
    "full": "the prefill and what the model wrote",
    "conversation": "the request, the prefill and what the model wrote",
}


def sees(one: Judging) -> str:
    """What a judge sees; a rule sees no request."""
    return SEES[one.judged] if one.by.rubric or one.judged == "continuation" else SEES["full"]


def described(judge: Judge) -> str:
    """The words that a judge goes by, by hash, and which wording of a published prompt they are."""
    called = judge.rubric.called if judge.rubric else None
    return f"{judge.template}{f', the wording of its {called}' if called else ''}"


@dataclass(frozen=True)
class JudgePlan:
    """The answers of a run, read, and who is to judge them."""

    options: JudgeOptions
    folder: Path
    every: Sequence[Judging]
    logs: Sequence[EvalLog] = field(repr=False)
    grader: Model | None = field(default=None, repr=False)

    @property
    def answers(self) -> int:
        return sum(len(log.samples or []) for log in self.logs)

    def lines(self) -> list[str]:
        return [
            f"run: {self.options.run}",
            f"answers: {self.answers}",
            *([f"grader: {self.grader}"] if self.grader else []),
            *(f"judge: {one.judge} ({described(one.by)}) sees {sees(one)}" for one in self.every),
            f"out: {self.folder / StoredVerdict.FILE}, and new rows in {Rates.FILE}",
        ]


def plan(options: JudgeOptions, subject: Subject | None = None) -> JudgePlan:
    """Read the answers; writes nothing.

    Args:
        subject: the grader, where the caller has it in memory already.

    Raises:
        InputError: an unknown judge or view, a folder without answers, or a run that has not finished.
    """
    from tokendeep.evals import graders, judging, logs, rejudging

    every, folder = judging.named(options.judge, options.judged), user_path(options.run)
    every = judging.equipped(every, options.judge_template, options.judge_label)
    if not folder.is_dir():
        raise InputError(f"There is no folder {options.run}; name one that tokendeep attack wrote.")
    if below := sorted(path.parent.name for path in folder.glob(f"*/{Rates.FILE}")):
        raise InputError(f"{folder} is no run, but holds some ({', '.join(below[:9])}); name one of these folders.")
    if (folder / Manifest.FILE).is_file() and Manifest.load(folder).status != "finished":
        raise InputError(f"The run in {folder} has not finished; run its command again first.")
    read = logs.of(folder)
    judging.check_contexts(every, (answer for *_, answer in rejudging.answers(read)))
    check_least(options, {"batch_size": 0, "max_retries": 0, "timeout": 1})
    loaded = ModelOptions(chat_template=options.chat_template, dtype=options.dtype, device=options.device)
    patience = {"max_retries": options.max_retries, "timeout": options.timeout}
    place = GraderOptions(grader_key_env=options.grader_key_env, grader_model=options.grader_model)
    grader = graders.open_grader(options.grader, every, loaded, options.batch_size, subject, place=place, **patience)
    return JudgePlan(options, folder, every, read, grader)


def run(plan: JudgePlan, *, show: bool = True) -> Path:
    """Judge the answers; writes verdicts.jsonl and, in the folder of a run, new rows into asr.json. Returns the folder.

    Raises:
        InputError: files of the user's own are in the way, or another process writes there; where it shows the rates, also
            a judge that has scored no answer.
    """
    from tokendeep.evals import judging, rejudging, stored
    from tokendeep.progress import Bar

    folder = plan.folder
    with runs.amended(
        folder, [Rates.FILE, Outcomes.FILE], StoredVerdict.FILE, judges=judging.facts(plan.every, plan.grader)
    ):
        store = stored.read(folder)
        looks = rejudging.looks_of(plan.every, plan.logs)
        with stored.writing(store), Bar(len(looks), "verdicts", "verdict") as bar:
            samples = rejudging.judge(looks, store, plan.grader, bar.update)
        rows = _rates(plan, samples)
    if show:
        _show(plan, rows)
        check_scored(rows)
    return folder


def check_scored(rows: Sequence[Rate]) -> None:
    """Raises InputError for a judge that has scored no answer."""
    for sentence in unscored(rows):
        raise InputError(sentence)


def recount(plan: JudgePlan) -> None:
    """Rates and outcomes of the verdicts that are there, where a grader has failed before the last one."""
    from tokendeep.evals import logs

    with runs.amended(plan.folder, [Rates.FILE, Outcomes.FILE], StoredVerdict.FILE):
        _rates(plan, logs.read_samples(plan.folder, plan.logs))


def _rates(plan: JudgePlan, samples: Sequence[Sample]) -> Rates:
    """The new rows, which are put beside the old ones where these lie in a file."""
    from tokendeep.evals import logs, outcomes, rates

    rows = rates.asr(samples, logs.read_skipped(plan.folder, plan.logs))
    if (plan.folder / Rates.FILE).is_file():
        every = {_key(row): row for row in (*Rate.load_all(plan.folder), *rows)}
        outcomes.again(plan.folder, logs.read_samples(plan.folder, plan.logs))
        runs.write_json(plan.folder / Rates.FILE, Rates(every.values()).dump())
    return rows


def rates_of(plan: JudgePlan) -> Rates:
    """All rates of a run; of logs that lie alone they are counted."""
    from tokendeep.evals import logs, rates

    if (plan.folder / Rates.FILE).is_file():
        return Rate.load_all(plan.folder)
    return rates.asr(logs.read_samples(plan.folder, plan.logs), logs.read_skipped(plan.folder, plan.logs))


def _key(row: Rate) -> str:
    """What two rows of the same number share."""
    return json.dumps([row.attack, row.judge, row.model, row.params.given()], sort_keys=True)


def _show(plan: JudgePlan, rows: Rates) -> None:
    print(describe(rows))
    where = f"are in {Rates.FILE}" if (plan.folder / Rates.FILE).is_file() else "are counted anew by report"
    ending(
        f"{plan.folder / StoredVerdict.FILE} (verdicts by hash, no texts); rates of all judges {where}",
        ["report", plan.folder, "--out", "report.html"],
    )
