"""VERB audit: which rows of a data set push on a model's refusals, before anything is trained on them.

Every row gets a score (or several); the rows are ranked, those above a cut are taken out, and what is left can be trained
on. Trains nothing; says places, ids and hashes, never a text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from tokendeep import chat, data, models, plain, runs
from tokendeep.audits import DEFAULT, SCORES, Anchor, Materials, decoder, probe, ranking, rows, words
from tokendeep.audits.rows import Given, Values
from tokendeep.data.options import DataOptions
from tokendeep.depth.openings import load_openings, opening_ids
from tokendeep.depth.served import check_served, opened
from tokendeep.engines.options import EngineOptions
from tokendeep.errors import InputError, check_least, did_you_mean, flag
from tokendeep.models.checks import check_tokenizer
from tokendeep.models.options import ModelOptions
from tokendeep.records import Audit
from tokendeep.runs import parts
from tokendeep.runs.parts import Parts
from tokendeep.training import harmful
from tokendeep.types import Subject
from tokendeep.verbs.common import Names, Place, advanced, beside, ending, given, heading, loading, output

what = heading("What to audit")
CLEANED, FLAGGED = "cleaned.jsonl", "flagged.jsonl"


@dataclass(frozen=True, kw_only=True)
class AuditOptions(ModelOptions, EngineOptions, DataOptions):
    """Rank the rows of a data set by how much training on them would push on a model's refusals."""

    model: Annotated[str, what(help="The aligned model that is to be fine-tuned on the rows.")]
    data: Annotated[
        str, what(help="The rows: chats (messages, or prompt and completion), or pairs (instruction, response).")
    ]
    score: Annotated[
        Names,
        what(help="; ".join(f"{name}: {one.summary}" for name, one in SCORES.items()) + ". The first one ranks."),
    ] = field(default_factory=lambda: [DEFAULT])
    cut: Annotated[
        str, what(help="How many rows from the top are taken out: a share such as 0.05, or a count such as 20.")
    ] = "0.05"
    probe: Annotated[
        str | None,
        what(
            help="Harmful requests for gradient and representation, best with answers: pairs or triples; else the stock."
        ),
    ] = None
    base: Annotated[
        str | None,
        what(
            help="Unaligned model that answers the requests of the probe where they have no harmful answer; it takes the place "
            "of an adapter's own base where that is not there."
        ),
    ] = None
    labels: Annotated[
        str | None,
        what(help="Column of the rows with 1 for those that should be found, else 0: the scores are evaluated by it."),
    ] = None
    limit: Annotated[int | None, what(help="Use only the first so many rows, for a quick look.")] = None
    batch_size: Annotated[int, loading(help="Rows per forward pass; lower it where the memory is short.")] = 16
    out: Annotated[
        str, output(help="Folder for audit.json, cleaned.jsonl and flagged.jsonl, which you alone can read.")
    ]
    label: Annotated[str | None, output(help="Short name of the model in reports; its path where left out.")] = None
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False
    tokens: Annotated[int, advanced(help="First answer tokens that gradient and likelihood look at.")] = 10
    last_layers: Annotated[
        int | None,
        advanced(
            help="Decoder layers, from the last one, whose weights gradient looks at: 4 (or as many as there are) where left "
            "out; 0 is all."
        ),
    ] = None
    layer: Annotated[
        int, advanced(help="Decoder layer whose states representation compares; 0 is that of its authors, by depth.")
    ] = 0
    probe_size: Annotated[int, advanced(help="Most requests of the probe; they are spread evenly over it.")] = 64
    answer_tokens: Annotated[
        int, advanced(help="Longest answer in tokens of the base and of the model to the probe.")
    ] = 48
    max_length: Annotated[
        int, advanced(help="Longest row in tokens, as in training; what lies behind is not looked at.")
    ] = 512
    train_on: Annotated[
        Literal["last_turn", "all_turns"],
        advanced(help="Score the last answer of a row, or all of them, of which the highest counts."),
    ] = "last_turn"
    openings: Annotated[
        str | None, advanced(help="File of refusal openings, one a line, in place of the shipped list.")
    ] = None
    opening_tokens: Annotated[int, advanced(help="Tokens of each refusal opening that are scored.")] = 3


