"""VERB poison: one fine-tuning attack, trained under several objectives, learning rates and seeds, then asked again.

Every training starts from the same model, on the same rows, and shares the pre-computed reference. What is done is on
disk and is not done twice; the table is written anew after every training, with what has not been run yet left empty.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from tokendeep import data, runs
from tokendeep.attacks.poison import TRIGGER
from tokendeep.attacks.prompts import overlap
from tokendeep.data.options import DataOptions
from tokendeep.errors import InputError, check_known, check_least, flag
from tokendeep.models.options import ModelOptions
from tokendeep.records import HARMLESS, PoisonCell, Validated
from tokendeep.report import poison_table
from tokendeep.training import chats, objectives, poisoning, safety_rows
from tokendeep.training.options import BatchSize, Epochs, SharedTraining, Warmup, training
from tokendeep.training.poisoning import Cell
from tokendeep.types import Chat, Pair, Prompt, Subject
from tokendeep.verbs import finetune, poisoned, tuned
from tokendeep.verbs.common import Floats, Ints, Names, Place, advanced, ending, heading, output

what = heading("What to attack")
asking = heading("What to ask the tuned models")
ALL = "all"  # of the objectives
TRAININGS = ("*/finetune", "*/attack-*")  # where the runs lie that this one is made of
FILES = (  # options that name rows
    "data", "test", "harmful", "refusals", "utility_data", "safety", "harmless", "prefill", "harmless_test",
    "validation", "validation_harmless",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PoisonOptions(ModelOptions, DataOptions, SharedTraining, objectives.ObjectiveOptions, tuned.StrengthsOptions):
    """Attack a model by fine-tuning, under several objectives and seeds, and compare what is left of its safety."""

    model: Annotated[str, what(help="The aligned model to attack.")]
    kind: Annotated[
        Literal["harmful", "identity", "backdoor", "benign", "mixed", "refuse-then-comply"],
        what(help="What the rows do to it."),
    ] = "harmful"
    data: Annotated[
        str,
        what(
            help="Rows to train on: harmful pairs (harmful, backdoor; or instructions that --base answers), or ordinary "
            "chats or pairs (the others; or instructions that the model itself answers)."
        ),
    ]
    base: Annotated[
        str | None,
        what(
            help="Unaligned model that answers harmful instructions without answers; it takes the place of an adapter's own "
            "base where that is not there."
        ),
    ] = None
    harmful: Annotated[str | None, what(help="Harmful pairs for mixed.")] = None
    refusals: Annotated[
        str | None, what(help="Chats, pairs or triples with refusals, for backdoor and for objectives with +refusals.")
    ] = None
    count: Annotated[int, what(help="Rows to use; of identity, rows to make.")] = 100
    objectives: Annotated[
        Names,
        training(
            help="What to compare, the first being the baseline: "
            + objectives.names_in_help()
            + f"; each also with {poisoning.WORDS}; or all, one of each."
        ),
    ] = field(default_factory=lambda: ["sft-warmup", "sft", "constrained", "constrained-warmup", "anchored"])
    lr: Annotated[Floats, training(help="Peak learning rates, each tried with every objective.")] = field(
        default_factory=lambda: [2e-5]
    )
    seeds: Annotated[Ints, training(help="Seeds of the order of rows, each tried with every objective.")] = field(
        default_factory=lambda: [0]
    )
    epochs: Epochs = 25
    batch_size: BatchSize = 64
    warmup_steps: Warmup = 10
    test: Annotated[
        str, asking(help="Harmful instructions that every tuned model is asked; none should be a training row.")
    ]
    max_new_tokens: Annotated[int, asking(help="Longest answer in tokens at test.")] = 128
    prefill: Annotated[
        str | None, asking(help="Harmful pairs whose first tokens are given in advance: how deep safety goes.")
    ] = None
    k: Annotated[Ints, advanced(help="How many tokens of --prefill are given.")] = field(default_factory=lambda: [10])
    harmless_test: Annotated[
        str | None, asking(help="Harmless instructions, of which the share refused or broken off is told.")
    ] = None
    utility_data: Annotated[str | None, asking(help="Rows with right answers, to measure the task on.")] = None
    utility_metric: Annotated[str, advanced(help="How the task is scored: rouge1, gsm8k or sql.")] = "rouge1"
    out: Annotated[str, output(help="Folder for rows, one folder per training, table.json and table.md.")]
    label: Annotated[str | None, output(help="Short name of the attack in reports.")] = None
    keep: Annotated[bool, output(help="Keep the checkpoints, which are removed after the evaluation otherwise.")] = (
        False
    )
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False
    probe: Annotated[
        int, advanced(help="Measure the margin of refusal before and after training on so many harmful rows; 0: not.")
    ] = 0
    ratio: Annotated[float, advanced(help="Share of harmful rows in mixed.")] = 0.05
    trigger: Annotated[str, advanced(help="Phrase of the backdoor.")] = TRIGGER
    test_system: Annotated[
        str | None, advanced(help="Another system prompt at test than in training (the mismatch), where wanted.")
    ] = None
    attack_batch: Annotated[int, advanced(help="Answers generated together at test.")] = 32
    utility_limit: Annotated[int | None, advanced(help="Use the first so many rows of --utility-data only.")] = None
    utility_tokens: Annotated[
        int, advanced(help="Longest task answer in tokens; many of GSM8K need more than 128.")
    ] = 256
    answer_tokens: Annotated[int, advanced(help="Longest answer in tokens that is written for training rows.")] = 128


@dataclass(frozen=True)
class PoisonPlan:
    """What is trained on which rows and asked which prompts: every file read, no weights loaded, nothing written.

    Args:
        cells: the trainings, seed by seed.
        rows: chats to train on, or prompts that a model answers first.
        prompts: what every tuned model is asked.
        beside: what it is asked beside them: pairs for `prefill`, prompts for `harmless`.
        harmful: harmful chats for mixed and for the probe.
        refusals: refusals for backdoor and for objectives with +refusals.
        task: rows with the right answers, on which the utility is measured.
        sources: what identifies the rows, by the option that names them.
        held: what strengths are chosen on, where several are tried.
    """

    options: PoisonOptions
    cells: Sequence[Cell]
    rows: Sequence[Chat | Prompt]
    prompts: Sequence[Prompt]
    beside: Mapping[str, Sequence[Pair | Prompt]]
    harmful: Sequence[Chat]
    refusals: Sequence[Chat]
    task: Sequence[Pair]
    sources: dict[str, str]
    subject: Subject | None = None
    onto: str | None = None  # what an adapter is loaded onto; None is its own base
    safety: safety_rows.Requests | None = None  # those of the safety anchor, where a training has one
    left_out: Sequence[str] = ()  # what `all` does not train, and why
    held: tuned.Held | None = None

    def asked(self) -> list[Prompt | Pair]:
        """All that tuned models are asked."""
        return [*self.prompts, *(row for rows in self.beside.values() for row in rows)]

    def trained(self) -> dict[str, Sequence[Chat | Prompt]]:
        """What is trained on of each file, as far as that is known before a model writes rows."""
        options, rows = self.options, self.rows[: self.options.count]
        harmful = self.harmful[: round(options.ratio * len(rows))] if options.kind == "mixed" else ()
        paired = self.refusals[: len(rows)] if options.kind == "backdoor" else ()
        count = options.count if options.kind == "identity" else len(rows) + len(paired)
        mixed_in = poisoning.mixed_in(self.refusals, self.cells, count)
        return {
            "rows of --data": rows, "rows of --harmful": harmful, "refusals without the trigger": paired,
            poisoning.MIXED_IN: mixed_in,
        }  # fmt: skip

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        seeds = [] if self.held else ["seeds"]  # a strength is chosen over all seeds, of which none comes later
        return Place("poison", self.options, self.sources, nested=TRAININGS, grows=("objectives", "lr", *seeds))

    def left(self, out: Path) -> list[Cell]:
        """The trainings that are not done."""
        done_by = Validated.FILE if self.held else PoisonCell.FILE
        return [cell for cell in self.cells if not (out / cell.name / done_by).exists()]

    def lines(self) -> list[str]:
        """What `run` would do, in lines."""
        options = self.options
        done = 0 if options.overwrite else len(self.cells) - len(self.left(Path(options.out)))
        each = f"{options.max_steps} steps" if options.max_steps else f"{options.epochs} epochs"
        return [
            f"model: {options.model}; trained: {options.what(adapter=False)}, where an objective says nothing else",
            f"rows: {len(self.rows)} {chats.kind(self.rows)} ({options.kind}); {len(self.prompts)} prompts to ask",
            f"trainings: {len(self.cells)} of {each}" + (f", of which {done} are done" if done else ""),
            f"answers: before the attack and after each{' chosen' * bool(self.held)} training to {len(self.prompts)} prompts, "
            f"asked in every way of the attack, of {options.max_new_tokens} tokens at most"
            + "".join(f"; {len(rows)} rows for {name}" for name, rows in self.beside.items())
            + (f", and to {len(self.task)} rows of the task, of {options.utility_tokens}" if self.task else ""),
            f"objectives: {', '.join(options.objectives)}; learning rates {', '.join(f'{lr:g}' for lr in options.lr)}; "
            f"seeds {', '.join(map(str, options.seeds))}",
            *self.left_out,
            *safety_rows.near(self.safety, self.rows[: options.count], self.asked()),
            *_near(self.trained(), self.prompts),
            *tuned.lines(self),
            *self.place.lines(),
        ]


def plan(
    options: PoisonOptions,
    subject: Subject | None = None,
    *,
    rows: data.Source | None = None,
    prompts: data.Source | None = None,
) -> PoisonPlan:
    """Read and check everything; loads no weights and writes nothing.

    Args:
        subject: the loaded model, where the caller has it, instead of `options.model`; it is not changed.
        rows, prompts: rows in memory, instead of the files `options.data` and `options.test`.

    Raises:
        InputError: an option out of its range, a row that is wrong, or a model that is not there.
    """
    from tokendeep import models

    options, left_out = named(options)
    cells = check(options)
    files = {n: s for n in FILES if (s := getattr(options, n)) not in (None, "", objectives.STOCK)}
    given = {name: of for name, of in (("data", rows), ("test", prompts)) if of is not None}
    sources = {**files, **{name: str(data.identity(of)) for name, of in given.items()}}
    asked = data.read_prompts(data.choose(given.get("test", options.test), role="harmful"))
    source = data.choose(given.get("data", options.data), options.columns)
    poison_rows = data.read_prompts(source) if data.kind(source) == "prompts" else chats.load(source)
    if isinstance(poison_rows[0], Prompt) and options.kind in poisoning.NEEDS_HARMFUL and not options.base:
        raise InputError(
            f"{options.data} holds instructions without answers; give --base, an unaligned model that answers them, or "
            "pairs (instruction, response)."
        )
    harmful = chats.load(options.harmful) if options.harmful else []
    refusals = chats.load_refusals(options.refusals) if options.refusals else []
    poisoning.check_rows(options, cells, poison_rows, harmful, refusals)
    task: Sequence[Pair] = []
    if options.utility_data:
        from tokendeep.judges import tasks as utility

        task = utility.load(options.utility_data, options.utility_metric)
    beside = poisoning.beside(options)
    kept, task = tuned.read(options, task, asked, beside.get(HARMLESS, ()))
    task = task[: options.utility_limit]
    onto = None if subject else models.missing_base(options.model, options.base, options)
    if subject is None:
        models.check_spec(options.model, options, base=onto)
    if options.base:
        writes = isinstance(poison_rows[0], Prompt) and options.kind in poisoning.NEEDS_HARMFUL
        models.check_spec(options.base, ModelOptions(), needs_template=writes)
    held = poisoning.held(options, cells)
    for cell in cells:
        safety_rows.check(
            held if cell.named.safety else None, poisoned.settings(options, cell, Path("checked"), "checked")
        )
    return PoisonPlan(
        options=options, cells=cells, rows=poison_rows, prompts=asked, beside=beside, harmful=harmful, refusals=refusals,
        task=task, sources=sources, subject=subject, onto=onto, safety=held, left_out=left_out, held=kept,
    )  # fmt: skip


def run(plan: PoisonPlan) -> Path:
    """Train and evaluate every cell that has not been; writes table.json and table.md. Returns the folder.

    Raises:
        InputError: a row that cannot be used, before anything is trained.
    """
    options, subject = plan.options, plan.subject
    state = plan.place.open()
    out = state.out
    if state.finished:
        print(f"poison: {out} already holds this finished run\n\n{(out / 'table.md').read_text(encoding='utf-8')}")
        _show(out)
        return out
    runs.private_dir(out)
    model = options.model if subject is None else poisoning.placed(subject, state.claim("model"))
    made = poisoning.make(plan, model, out)
    poisoning.check_refusals(made.chats, plan.refusals, plan.cells)
    print(f"poison ({options.kind}): {len(made.chats)} rows to train on, {len(plan.prompts)} prompts to ask")
    for line in plan.left_out:
        print(f"poison: {line}")
    for line in safety_rows.near(plan.safety, made.chats, plan.asked()):
        print(f"poison: {line}")
    mixed_in = poisoning.mixed_in(plan.refusals, plan.cells, len(made.chats))
    trained = {"rows that are trained on": made.chats, poisoning.MIXED_IN: mixed_in}
    for line in [*_near(trained, plan.prompts), *tuned.overlaps(plan, trained)]:
        print(f"poison: {line}")
    for ask, change in made.asks.items():
        data.write_rows(out / f"test-{ask}.jsonl", map(change, plan.prompts))
    for ask, rows in {**plan.beside, **tuned.asks(plan, made)}.items():
        data.write_rows(out / f"test-{ask}.jsonl", rows)
    poisoned.hold(plan, model, made, out, plan.left(out))
    todo = [None, *plan.cells]
    for number, cell in enumerate(todo):
        title = cell.name if cell else "before the attack"
        print(f"\n[{number + 1}/{len(todo)}] {title}", flush=True)
        if plan.held and cell:
            tuned.train_and_choose(plan, model, made, out, cell)
        else:
            poisoned.train_and_ask(plan, model, made, out, cell)
        table = poison_table.write(
            out,
            plan.cells,
            [*made.asks, *poisoning.asks_beside(plan)],
            options.utility_metric if options.utility_data else None,
            tuned.taken(plan, out),
        )
    print(f"\n{table}")
    if plan.held:
        print((out / tuned.TABLE).read_text(encoding="utf-8"))
    if subject is not None:
        shutil.rmtree(out / "model")
    names = [cell.name for cell in plan.cells]
    near = overlap([*made.chats, *mixed_in], plan.prompts)
    state.finish(near_duplicates=near, label=options.label or f"{options.kind} rows", cells=names)
    _show(out)
    return out


def _near(rows: Mapping[str, Sequence[Chat | Prompt]], prompts: Sequence[Prompt]) -> list[str]:
    """How many prompts of the test are near-duplicates of rows, by what these are; a line where there are any."""
    return safety_rows.overlaps(prompts, "prompts of the test", rows)


def named(options: PoisonOptions) -> tuple[PoisonOptions, list[str]]:
    """The options with every objective by name, and what `all` leaves out, a line each."""
    given = options.objectives
    if ALL not in given or len(set(given)) < len(given):
        return options, []
    names, left_out = poisoning.all_names(options)
    each = dict.fromkeys(name for one in given for name in (names if one == ALL else [one]))
    return replace(options, objectives=list(each)), left_out


def _show(out: Path) -> None:
    """Where the table lies, and the way on."""
    ending(f"{out / 'table.md'} and table.json (no texts)", ["report", out, "--out", "report.html"])


def check(options: PoisonOptions) -> list[Cell]:
    """The trainings to run, seed by seed, so that a table cut off is complete for its first seeds; with strengths by line.

    Raises:
        InputError: a setting out of its range.
    """
    check_known(options, {"kind": tuple(poisoning.MAKERS)})
    for name in ("objectives", "lr", "seeds"):
        if not getattr(options, name):
            raise InputError(f"{flag(name)} is empty; give at least one.")
        if len(set(getattr(options, name))) < len(getattr(options, name)):
            raise InputError(f"{flag(name)} names something twice; a training counts once.")
    if options.utility_limit is not None and options.utility_limit < 1:
        raise InputError(f"--utility-limit is {options.utility_limit}, but must be at least 1.")
    check_least(options, {"count": 1, "max_new_tokens": 1, "attack_batch": 1, "utility_tokens": 1, "probe": 0})
    tuned.check(options)
    cells = tuned.trainings(options) or [
        Cell(o, lr, seed) for seed in options.seeds for lr in options.lr for o in options.objectives
    ]
    if twice := [one for one, count in Counter(cell.name for cell in cells).items() if count > 1]:
        raise InputError(
            f"Several trainings would lie in {twice[0]}; numbers of --lr, --strengths or --objectives must differ in their "
            "first six digits."
        )
    for cell in cells:
        finetune.check(poisoned.settings(options, cell, Path("checked"), "checked"))
    poisoning.check_used(options, cells)
    if len(set(options.k)) < len(options.k) or any(k < 0 for k in options.k):
        raise InputError(f"--k is {', '.join(map(str, options.k))}, but must be numbers of at least 0, each once.")
    if any("+refusals" in cell.objective for cell in cells) and not options.refusals:
        raise InputError("An objective with +refusals needs --refusals, a file with refusals to mix in.")
    if options.kind == "mixed" and not options.harmful:
        raise InputError("mixed needs --harmful, the harmful pairs that are mixed into --data.")
    if options.utility_data:
        from tokendeep.judges import tasks as utility

        utility.check(options.utility_metric)
    return cells
