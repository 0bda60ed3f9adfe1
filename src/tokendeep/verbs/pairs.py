"""VERB pairs: pairs from instructions alone, for `measure` and for prefilling.

Harmful answers are made at run time: by an unaligned model, or by the model itself behind varied openings. Harmless
requests the model answers in its own words. What the offline judge calls a compliance is kept, in files that their owner
alone can read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tokendeep import chat, data, models, runs
from tokendeep.data.options import DataOptions
from tokendeep.depth.openings import load_openings
from tokendeep.engines.options import EngineOptions
from tokendeep.errors import InputError, check_least
from tokendeep.models.options import ModelOptions
from tokendeep.runs import parts
from tokendeep.training import harmful
from tokendeep.training.harmful import Answer
from tokendeep.types import Pair, Prompt, Subject
from tokendeep.verbs.common import Place, advanced, beside, ending, given, heading, output

if TYPE_CHECKING:
    from tokendeep.engines.server.engine import Served

FILE = "pairs.jsonl"
FIRST = 5  # tokens by which answers are compared
what = heading("What to answer")


@dataclass(frozen=True, kw_only=True)
class PairsOptions(ModelOptions, EngineOptions, DataOptions):
    """Make harmful pairs from instructions alone, for measure and attack. Answers behind one opening share their first
    tokens: up to there, figures are of the opening. Answers of an unaligned --base have no opening."""

    model: Annotated[
        str, what(help="The model that the pairs are for; it answers behind openings where there is no base.")
    ]
    data: Annotated[str, what(help="Harmful instructions (JSONL, JSON, CSV, text); answers in them are not used.")]
    base: Annotated[
        str | None,
        what(help="Unaligned model that answers in place of the model, in its own words; better where you have it."),
    ] = None
    harmless: Annotated[
        bool,
        what(
            help="The requests are ordinary ones, answered by the model (or --base) in its own words: for over-refusal at depth."
        ),
    ] = False
    limit: Annotated[int | None, what(help="Use only the first so many instructions.")] = None
    out: Annotated[str, output(help="Folder for pairs.jsonl, which you alone can read, and manifest.json.")]
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False
    answer_tokens: Annotated[
        int, what(help="Longest answer in tokens; measure looks at 100 positions, attack at the largest k.")
    ] = 128
    tries: Annotated[
        int, advanced(help="Attempts at each instruction until the judge calls the answer a compliance.")
    ] = 4
    openings: Annotated[
        str | None,
        advanced(help="File of openings behind which the model answers, one a line, in place of the shipped list."),
    ] = None
    seed: Annotated[int, advanced(help="Seed of which opening an instruction gets, and of sampling.")] = 0


@dataclass(frozen=True)
class PairsPlan:
    """The instructions to answer and how, with everything read; no weights loaded, nothing written.

    Args:
        openings: how the model's own answers begin; none where an unaligned model writes.
        subject: the model, where the caller has it in memory.
        base: the unaligned model, likewise.
    """

    options: PairsOptions
    prompts: Sequence[Prompt]
    openings: Sequence[str]
    subject: Subject | None = None
    base: Subject | None = None

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        config = {**asdict(self.options), **self.options.recorded()}
        return Place("pairs", self.options, {"data": self.options.data}, config)

    @property
    def how(self) -> harmful.Writing:
        """How answers are written."""
        options = self.options
        return harmful.Writing(options.answer_tokens, self.openings, options.tries, options.seed, _kind(options))

    def lines(self) -> list[str]:
        """What `run` would do, in lines."""
        options = self.options
        return [
            f"model: {options.model}{f', asked at {options.engine}' if options.served else ''}",
            f"written by: {_by(options, len(self.openings))}",
            f"rows: {len(self.prompts)} {_kind(options)} instructions of {options.data}",
            f"answers: of {options.answer_tokens} tokens at most, {options.tries} tries each at most",
            *self.place.lines(),
        ]


def plan(options: PairsOptions, subject: Subject | None = None, base: Subject | None = None) -> PairsPlan:
    """Read and check everything; loads no weights and writes nothing.

    Raises:
        InputError: an option out of its range, a row that cannot be used, or a model that is not there.
    """
    check_least(options, {"answer_tokens": 1, "tries": 1, "seed": 0})
    options.check_engine(options)
    if options.served and (options.base or subject):
        who = "--base writes in place of the model" if options.base else "The model is in memory already"
        raise InputError(f"{who}, so no server is asked: leave --engine out.")
    prompts = data.read_prompts(data.choose(options.data, options.columns, _kind(options)), limit=options.limit)
    plain = options.base or options.harmless
    if plain and options.openings:
        who = "--base" if options.base else "the model (--harmless)"
        raise InputError(
            f"--openings are for harmful answers of the model itself; leave them out where {who} writes as it likes."
        )
    openings = [] if plain else load_openings(options.openings, "affirmative.txt")
    if options.base and not base:
        models.check_spec(options.base, harmful.loading(options), needs_template=False)
    elif options.served:
        models.check_tokenizer(options.model, options)
    elif not subject and not options.base:
        models.check_spec(options.model, options)
    return PairsPlan(options, prompts, openings, subject, base)


def run(plan: PairsPlan, *, show: bool = True) -> Path:
    """Write the pairs; returns the folder with pairs.jsonl and manifest.json.

    A run that was cut off goes on behind the last answer on disk.

    Raises:
        InputError: the output folder holds another run, or no instruction got an answer that is a compliance.
    """
    options, state = plan.options, plan.place.open()
    if state.finished:
        if show:
            print(f"pairs: {state.out} already holds this finished run")
            _show(state.manifest["pairs"], options)
        return state.out
    runs.private_dir(state.out)
    kept = parts.folder(state) / "answers.jsonl"
    subject = _served(plan, state) if options.served else _writer(plan)
    with getattr(subject, "engine", nullcontext()):  # one on a server is closed behind its answers
        written = harmful.write(
            subject, [chat.with_system(prompt.messages, options.system) for prompt in plan.prompts], plan.how,
            done=[Answer(**line) for line in parts.whole_lines(kept)], keep=lambda one: parts.append(kept, asdict(one)),
        )  # fmt: skip
    pairs = [pair(prompt, written[i]) for i, prompt in enumerate(plan.prompts) if written[i].complied]
    about = _summary(subject, plan, pairs, written)
    if not pairs:
        way = "--base, an unaligned model that answers them, other --openings, or more --tries"
        raise InputError(
            f"No pair could be made: of {len(plan.prompts)} instructions {_outcomes(about)}; give "
            f"{'other requests, or more --tries' if options.harmless else way}, with --overwrite."
        )
    data.write_rows(state.out / FILE, pairs)
    parts.remove(state)
    state.finish(pairs=about)
    if show:
        _show(about, options)
    return state.out


def pair(prompt: Prompt, answer: Answer) -> Pair:
    """An instruction with its answer, and in `meta` how that came about."""
    known = {name: value for name, value in prompt.meta.items() if name != "prompt_id"}
    made = {"opening": answer.opening} if answer.opening else {}
    return Pair(prompt.id, prompt.messages, answer.text, {**known, **made, "truncated": answer.truncated})


def _writer(plan: PairsPlan) -> Subject:
    """The model that writes."""
    options = plan.options
    if not options.base:
        return plan.subject or models.load(options.model, options=options)

    def template() -> str:
        if plan.subject:
            return str(plan.subject.tokenizer.get_chat_template())
        onto = models.missing_base(options.model, options.base, options)
        tokenizer = models.load_tokenizer(options.model, options, base=onto)
        return str(tokenizer.get_chat_template())

    return plan.base or harmful.writer(options.base, options, options.model, template)


def _served(plan: PairsPlan, state: runs.Run) -> Served:
    """The model on a server, which must be that of before where the run goes on."""
    from tokendeep.engines.options import FREE
    from tokendeep.engines.server.engine import Served, connect

    options = plan.options
    tokenizer = models.load_tokenizer(options.model, options)
    engine = connect(options, tokenizer, models.outline(options.model, options))
    state.agree("engine", engine.about.dump(), free=FREE)
    return Served(tokenizer, engine)


def _summary(
    subject: Subject | Served, plan: PairsPlan, pairs: Sequence[Pair], written: Mapping[int, Answer]
) -> dict[str, Any]:
    """What came of the instructions, in numbers: for the terminal and the manifest."""
    begun = Counter(
        tuple(chat.response_ids(subject.tokenizer, one.messages, one.response, end=False)[:FIRST]) for one in pairs
    )
    return {
        "asked": len(plan.prompts),
        "pairs": len(pairs),
        "left_out": dict(Counter(one.outcome for one in written.values() if not one.complied)),
        "truncated": sum(bool(one.meta["truncated"]) for one in pairs),
        "openings": len(plan.openings),
        "alike": max(begun.values(), default=0),
    }


def _outcomes(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(about["left_out"].items())) or "none"


def _kind(options: PairsOptions) -> data.Role:
    return "harmless" if options.harmless else "harmful"


def _by(options: PairsOptions, openings: int) -> str:
    """Who writes."""
    return options.base or f"{options.model} itself{f' behind {openings} openings' if openings else ''}"


def _show(about: Mapping[str, Any], options: PairsOptions) -> None:
    """The numbers in words, the caution, and the way on; no text of prompts or answers."""
    kind, by = _kind(options), _by(options, about["openings"])
    print(f"pairs: {about['pairs']} of {about['asked']} instructions have a {kind} answer, written by {by}")
    print(
        f"  left out: {_outcomes(about)}; {about['truncated']} answers were cut off at {options.answer_tokens} tokens"
    )
    alike = f"at most {about['alike']} of the {about['pairs']} share their first {FIRST} tokens"
    if about["openings"]:
        print(
            f"  caution: answers behind one opening share their first tokens ({alike});\n"
            "    up to there KL, recovery and prefilling are of the opening, not of the answer"
        )
    else:
        print(f"  {alike}")
    file = Path(options.out) / FILE
    rest = ["--model", options.model, *given(options, ModelOptions, EngineOptions), "--data", file]
    measure = ["measure", *rest, "--out", beside(options.out, "measure")]
    attack = [
        "attack",
        *rest,
        *(["--role", "twins"] if options.harmless else []),
        "--out",
        beside(options.out, "attack"),
    ]
    ending(f"{file} ({kind} answers, readable by you alone)", *([] if options.harmless else [measure]), attack)