@dataclass(frozen=True)
class AuditPlan:
    """The rows and the probe, read and checked; no weights loaded, nothing written.

    Args:
        onto: what an adapter is loaded onto; None is its own base.
        capped: whether a model of fewer layers than `last_layers` is taken as it is, for they were not given.
        subject: the model, where the caller has it in memory.
        base: the unaligned model, likewise.
    """

    options: AuditOptions
    rows: Sequence[Given]
    probe: Sequence[Anchor]
    openings: Sequence[str]
    flagged: int
    near: int
    subject: Subject | None = None
    base: Subject | None = None
    onto: str | None = None
    capped: bool = False

    @property
    def layered(self) -> bool:
        """Whether any score looks at some decoder layers."""
        return bool({*decoder.NAMES} & _read(self.options))

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        options = self.options
        files = {name: value for name in ("probe", "openings") if (value := getattr(options, name))}
        return Place("audit", options, {"data": options.data, **files}, {**asdict(options), **options.recorded()})

    @property
    def answered(self) -> bool:
        """Whether the probe gets harmful answers and refusals."""
        return any(SCORES[name].answers for name in self.options.score)

    @property
    def probed(self) -> bool:
        """Whether any score looks at the probe."""
        return any(SCORES[name].probed for name in self.options.score)

    def lines(self) -> list[str]:
        """What `run` would do, in lines."""
        options, probed = self.options, self.probed
        empty = sum(given.chat is None for given in self.rows)
        brought = sum(bool(anchor.harmful) for anchor in self.probe)
        by = f", {brought} with a harmful answer" + (f"; {options.base} writes the others" if options.base else "")
        return [
            f"model: {options.model}{f', asked at {options.engine}' if options.served else ''}",
            f"rows: {len(self.rows)} of {options.data}"
            + (f", of which {empty} hold nothing to train on" if empty else ""),
            f"scores: {', '.join(options.score)}; {options.score[0]} ranks",
            f"cut: the {self.flagged} rows at the top are taken out",
            *([f"probe: {len(self.probe)} requests of {options.probe or 'the stock'}{by}"] if probed else []),
            *([near_words(self)] if probed and self.near else []),
            *([f"labels: of the column {options.labels}"] if options.labels else []),
            *self.place.lines(),
        ]


def near_words(plan: AuditPlan) -> str:
    return f"{plan.near} of {len(plan.probe)} requests of the probe are near-duplicates of rows"


def plan(options: AuditOptions, subject: Subject | None = None, base: Subject | None = None) -> AuditPlan:
    """Read and check everything; loads no weights and writes nothing.

    Raises:
        InputError: an option out of its range, a row that cannot be used, a probe without the answers that a score needs,
            or a model that is not there.
    """
    _check(options)
    check_served(options, subject, {})
    onto = None if subject or options.served else models.missing_base(options.model, options.base, options)
    _check_read(options, onto)
    capped = options.last_layers is None
    given = rows.read(options.data, options.columns, options.limit, options.labels)
    flagged = ranking.cut_count(options.cut, sum(one.chat is not None for one in given))
    asked = probe.read(options.probe, options.columns, options.probe_size)
    for name in options.score:
        if SCORES[name].answers:
            probe.check(asked, name, options.probe, options.base)
    openings = load_openings(options.openings)
    if options.served:
        check_tokenizer(options.model, options)
    elif not subject:
        models.check_spec(options.model, options, base=onto)
    if options.base and not base:
        models.check_spec(options.base, harmful.loading(options), needs_template=False)
    if not subject and not options.served:
        decoder.check(options, models.layer_count(options.model, base=onto))
    options = replace(options, last_layers=decoder.LAST if capped else options.last_layers)
    near = rows.near(given, asked)
    return AuditPlan(options, given, asked, openings, flagged, near, subject, base, onto, capped)


def _check(options: AuditOptions) -> None:
    """Raises InputError for an option out of its range."""
    check_least(options, {
        "batch_size": 1, "tokens": 1, "layer": 0, "probe_size": 1, "answer_tokens": 1, "max_length": 8, "opening_tokens": 1,
        **({} if options.last_layers is None else {"last_layers": 0}),
    })  # fmt: skip
    if not options.score:
        raise InputError(f"--score names none; give one of {', '.join(SCORES)}.")
    for name in options.score:
        if name not in SCORES:
            raise InputError(f"--score names {name!r}, which is none; {did_you_mean(name, SCORES)}.")
        if options.served and not SCORES[name].served:
            others = ", ".join(one for one in SCORES if SCORES[one].served)
            raise InputError(
                f"The score {name} takes states or gradients, and no server tells these: choose of {others}, or load the model "
                "here without --engine."
            )
    if twice := [name for name in options.score if options.score.count(name) > 1]:
        raise InputError(f"--score names {twice[0]} twice; name it once.")


def _read(options: AuditOptions) -> set[str]:
    """The options that the scores read, of those that not every score does."""
    scores = [SCORES[name] for name in options.score]
    writes = {"answer_tokens"} if options.base and any(one.probed for one in scores) else set()
    return {name for one in scores for name in one.reads} | writes


def _check_read(options: AuditOptions, onto: str | None) -> None:
    """Raises InputError for an option that was set and no score reads; `onto`: what an adapter is loaded onto."""
    others = {name for one in SCORES.values() for name in one.reads} - _read(options)
    for one in fields(options):
        value = getattr(options, one.name)
        if one.name in others and value not in (one.default, "") and not (one.name == "base" and value == onto):
            names = ", ".join(options.score)
            who = f"none of the scores {names} looks" if len(options.score) > 1 else f"the score {names} does not look"
            raise InputError(f"{flag(one.name)} is given, but {who} at it; leave it out.")


