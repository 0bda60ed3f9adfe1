"""VERB deepen: safety-recovery augmentation (the paper's Eq. 2) from triples to checkpoint.

A safety row is an instruction, the first k tokens of a harmful answer as context, and a refusal as the only supervised
tokens; beside such rows every step trains on ordinary answers. What is missing of both is written by the models at hand.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tokendeep import chat, data, judges, runs
from tokendeep.data.options import DataOptions
from tokendeep.errors import InputError, check_least, check_most
from tokendeep.models import locate
from tokendeep.models.options import ModelOptions
from tokendeep.records import Training
from tokendeep.training import answers, card, chats, harmful, recovery, safety_rows
from tokendeep.training.objectives import STOCK
from tokendeep.training.options import (
    AdamBeta1,
    Epochs,
    LearningRate,
    MaxSkipped,
    RecoveryOptions,
    SaveSteps,
    Seed,
    SharedTraining,
    TrainingOptions,
    training_options,
)
from tokendeep.types import Chat, Pair, Prompt, Subject, Triple
from tokendeep.verbs.common import Place, advanced, heading, output, trained

what = heading("What to deepen")
READERS: dict[str, dict[str, Callable[..., Sequence[Any]]]] = {
    "data": {"triples": data.read_triples, "pairs": data.read_pairs, "prompts": data.read_prompts},
    "utility": {"chats": data.read_chats, "pairs": chats.load, "prompts": data.read_prompts},
}
TAKES = {
    "data": "triples (instruction, harmful, refusal), pairs (instruction, response: the harmful answer) or instructions alone",
    "utility": "chats, pairs or instructions",
}


@dataclass(frozen=True, kw_only=True)
class DeepenOptions(ModelOptions, DataOptions, SharedTraining, RecoveryOptions):
    """Deepen a model's safety by training on safety-recovery examples (the paper's Eq. 2)."""

    model: Annotated[str, what(help="The model to deepen; an adapter goes on being trained.")]
    data: Annotated[
        str, what(help="Triples (instruction, harmful, refusal), or instructions from which they are generated.")
    ]
    utility: Annotated[str, what(help="Chats with ordinary answers, or instructions that the model itself answers.")]
    harmless: Annotated[
        str | None,
        what(
            help="Harmless instructions that merely sound harmful, which the model answers itself, trained on among the utility "
            "rows against over-refusal; or stock: those of tokendeep."
        ),
    ] = None
    base: Annotated[
        str | None,
        what(
            help="Unaligned model that writes the harmful answers where the data has none; it takes the place of an adapter's "
            "own base where that is not there."
        ),
    ] = None
    lr: LearningRate = 2e-5
    epochs: Epochs = 10
    out: Annotated[str, output(help="Folder for triples.jsonl, utility.jsonl, rows/, checkpoint/ and manifest.json.")]
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False
    harmful_opening: Annotated[
        str, advanced(help="Opening behind which the model itself writes harmful answers where there is no base.")
    ] = "Sure, here is"
    refusal_system: Annotated[
        str | None, advanced(help="Safety system prompt under which refusals are sampled; --system where left out.")
    ] = None
    answer_tokens: Annotated[int, advanced(help="Longest answer in tokens that is written for training rows.")] = 128
    adam_beta1: AdamBeta1 = 0.9
    max_skipped: MaxSkipped = 0.01
    save_steps: SaveSteps = 50
    seed: Seed = 0


@dataclass(frozen=True)
class DeepenPlan:
    """What is trained on which rows: every file read, no weights loaded, nothing written.

    Args:
        rows: triples, or pairs or prompts of which triples are made.
        utility: chats, or prompts that the model answers.
        harmless: prompts that it answers as well, none of them among the utility rows.
        adapter: whether the model is an adapter, which goes on being trained.
        sources: what identifies the rows, by the option that names them.
    """

    options: DeepenOptions
    rows: Sequence[Triple | Pair | Prompt]
    utility: Sequence[Chat | Prompt]
    adapter: bool
    sources: dict[str, str]
    subject: Subject | None = None
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict)  # rows that hold nothing, by option; a line each
    harmless: Sequence[Prompt] = ()
    onto: str | None = None  # what an adapter is loaded onto; None is its own base

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        return Place("deepen", self.options, self.sources)

    def lines(self) -> list[str]:
        """What `run` would do, in lines."""
        options, training = self.options, _training(self.options, len(self.rows))
        rows, utility = (f"{len(rows)} {chats.kind(rows)}" for rows in (self.rows, self.utility))
        harmless = f" with {len(self.harmless)} harmless instructions of {options.harmless}" if options.harmless else ""
        a_step = f"{training.batch_size} a step, of which {options.safety_rows} safety rows"
        whole = isinstance(self.rows[0], Triple)
        return [
            f"model: {options.model}; trained: {training.what(self.adapter)}; {training.how()}",
            f"rows: {rows} and {utility} as utility{harmless}; {a_step}",
            f"steps: {training.max_steps}" + ("" if whole else " at most: not all instructions become triples"),
            f"objective: {_objective(options)}",
            *self.place.lines(),
        ]


def plan(
    options: DeepenOptions,
    subject: Subject | None = None,
    *,
    rows: data.Source | None = None,
    utility: data.Source | None = None,
) -> DeepenPlan:
    """Read and check everything; loads no weights and writes nothing.

    Args:
        subject: the loaded model, where the caller has it, instead of `options.model`.
        rows, utility: rows in memory, instead of the files `options.data` and `options.utility`.

    Raises:
        InputError: an option out of its range, a row that is wrong, or a model that is not there.
    """
    check(options)
    given = {"data": rows, "utility": utility}
    sources = {name: getattr(options, name) if of is None else str(data.identity(of)) for name, of in given.items()}
    if options.harmless not in (None, STOCK):
        sources["harmless"] = options.harmless
    chosen = {name: getattr(options, name) if of is None else of for name, of in given.items()}
    skipped: dict[str, list[str]] = {"data": [], "utility": []}
    read = {
        "data": _read("data", data.choose(chosen["data"], options.columns, "harmful"), skipped["data"]),
        "utility": _read(
            "utility", data.choose_beside(chosen["utility"], options.columns, "harmless"), skipped["utility"]
        ),
    }
    for name, rows_read in read.items():
        chats.check_share(skipped[name], len(rows_read), options.max_skipped, data.named(chosen[name]))
    from tokendeep import models
    from tokendeep.training import launch

    if options.base:
        models.check_spec(options.base, harmful.loading(options), needs_template=False)
    onto = None if subject else models.missing_base(options.model, options.base, options)
    if subject is None:
        models.check_spec(options.model, options, base=onto)
        adapter = locate.locate(options.model, options).adapter is not None
    else:
        adapter = hasattr(subject.model, "peft_config")
    harmless = _harmless(options, read["utility"])
    if harmless or not all(isinstance(row, Triple | Chat) for rows_read in read.values() for row in rows_read):
        models.check_read(
            "Writing refusals and answers (--data other than triples, --utility of instructions, --harmless)"
        )
    training = _training(options, len(read["data"]))
    launch.check_trained(options.model, training, adapter=adapter, dtype=options.dtype)
    launch.check_batches(training.batch_size, training.micro_batch)
    return DeepenPlan(options, read["data"], read["utility"], adapter, sources, subject, skipped, harmless, onto)


def check(options: DeepenOptions) -> None:
    """Raise InputError for an option out of its range, before anything is read."""
    _training(options, 1).check()
    RecoveryOptions.check(options)
    check_least(options, {"answer_tokens": 1, "max_skipped": 0})
    check_most(options, {"max_skipped": 1})


def _objective(options: DeepenOptions) -> str:
    return f"safety recovery (Eq. 2), alpha {options.alpha:g}, up to {options.max_context} harmful tokens"


def _training(options: DeepenOptions, triples: int) -> TrainingOptions:
    """How to train on so many triples."""
    steps = options.max_steps or triples * options.epochs // options.safety_rows or min(1, options.epochs)
    rows = options.safety_rows + options.utility_rows
    return training_options(options, max_steps=steps, batch_size=rows)


def _read(name: str, source: data.Source, skipped: list[str]) -> Sequence[Any]:
    """All rows of a source of a kind that the option takes; `skipped` gets a line for each that holds nothing."""
    kind = data.kind(source)
    if kind not in READERS[name]:
        raise InputError(f"{data.named(source)} holds {kind}, but --{name} takes {TAKES[name]}.")
    return READERS[name][kind](source, skipped=skipped)


def _harmless(options: DeepenOptions, utility: Sequence[Chat | Prompt]) -> list[Prompt]:
    """The requests of `--harmless` that are not among the utility rows."""
    known = {data.asked(row) for row in utility}
    return [row for row in safety_rows.harmless(options) if data.asked(row) not in known] if options.harmless else []


def run(plan: DeepenPlan, *, show: bool = True) -> Path:
    """Deepen the model; writes triples.jsonl, utility.jsonl, rows/, checkpoint/ and manifest.json. Returns the folder."""
    from tokendeep import models
    from tokendeep.training import fit, launch

    options, first = plan.options, runs.is_main_process()
    state = plan.place.open()
    if state.finished:
        if show and first:
            print(f"deepen: {state.out} already holds this finished run")
            _show(state, options)
        return state.out
    kind = None if plan.adapter or options.lora else "float32"  # what is trained is kept in float32 either way
    subject = plan.subject or models.load(options.model, base=plan.onto, options=options, dtype=kind, trainable=True)
    launch.check_gpus(subject)
    launch.wait_for_everyone(subject, state.out)  # the first process has opened the folder
    if not first:
        launch.wait_for([state.out / "utility.jsonl", state.out / "triples.jsonl"])
    utility, triples = _utility(subject, plan, state.out), _triples(subject, plan, state.out)
    triples, utility, skipped = _usable(subject, plan, triples, utility)
    training = _training(options, len(triples))
    planned = recovery.plan_rows(
        subject.tokenizer, triples, utility, options, steps=training.max_steps, seed=options.seed,
        system=options.system, max_length=options.max_length,
    )  # fmt: skip
    if first:
        chats.write_rows(state.out / "rows", subject.tokenizer, planned, [row.title() for row in planned])
        runs.trained.write(state.out, chats.asked([*triples, *utility]), options.model)
    ordinary = [name for name in (options.utility, options.harmless) if name]
    result = fit.train(subject, [row.row() for row in planned], state.out, training)
    if first:
        runs.write_json(state.out / Training.FILE, Training.model_validate(result).dump())
        card.write_card(
            state.out / "checkpoint", options.model, trained=training.what(plan.adapter), objective=_objective(options),
            rows=f"{len(triples)} triples ({card.short(options.data)})"
            + (f" and {len(utility)} ordinary answers ({', '.join(map(card.short, ordinary))})" if utility else ""),
            settings=f"{training.how()}, seed {options.seed}",
        )  # fmt: skip
    drawn = Counter(row.k > 0 for row in planned if row.group == recovery.SAFETY)
    state.finish(
        steps=result["steps"],
        triples=len(triples),
        utility=len(utility),
        safety_rows={"without harmful context": drawn[False], "with": drawn[True]},
        checkpoint="checkpoint",
        **({"skipped_rows": skipped} if skipped else {}),
    )
    if show and first:
        _show(state, options)
    return state.out


def _show(state: runs.Run, options: DeepenOptions) -> None:
    """What a finished run came to, and the way on."""
    done = state.manifest
    print(f"deepen: {done['steps']} steps on {done['triples']} triples and {done['utility']} utility rows")
    trained(state.out, "deepen", options)


def _usable(
    subject: Subject, plan: DeepenPlan, triples: Sequence[Triple], utility: Sequence[Chat]
) -> tuple[list[Triple], list[Chat], dict[str, list[str]]]:
    """The rows that hold something to train on, and those left out, by the option that names them.

    Raises:
        InputError: more are left out than `max_skipped` allows.
    """
    options = plan.options
    fitting, ordinary, skipped = recovery.usable(
        subject.tokenizer, triples, utility, options, system=options.system, max_length=options.max_length,
        sources=(options.data, options.utility),
    )  # fmt: skip
    used: dict[str, Sequence[Any]] = {"data": fitting, **({"utility": ordinary} if options.utility_rows else {})}
    for name, rows in used.items():
        skipped[name] = [*plan.skipped.get(name, ()), *skipped[name]]
        chats.check_share(skipped[name], len(rows), options.max_skipped, getattr(options, name))
    skipped = {name: lines for name, lines in skipped.items() if lines}
    for line in chats.told(skipped) if runs.is_main_process() else []:
        print(f"deepen: {line}")
    return fitting, ordinary, skipped


# --- making what is missing ------------------------------------------------------------------------


def _utility(subject: Subject, plan: DeepenPlan, out: Path) -> list[Chat]:
    """The utility rows: as given, or answered by the model itself; kept in utility.jsonl."""
    path, options = out / "utility.jsonl", plan.options
    if path.exists():
        return data.read_chats(path)
    rows = [row for row in plan.utility if isinstance(row, Chat)]
    asked = {"utility": [row for row in plan.utility if isinstance(row, Prompt)], "harmless": plan.harmless}
    for what, prompts in asked.items():
        if prompts:
            found = answers.distil(subject, prompts, options.answer_tokens, options.system, f"{what} answers")
            rows += found
            if dropped := len(prompts) - len(found):
                print(
                    f"deepen: {dropped} of {len(prompts)} {what} instructions left out: the model gave no usable answer"
                )
    data.write_rows(path, rows)
    return rows


def _triples(subject: Subject, plan: DeepenPlan, out: Path) -> list[Triple]:
    """The triples: as given, or completed by the models at hand; kept in triples.jsonl."""
    path = out / "triples.jsonl"
    if path.exists():
        return data.read_triples(path)
    triples = [row for row in plan.rows if isinstance(row, Triple)]
    asked = [row for row in plan.rows if not isinstance(row, Triple)]
    if asked:
        triples = make_triples(subject, asked, plan.options)
    data.write_rows(path, triples)
    return triples


def make_triples(subject: Subject, rows: Sequence[Pair | Prompt], options: DeepenOptions) -> list[Triple]:
    """Triples from instructions: refusals sampled from the model and judged, harmful answers from the rows, from
    `options.base`, or from the model itself behind an affirmative opening.

    Raises:
        InputError: no instruction got both.
    """
    system = options.refusal_system if options.refusal_system is not None else options.system
    refusals = answers.sample_refusals(
        subject, [row.messages for row in rows], tokens=options.answer_tokens, system=system, seed=options.seed
    )
    refused = [(row, text) for row, text in zip(rows, refusals, strict=True) if text]
    print(f"deepen: the model refused {len(refused)} of {len(rows)} instructions; the rest is left out")
    given = _harmful(subject, [row for row, _ in refused], options)
    triples = [
        Triple(row.id, row.messages, text, no)
        for (row, no), text in zip(refused, given, strict=True)
        if text is not None
    ]
    print(f"deepen: {len(triples)} triples; {len(refused) - len(triples)} left out whose answer was no compliance")
    if not triples:
        raise InputError(
            f"No triple could be made from {options.data}: the model refused {len(refused)} of {len(rows)} instructions; "
            "give --refusal-system, a --base that complies, or finished triples."
        )
    return triples


def _harmful(subject: Subject, rows: Sequence[Pair | Prompt], options: DeepenOptions) -> list[str | None]:
    """A harmful answer to each row: as given, or written by `base` or the model itself; None where it is none."""
    given = [(row.response, False) for row in rows if isinstance(row, Pair)]
    if given:
        complied = (judges.judge_refusal(text, truncated=cut).outcome == "complied" for text, cut in given)
        return [text.strip() if keep else None for (text, _), keep in zip(given, complied, strict=True)]
    writer, openings = subject, [options.harmful_opening]
    if options.base and rows:
        writer, openings = harmful.writer(options.base, options, options.model, subject.tokenizer.get_chat_template), []
    how = harmful.Writing(max(options.answer_tokens, options.max_context), openings)
    written = harmful.write(writer, [chat.with_system(row.messages, options.system) for row in rows], how)
    return [written[i].text if written[i].complied else None for i in range(len(rows))]
