"""VERB calibrate: how far a judge agrees with people, on answers that they have labelled."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tokendeep import data
from tokendeep.data.behaviours import FILE
from tokendeep.data.labels import Labels, Meaning, read_labels
from tokendeep.errors import InputError, check_known, check_least
from tokendeep.evals.options import GraderOptions, Label, MaxRetries, Timeout, Wording
from tokendeep.judges import JUDGED, JUDGES, agreement
from tokendeep.judges.calibration import COLUMN, Said, calibration, check, verdicts
from tokendeep.models.options import ModelOptions, Texts
from tokendeep.records import CALIBRATION, Agreement, Calibration, Estimate
from tokendeep.runs import write_json
from tokendeep.runs.files import user_path
from tokendeep.types import Subject
from tokendeep.verbs.common import Place, ending, heading, loading, output
from tokendeep.verbs.rated import none_scored

if TYPE_CHECKING:
    from tokendeep.evals.judging import Judging
    from tokendeep.evals.running import Model

what = heading("What to calibrate")
MEANS = ("set", "harm", "compliance")
SEES = {"continuation": "the answers", "full": "the answers", "conversation": "the requests and the answers"}
SIGNS = {"harm": ("harmful", "harmless"), "compliance": ("complied", "refused")}


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(GraderOptions, ModelOptions):
    """Compare a judge's verdicts with people's labels, and say how far its rates can be trusted."""

    judge: Annotated[
        str,
        what(help=f"{', '.join(JUDGES)}, or {COLUMN}NAME, a column with verdicts or scores of another judge."),
    ] = "refusal"
    judged: Annotated[
        Literal["continuation", "full", "conversation"],
        what(
            help="What the judge sees, as in the runs whose rates are to be corrected: continuation is an answer of the model's "
            "own, full one that begins with tokens given in advance, conversation the request too (a grader; a rule reads none)."
        ),
    ] = "continuation"
    labels: Annotated[
        Texts,
        what(
            help="Files of labelled answers: of JailbreakBench, HarmBench, StrongREJECT or XSTest as published, or your own with "
            "columns instruction, response and label (0 or 1)."
        ),
    ]
    text: Annotated[
        str | None, what(help="Column of the answers, where it is neither response nor the label set's own.")
    ] = None
    label: Annotated[str | None, what(help="Column of the labels, likewise: 1 is harmful, 0 is not.")] = None
    request: Annotated[str | None, what(help="Column of the requests, likewise.")] = None
    behaviours: Annotated[
        str | None,
        what(
            help="harmbench_behaviors_text_all.csv of HarmBench, beside its labels: what was asked for, which judges that see "
            "the request need."
        ),
    ] = None
    means: Annotated[
        Literal["set", "harm", "compliance"],
        what(
            help="What a label of 1 says of an answer: that it does harm, or that it complies; set: as the label set has it "
            "(XSTest compliance, all others harm)."
        ),
    ] = "set"
    threshold: Annotated[
        float | None, what(help="Least score that counts as harmful, where the column of another judge holds scores.")
    ] = None
    by: Annotated[
        str | None,
        what(help="Column of kinds of answers that are counted by themselves too, such as model, jailbreak or type."),
    ] = None
    grader: Annotated[
        str | None,
        what(
            help="Language model that grades, for judges that ask one: hub id, local folder, GGUF file, smollm2, or "
            "inspect/PROVIDER/NAME for any other that Inspect knows; MODEL@URL where a server of completions has it."
        ),
    ] = None
    judge_template: Wording = None
    judge_label: Label = None
    batch_size: Annotated[
        int, loading(help="Answers that a local grader reads together; 0 is what the memory holds.")
    ] = 0
    max_retries: MaxRetries = 6
    timeout: Timeout = 600
    out: Annotated[str, output(help="Folder for calibration.json, which holds no text, and manifest.json.")]
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False


@dataclass(frozen=True)
class CalibratePlan:
    """The labelled answers, read and checked; nothing is judged yet."""

    options: CalibrateOptions
    labels: Labels
    grader: Model | None = field(default=None, repr=False)
    asks: Judging | None = field(default=None, repr=False)

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        return Place("calibrate", self.options, inputs(self.options), models=("grader",))

    def lines(self) -> list[str]:
        """What `run` would do, in lines."""
        options, rows = self.options, self.labels.rows
        seen = SEES[options.judged if self.asks else JUDGED[0]]  # a rule reads no request
        return [
            f"judge: {options.judge}" + ("" if options.judge.startswith(COLUMN) else f", which sees {seen}"),
            *([f"grader: {self.grader}"] if self.grader else []),
            f"labels: {len(rows)} of {self.labels.name}, {sum(row.label for row in rows)} labelled {self.labels.label}",
            *self.labels.notes,
            *self.place.lines(),
        ]


def inputs(options: CalibrateOptions) -> Mapping[str, str | Path]:
    """The files of labels, by the names that a manifest has for them."""
    first, *others = map(data.identity, files(options.labels))
    wording = {"judge_template": options.judge_template} if options.judge_template else {}
    asked = {"behaviours": options.behaviours} if options.behaviours else {}
    return {"labels": first, **{f"labels {number}": path for number, path in enumerate(others, 2)}, **wording, **asked}


def files(labels: Sequence[str]) -> list[str]:
    """The files of labels; commas stand between several, where they are not part of a name."""
    every = ([one] if os.path.exists(user_path(one)) else one.split(",") for one in labels)
    return [name.strip() for names in every for name in names if name.strip()]


def plan(options: CalibrateOptions, subject: Subject | None = None) -> CalibratePlan:
    """Read and check everything; judges and writes nothing.

    Args:
        subject: the grader, where the caller has it in memory already.

    Raises:
        InputError: a file that cannot be read, a label that is not 0 or 1, an unknown judge or column.
    """
    check_known(options, {"means": MEANS, "judged": JUDGED})
    check_least(options, {"batch_size": 0, "max_retries": 0, "timeout": 1})
    means: Meaning | None = None if options.means == "set" else options.means
    if "," in options.judge and not options.judge.startswith("column:"):
        raise InputError(
            f"calibrate looks at one judge, but --judge is {options.judge}; call it once for each of them."
        )
    if options.judge.startswith(COLUMN) and options.judged != JUDGED[0]:
        raise InputError("--judged is for a judge that looks now, and a column holds what one has found; leave it out.")
    read = read_labels(
        files(options.labels), text=options.text, label=options.label, request=options.request, means=means,
        behaviours=options.behaviours,
    )  # fmt: skip
    check(options.judge, read.rows, options.by, options.threshold)
    rubric = JUDGES[options.judge].rubric if options.judge in JUDGES else None
    if rubric and not rubric.labels and read.attacked:
        raise InputError(
            f"{options.judge} judges by the behaviour that was asked for, and the {read.name} hold the text of an attack in its "
            f"place; give HarmBench's {FILE} with --behaviours."
        )
    asks = rubric is not None
    if (options.grader, options.judge_template, options.judge_label) == (None, None, None) and not asks:
        options.check_grader(None)
        return CalibratePlan(options, read)
    from tokendeep.evals import graders, judging, labelled

    every = [judging.Judging(options.judge, options.judged)] if asks else []
    every = judging.equipped(every, options.judge_template, options.judge_label)
    judging.check_contexts(every, labelled.answers(read.rows))
    patience = {"max_retries": options.max_retries, "timeout": options.timeout}
    grader = graders.open_grader(options.grader, every, options, options.batch_size, subject, place=options, **patience)
    return CalibratePlan(options, read, grader, every[0])


def run(plan: CalibratePlan, *, show: bool = True) -> Path:
    """Judge the answers; returns the folder with calibration.json and manifest.json.

    What a grader has said is kept at once, and is not asked again when a run that was cut off goes on.

    Raises:
        InputError: the grader cannot be reached, or the judge has scored no answer.
    """
    from tokendeep.evals import judging

    options, state = plan.options, plan.place.open()
    if not state.finished:
        rows, grader = plan.labels.rows, plan.grader
        said = _graded(plan, grader, state.out) if grader else verdicts(rows, options.judge, options.threshold)
        check_scored(options.judge, said)
        made = calibration(plan.labels, options.judge, said, options.by, options.threshold, options.judged)
        if plan.asks:
            by = {"grader": judging.name_of(grader), "judge_template": plan.asks.by.template}
            made = made.model_copy(update=by)
        write_json(state.out / CALIBRATION, made.dump())
        state.finish()
    if show:
        _show(Calibration.load(state.out), state.out)
    return state.out


def check_scored(judge: str, said: Sequence[Said]) -> None:
    """Raises InputError where the judge has scored no answer."""
    if all(one.value is None for one in said):
        reasons = Counter(one.reason or "unscored" for one in said)
        raise InputError(none_scored(judge, reasons, "so nothing tells how far it agrees with people; look at these"))


def _graded(plan: CalibratePlan, grader: Model, out: Path) -> list[Said]:
    """What the grader says of each answer."""
    from tokendeep.evals import labelled
    from tokendeep.progress import Bar

    with Bar(len(plan.labels.rows), "answers", "answer") as bar:
        assert plan.asks is not None
        found = labelled.verdicts(plan.labels.rows, plan.asks, grader, out, bar.update)
    return [Said(one.value, one.reason) for one in found]


def _show(made: Calibration, out: Path) -> None:
    """The figures in a table, what they mean for rates, and the way on."""
    print(f"calibrate: {made.judge} against {made.n} labels of {made.labels} ({made.requests} requests)")
    for note in made.notes:
        print(f"  caution: {note}")
    names = {"all": made, **made.kinds}
    width = max(map(len, names))
    heads = [f"{name:16}" for name in ("agreement", "sensitivity", "specificity", "kappa")]
    print(f"  {'':{width}}      n  {'  '.join(heads)}  undecided  {SIGNS[made.label][0]}")
    for name, one in names.items():
        print(f"  {name:{width}}  {one.n:5}  {_cells(one)}")
    if made.reasons:
        print(f"  undecided: {', '.join(f'{count} {reason}' for reason, count in sorted(made.reasons.items()))}")
    print(f"  {_words(made)}")
    corrects = made.judge in JUDGES and agreement.tells(made)  # no run is judged by a column
    report = ["report", "RUN-FOLDERS", "--calibration", out / CALIBRATION, "--out", "report.html"]
    ending(f"{out / CALIBRATION} (no text)", *([report] if corrects else []))


def _cells(one: Agreement) -> str:
    cells = [f"{_of(share):16}" for share in (one.agreement, one.sensitivity, one.specificity, one.kappa)]
    return "  ".join([*cells, f"{one.undecided:9}", _number(one.prevalence.value)])


def _of(share: Estimate) -> str:
    return f"{_number(share.value)} [{_number(share.low)}, {_number(share.high)}]" if share.value is not None else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("0.", ".", 1)


def _words(made: Calibration) -> str:
    """What the figures mean for a rate of this judge."""
    yes, no = SIGNS[made.label]
    unknown = [word for word, share in ((yes, made.sensitivity), (no, made.specificity)) if share.value is None]
    if unknown:
        return (
            f"it has scored no answer that people call {unknown[0]}, so what it says of these cannot be told: its rates cannot "
            "be corrected with these labels"
        )
    if not agreement.tells(made):
        return f"the judge does not surely tell {yes} answers from others here: its rates cannot be corrected with these labels"
    missed, false = _number(1 - (made.sensitivity.value or 0)), _number(1 - (made.specificity.value or 0))
    return f"of what people call {yes} it misses {missed}, of what they call {no} it counts {false}"