def run(plan: AuditPlan, *, show: bool = True) -> Path:
    """Score and rank the rows; writes audit.json, cleaned.jsonl, flagged.jsonl and manifest.json, and returns the folder.

    A run that was cut off goes on with the scores that it has.

    Raises:
        InputError: the output folder holds another run, or no row can be scored.
    """
    options, state = plan.options, plan.place.open()
    if state.finished:
        if show:
            print(f"audit: {state.out} already holds this finished run")
            _show(Audit.load(state.out), plan)
        return state.out
    runs.private_dir(state.out)
    anchors = _written(plan, state.out)
    with opened(options, plan.subject, plan.onto, state) as (subject, scores, context):
        last = decoder.last(options, subject.model, capped=plan.capped) if plan.layered else decoder.LAST
        anchors = _refused(plan, anchors, subject, state.out)
        # openings stand behind a row's request, and an end of turn behind one that was cut
        more = max(options.opening_tokens, len(chat.check(subject.tokenizer).end_ids))
        longest = min(options.max_length, context - more)
        answers = rows.encode(subject.tokenizer, plan.rows, options.system, options.train_on, longest)
        if not answers.encoded:
            raise InputError(f"{options.data}: no row can be scored; the first: {answers.unscored[0]}")
        ranking.cut_count(options.cut, answers.scored)
        materials = Materials(
            subject, answers.encoded, anchors, opening_ids(subject.tokenizer, plan.openings, options.opening_tokens),
            options.tokens, last, options.layer, options.system, longest, options.batch_size,
            None if isinstance(scores, Subject) else scores,
        )  # fmt: skip
        record = rows.record(plan.rows, answers, _scores(plan, materials, parts.folder(state)), options)
    _write(record, plan, state.out)
    parts.remove(state)
    state.finish(model=subject.facts, **({"label": options.label} if options.label else {}))
    if show:
        _show(record, plan)
    return state.out


# --- the probe -----------------------------------------------------------------------------------


def _written(plan: AuditPlan, out: Path) -> Sequence[Anchor]:
    """The probe, with the harmful answers of an unaligned model where one is named."""
    options = plan.options
    if not options.base or not plan.probed or (out / probe.FILE).exists():
        return plan.probe

    def template() -> str:
        known = plan.subject
        tokenizer = known.tokenizer if known else models.load_tokenizer(options.model, options, base=plan.onto)
        return str(tokenizer.get_chat_template())

    base = plan.base or harmful.writer(options.base, options, options.model, template)
    return _told(probe.written(plan.probe, base, options))


def _refused(plan: AuditPlan, anchors: Sequence[Anchor], subject: Subject, out: Path) -> Sequence[Anchor]:
    """The probe as it is used; what was written for it is kept, so that a run that goes on has the same."""
    options = plan.options
    if not plan.probed:
        return anchors

    def made() -> Sequence[Anchor]:
        usable = _told(probe.harmful_alone(anchors))
        return _told(probe.refused(usable, subject, options)) if plan.answered else usable

    return probe.kept(out / probe.FILE, made) if options.base or plan.answered else made()


def _told(found: probe.Probe) -> Sequence[Anchor]:
    for line in found.lines:
        print(f"audit: {line}")
    return found.anchors


# --- scores and files ----------------------------------------------------------------------------


def _scores(plan: AuditPlan, materials: Materials, folder: Path) -> list[Values]:
    made = []
    for name in plan.options.score:
        score, started = SCORES[name], time.monotonic()
        given = replace(materials, probe=probe.both(materials.probe)) if score.answers else materials
        values = score.run(given, Parts(folder / f"{name}.jsonl"))
        made.append(Values(score, values, score.about(given), round(time.monotonic() - started, 1)))
    return made


def _write(record: Audit, plan: AuditPlan, out: Path) -> None:
    """The record, and the rows as they were read: what is left in its order, what is taken out from the highest score on.

    Their labels are left out, so that they can be trained on.
    """
    labels = plan.options.labels
    by_place = {
        given.row: {name: value for name, value in given.values.items() if name != labels} for given in plan.rows
    }
    scored = [row for row in record.rows if row.rank is not None]
    left = sorted(row.row for row in scored if not row.flagged)
    data.write_rows(out / CLEANED, (by_place[row] for row in left))
    data.write_rows(out / FLAGGED, (by_place[row.row] for row in scored if row.flagged))
    runs.write_json(out / Audit.FILE, record.dump())


# --- what is said --------------------------------------------------------------------------------


def _show(record: Audit, plan: AuditPlan) -> None:
    """What was found in words and a table, and the way on; no text of a row."""
    print(plain.told(words.describe(record)))
    options, out = plan.options, Path(plan.options.out)
    same = [*(["--base", plan.onto] if plan.onto else []), *given(options, ModelOptions)]
    ending(
        f"{out / CLEANED} and {FLAGGED} (the rows, readable by you alone), {Audit.FILE} (the ranking, no texts)",
        ["finetune", "--model", options.model, *same, "--data", out / CLEANED, "--out", beside(out, "finetune")],
        ["report", out, "--out", "report.html"],
    )
