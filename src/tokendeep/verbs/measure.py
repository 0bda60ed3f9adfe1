"""VERB measure: KL profile, refusal-recovery profile and the figures that say how deep safety goes.

Works on any causal chat model. With a base model (or an adapter, whose base is at hand) it compares
the two token by token; without one it asks, after k tokens of a harmful answer, whether the model
would rather refuse or go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from tokendeep import chat, data, models, records, runs
from tokendeep.data.options import DataOptions
from tokendeep.depth import profile as profiles
from tokendeep.depth.figures import clusters_of, recovery_interval
from tokendeep.depth.kl import FIRST, to_table
from tokendeep.depth.openings import load_openings, opening_ids
from tokendeep.depth.recovery import Recovery, Score, recovery_depth, recovery_log_odds, refine
from tokendeep.depth.served import check_served, opened
from tokendeep.engines.options import EngineOptions
from tokendeep.errors import InputError, check_least
from tokendeep.models.checks import check_tokenizer
from tokendeep.models.options import ModelOptions
from tokendeep.runs import parts
from tokendeep.runs.parts import Parts
from tokendeep.types import IGNORE, Encoded, Pair, Subject
from tokendeep.verbs.common import Ints, Place, advanced, beside, ending, given, heading, loading, output

Array = NDArray[np.float64]
what = heading("What to measure")


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(ModelOptions, EngineOptions, DataOptions):
    """Measure how many tokens deep a model's safety goes."""

    model: Annotated[str, what(help="Hub id, local folder, adapter folder, GGUF file or smollm2.")]
    data: Annotated[str, what(help="Pairs of a harmful instruction and a harmful answer (JSONL, JSON, CSV, text).")]
    base: Annotated[
        str | None,
        what(help="The unaligned model to compare with; an adapter is compared with its own base without it."),
    ] = None
    benign: Annotated[
        str | None, what(help="Pairs of an ordinary instruction and its answer, for the control curve of the KL.")
    ] = None
    text: Annotated[
        str | None,
        what(help="Ordinary texts, for the perplexity: a .txt file is one, other files have a column text."),
    ] = None
    utility_data: Annotated[
        str | None, what(help="Rows with the right answers, on which the model is asked and scored (GSM8K, SQL, ...).")
    ] = None
    utility_metric: Annotated[str, what(help="How these answers are scored: rouge1, gsm8k or sql.")] = "rouge1"
    k: Annotated[
        Ints,
        what(
            help="Numbers of harmful answer tokens already given when the model's recovery is measured; each needs answers "
            "of that many tokens and those of an opening."
        ),
    ] = field(default_factory=lambda: [0, 1, 2, 3, 4, 5, 10, 20, 40])
    limit: Annotated[int | None, what(help="Use only the first so many pairs, for a quick look.")] = None
    batch_size: Annotated[
        int, loading(help="Rows per forward pass; lower it where the memory is short, the figures stay the same.")
    ] = 16
    out: Annotated[str, output(help="Folder for profile.json and manifest.json.")]
    label: Annotated[str | None, output(help="Short name of the model in reports; its path where left out.")] = None
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False
    positions: Annotated[
        int, advanced(help="Answer positions that the depth figures look at (T); compare only runs that share it.")
    ] = 100
    openings: Annotated[
        str | None, advanced(help="File of refusal openings, one a line, in place of the shipped list.")
    ] = None
    opening_tokens: Annotated[int, advanced(help="Tokens of each refusal opening that are scored (m).")] = 3
    window: Annotated[
        int, advanced(help="Most tokens of --text that a forward pass sees; the model's context where that is less.")
    ] = 2048
    stride: Annotated[
        int, advanced(help="Tokens between the beginnings of two windows of a text; 0 is half a window.")
    ] = 0
    utility_tokens: Annotated[
        int, advanced(help="Longest task answer in tokens; many of GSM8K need more than 128.")
    ] = 256
    sequential: Annotated[
        bool, advanced(help="Load the model and its base one after the other where both do not fit into the memory.")
    ] = False
    bootstrap: Annotated[int, advanced(help="Resamples of the prompts for the intervals.")] = 2000
    seed: Annotated[int, advanced(help="Seed of --bootstrap.")] = 0


