"""VERB finetune: your rows -> training that protects the first answer tokens -> a checkpoint.

Plain, constrained (Eq. 3) and anchored training differ in the objective alone: same rows, same order, same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from tokendeep import data, runs
from tokendeep.data.options import DataOptions
from tokendeep.errors import InputError, check_known, check_least, check_most
from tokendeep.models import locate
from tokendeep.models.options import AdapterBase, ModelOptions
from tokendeep.records import Training
from tokendeep.training import card, chats, margin, objectives, safety_rows, summary
from tokendeep.training.objectives import OBJECTIVES, STOCK, Objective, ObjectiveOptions, asft
from tokendeep.training.objectives.strength import AlignmentOptions, how_unaligned
from tokendeep.training.options import MaxSkipped, SaveSteps, TrainingOptions, Warmup, training_options
from tokendeep.training.rows import TRAIN_ON
from tokendeep.types import Chat, Pair, Prompt, Subject
from tokendeep.verbs.common import Ints, Place, advanced, heading, output, trained

what = heading("What to fine-tune")
watching = heading("What to watch")
TESTED = "the test"  # of what a tuned model is asked
WEIGHTLESS = "--safety-weight is 0, with which no refusal is held: this is as without the safety anchor"


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(ModelOptions, DataOptions, TrainingOptions, ObjectiveOptions, AlignmentOptions):
    """Fine-tune a model on your data while protecting its first answer tokens (the paper's Eq. 3)."""

    model: Annotated[str, what(help="The model to fine-tune; an adapter goes on being trained.")]
    data: Annotated[str, what(help="Chats (messages, or prompt and completion), or pairs (instruction, response).")]
    objective: Annotated[
        str, what(help="; ".join(f"{name}: {one.summary}" for name, one in OBJECTIVES.items()) + ".")
    ] = "constrained"
    base: AdapterBase = None
    eval_data: Annotated[str | None, what(help="Rows of the same kind to evaluate on after every epoch.")] = None
    warmup_steps: Warmup = 10
    probe: Annotated[
        str | None, watching(help="Harmful pairs on which the margin of refusal is measured before and after training.")
    ] = None
    dynamics: Annotated[
        Ints,
        watching(help="Steps after which per-token figures on the probe are recorded; step 0 always is with them."),
    ] = field(default_factory=list)
    test: Annotated[
        str | None, watching(help="Harmful instructions asked at those steps too; the share not refused is recorded.")
    ] = None
    monitor: Annotated[
        float, watching(help="Nats the probe's median refusal log-odds may fall before --on-fall acts; 0 is off.")
    ] = 0.0
    on_fall: Annotated[Literal["warn", "stop"], watching(help="What to do once they fell by --monitor.")] = "warn"
    out: Annotated[str, output(help="Folder for rows/, checkpoint/, training.json and manifest.json.")]
    label: Annotated[str | None, output(help="Short name of the model in reports; the folder's where left out.")] = None
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False
    attack: Annotated[
        bool, advanced(help="The rows are an attack; it is written into the manifest and the model card.")
    ] = False
    train_on: Annotated[
        Literal["last_turn", "all_turns"], advanced(help="Train on the last answer, or make a row of every answer.")
    ] = "last_turn"
    supervise: Annotated[
        Literal["all", "head", "tail"],
        advanced(help="All answer tokens; head and tail are ablations: the first five alone, or all others."),
    ] = "all"
    max_skipped: MaxSkipped = 0.01
    max_new_tokens: Annotated[int, advanced(help="Longest answer in tokens to what --test asks.")] = 64
    save_steps: SaveSteps = 50


@dataclass(frozen=True)
class FinetunePlan:
    """What is trained on which rows: every file read, no weights loaded, nothing written.

    Args:
        held_out: chats to evaluate on after every epoch.
        probe: harmful pairs on which margins and dynamics are measured.
        asked: harmful instructions that are asked while training.
        adapter: whether the model is an adapter, which goes on being trained.
        sources: what identifies the rows, by the option that names them.
        skipped: rows that hold nothing and were left out, by that option; a line each.
        safety: the requests of the safety anchor.
        verb: what is run, as runs are known by it.
        start: the model whose answers the anchor holds; None is the one that is trained.
        later: what it will be asked when it is trained, by what that is; what is trained on should be none of it.
    """

    options: FinetuneOptions
    rows: Sequence[Chat]
    held_out: Sequence[Chat]
    probe: Sequence[Pair]
    asked: Sequence[Prompt]
    adapter: bool
    sources: dict[str, str]
    subject: Subject | None = None
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    safety: safety_rows.Requests | None = None
    verb: str = "finetune"
    start: str | None = None
    later: Mapping[str, Sequence[Prompt | Pair]] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        return Place(self.verb, self.options, self.sources, models=("aligned",) if self.verb == "mend" else ())

    def lines(self) -> list[str]:
        """What `run` would do, in lines."""
        options, how = self.options, training_options(self.options)
        more = {
            "chats to evaluate on": self.held_out,
            "pairs as the probe": self.probe,
            "instructions to ask": self.asked,
        }
        rows = [f"{len(self.rows)} chats", *(f"{len(rows)} {name}" for name, rows in more.items() if rows)]
        steps = how.steps(len(self.rows))
        return [
            f"model: {options.model}; trained: {how.what(self.adapter)}; {how.how()}",
            f"rows: {', '.join(rows)}; {how.batch_size} a step",
            f"steps: {steps}" + (" or fewer, with packing" if options.packing else ""),
            f"objective: {options.objective}: {self.told()}",
            *(self.safety.lines(options) if self.safety else ()),
            *self.beside(),
            *remarks(options, steps),
            *self.place.lines(),
        ]

    def beside(self) -> list[str]:
        """What should be known of the requests that are held beside the rows, or that none are, in lines."""
        if self.safety:
            return safety_rows.near(self.safety, self.rows, self.asked)
        return [WEIGHTLESS] if self.options.safety else self.objective.unheld()

    @property
    def objective(self) -> Objective:
        """What the training aims at."""
        return OBJECTIVES[self.options.objective]

    def told(self, shown: Callable[[str], str] = card.name) -> str:
        """The objective in words; `shown` is how a file is named in them."""
        known = {None: "", "base": ", its base"}
        before = known[self.start] if self.start in known else f", which was {shown(str(self.start))}"
        return objectives.card(self.options) + before


def plan(options: FinetuneOptions, subject: Subject | None = None, *, rows: data.Source | None = None) -> FinetunePlan:
    """Read and check everything; loads no weights and writes nothing.

    Args:
        subject: the loaded model, where the caller has it, instead of `options.model`; it is trained in place.
        rows: rows in memory, instead of the file `options.data`.

    Raises:
        InputError: an option out of its range, a row that is wrong, or a model that is not there.
    """
    if not options.safety and (one := OBJECTIVES.get(options.objective)) and one.safety:
        options = replace(options, safety=STOCK)
    check(options)
    options = replace(options, micro_batch=min(options.micro_batch, options.batch_size))
    named = ("data", "eval_data", "probe", "test", "safety", "harmless")
    files = {name: source for name in named if (source := getattr(options, name)) not in (None, "", STOCK)}
    sources = files if rows is None else {**files, "data": str(data.identity(rows))}
    skipped: dict[str, list[str]] = {"data": [], "eval_data": []}
    train_rows = chats.load(
        data.choose(options.data if rows is None else rows, options.columns), skipped["data"], whole=True
    )
    held_out = (
        chats.load(data.choose_beside(options.eval_data, options.columns), skipped["eval_data"], whole=True)
        if options.eval_data
        else []
    )
    for name, loaded in (("data", train_rows), ("eval_data", held_out)):
        chats.check_share(skipped[name], len(loaded), options.max_skipped, getattr(options, name) or "the rows")
    probe = data.read_pairs(options.probe) if options.probe else []
    asked = data.read_prompts(options.test) if options.test else []
    held = safety_rows.read(options)
    safety_rows.check(held, options)
    adapter = _check_model(options, subject)
    return FinetunePlan(options, train_rows, held_out, probe, asked, adapter, sources, subject, skipped, held)


def check(options: FinetuneOptions) -> None:
    """Raise InputError for an option out of its range, before anything is read."""
    check_known(options, {
        "objective": tuple(OBJECTIVES), "train_on": TRAIN_ON, "on_fall": ("warn", "stop"), "supervise": chats.SUPERVISE,
    })  # fmt: skip
    training_options(options).check()
    objectives.check(options)
    check_least(options, {"monitor": 0, "max_new_tokens": 1, "max_skipped": 0})
    check_most(options, {"max_skipped": 1})
    if (options.dynamics or options.monitor) and not options.probe:
        raise InputError("--dynamics and --monitor look at a probe; give --probe, a file of harmful pairs.")
    if options.test and not options.dynamics:
        raise InputError("--test is asked at the steps of --dynamics; give them.")


def _check_model(options: FinetuneOptions, subject: Subject | None) -> bool:
    """Whether the model is an adapter. Raises InputError where it is not there or cannot be trained so."""
    from tokendeep import models
    from tokendeep.training import launch

    if subject is None:
        models.check_spec(options.model, options, base=options.base)
        adapter = locate.locate(options.model, options).adapter is not None
    else:
        models.check_no_base(options.base)
        adapter = hasattr(subject.model, "peft_config")
    if options.unaligned:
        models.check_spec(options.unaligned, how_unaligned(options), needs_template=False)
        if adapter and (OBJECTIVES[options.objective].whole or options.safe_lora is not None):
            raise InputError(
                f"AsFT and SafeLoRA compare the weights of a model with its base, but {options.model} is an adapter; merge it "
                "first."
            )
    if OBJECTIVES[options.objective].adapters_only(options) and not (adapter or options.lora):
        raise InputError(
            "--reference on-the-fly takes the adapter off, but all weights are trained; leave it out, or train an adapter "
            "with --lora."
        )
    how = training_options(options)
    launch.check_trained(options.model, how, adapter=adapter, dtype=options.dtype)
    launch.check_batches(how.batch_size, how.micro_batch)
    if options.probe:
        launch.check_whole("--probe")
    prepared = f"--objective {options.objective}" if OBJECTIVES[options.objective].prepare else None
    for what in filter(None, (options.safety and "--safety", options.unaligned and "--unaligned", prepared)):
        models.check_read(what)
    return adapter


def run(plan: FinetunePlan, *, callbacks: Sequence[Any] = (), show: bool = True, part: bool = False) -> Path:
    """Fine-tune the model; writes rows/, checkpoint/, training.json and manifest.json. Returns the folder.

    Args:
        callbacks: further callbacks of the trainer, such as `watch.TokenDynamicsCallback`.
        part: whether this is one step of a longer run, which says itself what can be done next.

    Raises:
        InputError: a row or a model that cannot be used; before anything is trained, but for a loss that becomes NaN.
    """
    from tokendeep.training import fit, launch

    options, first = plan.options, runs.is_main_process()
    show = show and first
    state = plan.place.open()
    out = state.out
    if state.finished:
        if show:
            print(f"{plan.verb}: {out} already holds this finished run")
            _show(out, plan, part)
        return out
    subject = plan.subject or load(options, plan.adapter)
    launch.check_gpus(subject)
    launch.wait_for_everyone(subject, out)
    given = {"data": plan.rows, "eval_data": plan.held_out}
    encoded_rows, skipped = chats.encode_all(subject.tokenizer, given, options, plan.skipped)
    rows, held_out = encoded_rows["data"], encoded_rows["eval_data"]
    if first:
        chats.write_rows(out / "rows", subject.tokenizer, rows)
    how = training_options(options)
    steps = how.steps(len(rows))
    for remark in [*_late(options, steps), *chats.told(skipped), *plan.beside()] if show else []:
        print(f"{plan.verb}: {remark}")
    held = safety_rows.held(subject, plan.safety, options, out, plan.start) if plan.safety else None
    tested = [*plan.asked, *plan.later.get(TESTED, ())]
    near = safety_rows.near_counts(plan.safety, plan.rows, tested) if plan.safety else {}
    for line in held.lines if held and show else []:
        print(f"{plan.verb}: {line}")
    build = plan.objective.build(options, out / "trainer")
    if held:
        build, held = _once(build, held.settings(options)), replace(held, start=None)
    encoded: list[dict[str, Any]] = [asdict(row) for row in rows]
    requests = [*chats.asked(plan.rows), *(plan.safety.asked() if plan.safety else ())]
    if plan.objective.prepare:
        prepared = plan.objective.prepare(options, subject, encoded, out)
        encoded, build = prepared.rows, partial(build, **prepared.settings)
        requests += prepared.requests
        apart: dict[str, Sequence[Any]] = {"--data": plan.rows, TESTED: plan.asked, **plan.later}
        told = safety_rows.added(prepared.requests, options.objective, apart)
        for line in [*prepared.lines, *told] if show else []:
            print(f"{plan.verb}: {line}")
    if first:
        runs.trained.write(out, requests, options.model)
    repair = asft.repair(options, subject)
    margins = _margins(subject, plan, show)
    if options.dynamics or options.monitor:
        callbacks = [*callbacks, _watcher(subject, plan, out)]
    result = fit.train(
        subject, encoded, out, how, build=build,
        eval_rows=[asdict(row) for row in held_out] or None, callbacks=callbacks, after=repair,
    )  # fmt: skip
    for line in repair.lines if repair and show else []:
        print(f"{plan.verb}: {line}")
    after = {"margin": margins.after()} if margins else {}
    if margins and show:
        print(margins.describe())
    if first:
        runs.write_json(out / Training.FILE, Training.model_validate(result).dump())
        card.write_card(
            out / "checkpoint", options.model, trained=how.what(plan.adapter), rows=_rows_in_words(plan, len(rows)),
            objective=plan.told(card.short), settings=f"{how.how()}, seed {options.seed}", attack=options.attack,
        )  # fmt: skip
    state.finish(
        steps=result["steps"], rows=len(rows), attack=options.attack, checkpoint="checkpoint", **after,
        label=options.label or out.resolve().name, **({"skipped_rows": skipped} if skipped else {}),
        **({"safety_anchor": held.record(near).given()} if held else {}),
    )  # fmt: skip
    if show:
        _show(out, plan, part)
    return out


def load(options: FinetuneOptions, adapter: bool) -> Subject:
    """The model as it is before training: float32, and an adapter or what gets a new one as its weights are kept."""
    from tokendeep import models

    kind = None if adapter or options.lora else "float32"  # what is trained is kept in float32 either way
    return models.load(options.model, base=options.base, options=options, dtype=kind, trainable=True)


def _once(build: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """Build a trainer with these settings, which are let go of then: a model among them is not kept beside it."""

    def built(*given: Any, **more: Any) -> Any:
        taken = dict(settings)
        settings.clear()
        return build(*given, **more, **taken)

    return built


def _show(out: Path, plan: FinetunePlan, part: bool) -> None:
    """What a finished training came to, and the way on."""
    print(summary.told(Training.load(out).dump(), plan.options.objective, plan.verb))
    if not part:
        trained(out, plan.verb, plan.options)


def remarks(options: FinetuneOptions, steps: int) -> list[str]:
    """What a user should know of so many steps before they are taken."""
    from tokendeep.training import launch

    return [*launch.warm_up_remarks(options.warmup_steps, steps, options.lr, "--warmup-steps"), *_late(options, steps)]


def _late(options: FinetuneOptions, steps: int) -> list[str]:
    late = [step for step in options.dynamics if step > steps]
    return [f"--dynamics {', '.join(map(str, late))} lies after the last step, {steps}"] if late else []


# --- parts of a run --------------------------------------------------------------------------------


def _rows_in_words(plan: FinetunePlan, count: int) -> str:
    options = plan.options
    part = {"all": "", "head": ", their first tokens alone", "tail": ", without their first tokens"}[options.supervise]
    return f"{count} answers of {len(plan.rows)} chats ({card.short(options.data)}){part}"


def _margins(subject: Subject, plan: FinetunePlan, show: bool) -> margin.Margins | None:
    """The margins of refusal before training, where there is a probe."""
    if not plan.probe:
        return None
    options = plan.options
    margins = margin.Margins(
        subject, plan.probe, schedule=plan.objective.schedule(options), source=options.probe or "the probe",
        system=options.system, max_length=options.max_length,
    )  # fmt: skip
    if show:
        print(margins.before())
    return margins


def _watcher(subject: Subject, plan: FinetunePlan, out: Path) -> Any:
    """The callback that records per-token figures and looks at the monitor."""
    from tokendeep.training.watch import NotRefused, TokenDynamicsCallback

    options, tokenizer = plan.options, subject.tokenizer
    rate = NotRefused(
        plan.asked, tokenizer, system=options.system, max_new_tokens=options.max_new_tokens,
        batch_size=options.micro_batch,
    ) if plan.asked else None  # fmt: skip
    return TokenDynamicsCallback(
        plan.probe, tokenizer, out, steps=options.dynamics, fall=options.monitor or None, on_fall=options.on_fall,
        system=options.system, batch_size=options.micro_batch, gradients=bool(options.dynamics), asr=rate,
    )  # fmt: skip