@dataclass(frozen=True)
class MeasurePlan:
    """Everything that `measure` reads, checked."""

    options: MeasureOptions
    pairs: Sequence[Pair]
    benign: Sequence[Pair]
    texts: Sequence[str]
    task: Sequence[Pair]
    openings: Sequence[str]
    onto: str | None  # what an adapter is loaded onto; None is its own base
    compared_with: str | None  # what the model is compared with; None is the adapter's own base, or nothing
    subject: Subject | None = None  # the model and its base, where the caller has them in memory already
    base: Subject | None = None

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        options = self.options
        files = {
            name: value for name in ("benign", "openings", "text", "utility_data") if (value := getattr(options, name))
        }
        return Place("measure", options, {"data": options.data, **files}, {**asdict(options), **options.recorded()})

    def lines(self) -> list[str]:
        options = self.options
        adapter = models.is_adapter(options.model) and not options.served
        versus = self.compared_with or ("its own base" if adapter else None)
        return [
            f"model: {options.model}{f', asked at {options.engine}' if options.served else ''}, "
            + (f"compared with {versus}" if versus else "with no base to compare with"),
            f"rows: {len(self.pairs)} harmful pairs of {options.data}"
            + (f", {len(self.benign)} benign pairs of {options.benign}" if options.benign else ""),
            f"recovery at k = {', '.join(map(str, sorted(set(options.k))))}; KL at {options.positions} positions",
            *(
                [f"task: {len(self.task)} rows of {options.utility_data}, by {options.utility_metric}"]
                if self.task
                else []
            ),
            *([f"perplexity: {len(self.texts)} texts of {options.text}"] if self.texts else []),
            *self.place.lines(),
        ]


def plan(options: MeasureOptions, subject: Subject | None = None, base: Subject | None = None) -> MeasurePlan:
    """Read and check everything `measure` needs; loads no weights and writes nothing.

    Args:
        subject: the model, where the caller has it in memory already.
        base: the model to compare with, likewise.

    Raises:
        InputError: an option out of range, a file or row that cannot be used, or a model that is not there.
    """
    _check(options)
    check_served(options, subject)
    pairs = data.read_pairs(data.choose(options.data, options.columns, "harmful"), limit=options.limit)
    control = data.choose_beside(options.benign, options.columns, "harmless") if options.benign else None
    benign = data.read_pairs(control, limit=options.limit) if control else []
    texts = data.read_texts(options.text)[: options.limit] if options.text else []
    task = _task(options)
    openings = load_openings(options.openings)
    onto, compared_with = (None, options.base) if subject else _bases(options)
    if options.served:
        check_tokenizer(options.model, options)
    elif not subject:
        models.check_spec(options.model, options, base=onto)
    if compared_with and not base:
        models.check_spec(compared_with, _of_base(options), needs_template=False)
    return MeasurePlan(options, pairs, benign, texts, task, openings, onto, compared_with, subject, base)


def run(plan: MeasurePlan, *, show: bool = True) -> Path:
    """Measure the model, write profile.json and manifest.json into `options.out` and return that folder.

    Args:
        show: print the depth figures.

    Raises:
        InputError: the output folder holds another run, or a row is longer than the model's context.
    """
    options = plan.options
    state = plan.place.open()
    if state.finished:
        if show:
            print(f"measure: {state.out} already holds this finished run")
            _show(state.out, plan)
        return state.out
    with opened(options, plan.subject, plan.onto, state) as (subject, scores, longest):
        plan, own = _with_own_base(plan, subject)
        rows = _encode(subject, plan.pairs, options, options.data, longest)
        control = _encode(subject, plan.benign, options, options.benign or "", longest)
        pieces = parts.folder(state)
        recovery = _recovery(subject, scores, plan, rows, pieces)
    kl, kl_benign, compared = _kl(subject, plan, rows, control, pieces)
    meta = records.ProfileMeta(
        positions=options.positions, opening_tokens=options.opening_tokens, unit="nats", model=subject.name,
        adapter=subject.adapter, base=compared, label=_label(compared, own), openings=list(plan.openings),
        template=chat.template_hash(subject.tokenizer),
    )  # fmt: skip
    bootstrap = options.bootstrap, options.seed
    profile = profiles.profile(plan.pairs, plan.benign, kl, kl_benign, recovery, meta, bootstrap)
    if plan.texts:
        profile = profile.model_copy(update={"perplexity": _perplexity(subject, plan, pieces)})
    if plan.task:
        profile = profile.model_copy(update={"utility": _utility(subject, plan, state.out)})
    runs.write_json(state.out / records.PROFILE, profile.dump())
    parts.remove(state)
    label: dict[str, Any] = {"label": options.label} if options.label else {}
    trained_on = runs.trained.count(options.model, map(data.asked, plan.pairs))
    if trained_on and show:
        print(f"measure: {trained_on} of {len(plan.pairs)} requests are among those that this model was trained on")
    label |= {} if trained_on is None else {"trained_on": trained_on}
    state.finish(
        model=subject.facts,
        **label,
    )
    if show:
        _show(state.out, plan)
    return state.out


def _show(out: Path, plan: MeasurePlan) -> None:
    """The figures of a finished run, and the way on."""
    options = plan.options
    profile = records.Profile.load(out)
    base = ["--base", plan.onto] if plan.onto else []
    same = [*base, *given(options, ModelOptions, EngineOptions, DataOptions)]
    print(profiles.describe(profile, options.label or profile.meta.model or options.model))
    ending(
        f"{out / records.PROFILE} (curves and figures, no texts)",
        ["attack", "--model", options.model, *same, "--data", options.data, "--out", beside(out, "attack")],
        ["report", out, "--out", "report.html"],
    )


def _check(options: MeasureOptions) -> None:
    if not options.k or min(options.k) < 0:
        raise InputError(f"--k is {options.k}, but it needs at least one number of answer tokens, none below 0.")
    check_least(options, {
        "positions": FIRST, "opening_tokens": 1, "batch_size": 1, "bootstrap": 100, "seed": 0, "window": 8, "stride": 0,
        "utility_tokens": 1,
    })  # fmt: skip


def _label(compared: str | None, own: bool) -> str | None:
    if compared is None:
        return None
    return "adapter against its base" if own else "alignment depth"


def _with_own_base(plan: MeasurePlan, subject: Subject) -> tuple[MeasurePlan, bool]:
    """The plan, with the base of an adapter that is not its base once it is off; and whether that is what is compared."""
    own = bool(subject.adapter) and plan.compared_with is None and plan.base is None
    for config in getattr(subject.model, "peft_config", {}).values() if own else ():
        if why := models.unlike_base(config):
            name = config.base_model_name_or_path
            if not name:
                raise InputError(f"{why}: give the base to compare with.")
            print(f"measure: {why}; {name} is loaded beside it")
            return replace(plan, compared_with=name), own
    return plan, own


def _encode(subject: Subject, pairs: Sequence[Pair], options: MeasureOptions, source: str, limit: int) -> list[Encoded]:
    """Token rows of at most `positions` supervised response tokens each, of `limit` tokens at most."""
    rows = []
    for pair in pairs:
        messages = chat.with_system(pair.messages, options.system)
        try:
            row = chat.encode(subject.tokenizer, messages, pair.response)
        except InputError as error:
            raise InputError(f"Row {pair.id} of {source}: {error}") from error
        end = min(len(row.input_ids), row.start + options.positions)
        if end > limit:
            raise InputError(
                f"Row {pair.id} of {source}: prompt and answer take {end} tokens, but the model's context is {limit}; "
                "shorten the row or lower --positions."
            )
        rows.append(Encoded(row.input_ids[:end], row.labels[:end]))
    return rows


# --- refusal recovery ---------------------------------------------------------------------------


def _recovery(
    subject: Subject, scores: Subject | Score, plan: MeasurePlan, rows: Sequence[Encoded], pieces: Path
) -> Recovery:
    options, pairs = plan.options, plan.pairs
    ids = opening_ids(subject.tokenizer, plan.openings, options.opening_tokens)
    lengths = [_answer_length(subject, pair, row, options.system) for pair, row in zip(pairs, rows, strict=True)]
    ks = sorted(set(options.k))
    scorable = [k for k in ks if k + options.opening_tokens <= max(lengths)]
    cut, m = max(lengths) == options.positions, options.opening_tokens
    reach = f"--positions looks at the first {options.positions}" if cut else f"the longest has {max(lengths)}"
    why = f"{reach} tokens, and k + {m} are needed, for the {m} behind k are what refusals are compared with"
    if not scorable:
        raise InputError(
            f"{options.data}: no answer is long enough for k = {ks[0]} ({why}); "
            f"{'raise --positions' if cut else 'give longer answers'} or give a smaller --k."
        )
    if left := [str(k) for k in ks if k not in scorable]:
        print(f"measure: k = {', '.join(left)} left out: {why}")

    def score(chosen: Sequence[int]) -> Array:
        done = Parts(pieces / f"recovery-{chosen[0]}-{chosen[-1]}-{len(chosen)}.jsonl")
        return recovery_log_odds(scores, rows, ids, chosen, lengths, done)

    def depths(measured: Recovery) -> set[float]:
        low, high = recovery_interval(measured, options.bootstrap, options.seed, clusters_of(pairs))
        return {recovery_depth(measured.k, measured.log_odds), low, high}

    return refine(Recovery(scorable, score(scorable)), score, depths)


def _answer_length(subject: Subject, pair: Pair, row: Encoded, system: str) -> int:
    """Tokens of the answer itself, without its end-of-turn token, as far as the row holds them."""
    messages = chat.with_system(pair.messages, system)
    answer = chat.response_ids(subject.tokenizer, messages, pair.response, end=False)
    return min(len(answer), sum(label != IGNORE for label in row.labels))


# --- ordinary use: a task, and texts ---------------------------------------------------------------------------------


def _task(options: MeasureOptions) -> list[Pair]:
    """The rows of the task. Raises InputError for an unknown metric, and rows that it cannot score."""
    from tokendeep.judges import tasks

    tasks.check(options.utility_metric)
    return tasks.load(options.utility_data, options.utility_metric)[: options.limit] if options.utility_data else []


def _utility(subject: Subject, plan: MeasurePlan, out: Path) -> records.Utility:
    """How well the task is done; the score of every row stands in utility.json, by which `compare` pairs them."""
    from tokendeep.judges import tasks

    options = plan.options
    found = tasks.measure(
        subject, plan.task, options.utility_metric, system=options.system, tokens=options.utility_tokens,
        batch_size=options.batch_size,
    )  # fmt: skip
    runs.write_json(out / records.UTILITY, found)
    return records.Utility.model_validate({name: found[name] for name in found if name not in ("rows", "asked")})


def _perplexity(subject: Subject, plan: MeasurePlan, pieces: Path) -> records.Perplexity:
    from tokendeep.compute import perplexity

    options = plan.options
    window = min(options.window, models.context_length(subject.model))
    stride, bootstrap = options.stride or window // 2, (options.bootstrap, options.seed)
    done = Parts(pieces / f"text-{window}-{stride}.jsonl")
    return perplexity.measure(subject, plan.texts, window, stride, options.batch_size, bootstrap=bootstrap, parts=done)


# --- KL -----------------------------------------------------------------------------------------


def _kl(
    subject: Subject, plan: MeasurePlan, rows: list[Encoded], control: list[Encoded], pieces: Path
) -> tuple[Array | None, Array | None, str | None]:
    """Per-position KL of harmful and benign rows, and the name of what the model was compared with."""
    from tokendeep.compute import scoring

    options, both, done = plan.options, rows + control, Parts(pieces / "kl.jsonl")
    if plan.compared_with is None:
        if not subject.adapter:
            return None, None, None
        values, name = scoring.token_kl(subject, None, both, options.batch_size, done), "adapter off"
    elif options.sequential:
        captured = scoring.capture(subject, both, options.batch_size)
        base = _load_base(plan)
        values, name = scoring.captured_kl(captured, base, both, options.batch_size, done), base.name
    else:
        base = _load_base(plan)
        values, name = scoring.token_kl(subject, base, both, options.batch_size, done), base.name
    table = to_table(values, options.positions)
    return table[: len(rows)], (table[len(rows) :] if control else None), name


def _load_base(plan: MeasurePlan) -> Subject:
    return plan.base or models.load(str(plan.compared_with), options=_of_base(plan.options), needs_template=False)


def _bases(options: MeasureOptions) -> tuple[str | None, str | None]:
    """What to load the adapter `options.model` onto (None: its own base), and what to compare the model with.

    An adapter that is compared with its own base needs no second model: the latter is None then.
    """
    if options.base is None or not models.is_adapter(options.model):
        return None, options.base
    if onto := models.missing_base(options.model, options.base, options):
        return onto, None
    same = models.same_model(models.adapter_base(Path(options.model)), options.base)
    return None, None if same else options.base


def _of_base(options: MeasureOptions) -> MeasureOptions:
    """The options for loading the base: the same, but a revision names one of the model's own."""
    return replace(options, revision=None)
