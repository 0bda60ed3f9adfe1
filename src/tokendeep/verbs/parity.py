"""VERB parity: two engines on the same token ids: where greedy answers first differ, and how far scores lie apart.

An engine is the local one or a server. Knows nothing of attacks and judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from tokendeep import chat, data, models, plain
from tokendeep.data.options import DataOptions
from tokendeep.engines.options import ANSWER, LOCAL, EngineOptions
from tokendeep.errors import InputError, check_least, flag
from tokendeep.models.options import ModelOptions
from tokendeep.records import Parity, ParityRow
from tokendeep.records.manifest import EngineFacts
from tokendeep.runs.identity import known_identity
from tokendeep.types import Decoding, Encoded, Message, Subject
from tokendeep.verbs.common import Ints, Texts, advanced, check_place, heading, made_in, output

if TYPE_CHECKING:
    from tokendeep.engines.base import Completion, Request

what = heading("What to compare")
Ids = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ParityOptions(ModelOptions, DataOptions):
    """Compare two engines on the same token ids: greedy answers and log-probabilities."""

    model: Annotated[str, what(help="The model; of one that only servers have, the tokenizer is enough.")]
    data: Annotated[str, what(help="Pairs, whose answers begin the ones that are compared; prompts where k is 0.")]
    engine: Annotated[Texts, what(help="Given twice: local, or the address of a server (http://HOST:PORT/v1).")] = (
        field(default_factory=list)
    )
    k: Annotated[Ints, what(help="Answer tokens that are given.")] = field(default_factory=lambda: [0, 5, 20])
    limit: Annotated[int | None, what(help="Use only the first so many rows.")] = 64
    max_new_tokens: Annotated[int, what(help="Length limit of an answer, in tokens.")] = 32
    engine_model: Annotated[
        Texts, advanced(help="What the servers call the model, where one serves several; twice for each its own.")
    ] = field(default_factory=list)
    api_key_env: Annotated[
        Texts, advanced(help="Name of the environment variable that holds the servers' key; twice for each its own.")
    ] = field(default_factory=list)
    answer_timeout: Annotated[int, advanced(help="Seconds that one answer of a server may take.")] = ANSWER
    out: Annotated[
        str | None,
        output(help="Folder for parity.json, which takes the place of an earlier one; left out, none is written."),
    ] = None


@dataclass(frozen=True)
class ParityPlan:
    """The requests, as ids, and the engines that are asked."""

    options: ParityOptions
    engines: Sequence[EngineOptions]
    rows: Sequence[tuple[str, int, Ids]]  # id, k, prompt and beginning of the answer
    tokenizer: Any = field(repr=False)
    subject: Subject | None = None

    def lines(self) -> list[str]:
        """What would be asked."""
        options = self.options
        return [
            f"model: {options.model}",
            *(f"engine: {one.engine}" for one in self.engines),
            f"requests: {len(self.rows)}, answers of {options.max_new_tokens} tokens at most, {options.data}",
            f"out: {options.out or '(none)'}",
        ]


class Side(Protocol):
    """One of the two engines."""

    name: str
    facts: EngineFacts | None
    longest: int  # tokens of a row that it scores

    def answers(self, requests: Sequence[Request]) -> list[Completion]:
        """Greedy answers."""

    def scores(self, rows: Sequence[tuple[Ids, int]]) -> list[list[float]] | None:
        """Log-probabilities of the ids of each row from a place on; None where it does not score."""


def plan(options: ParityOptions, subject: Subject | None = None) -> ParityPlan:
    """Read and check everything; loads no weights, asks no server and writes nothing.

    Raises:
        InputError: not two engines, an option out of its range, a row that cannot be used, or a model that is not there.
    """
    check_least(options, {"max_new_tokens": 1, "limit": 1} if options.limit is not None else {"max_new_tokens": 1})
    if len(options.engine) != 2:
        raise InputError(f"--engine is given {len(options.engine)} times, but two are compared: give it twice.")
    if min(options.k, default=-1) < 0:
        raise InputError("--k holds no number of tokens, or one below 0.")
    check_place(options.out, (Parity.FILE,))
    named = {name: _each(options, name) for name in ("engine_model", "api_key_env")}
    engines = [
        EngineOptions()
        if one == LOCAL
        else EngineOptions(
            engine=one,
            answer_timeout=options.answer_timeout,
            **{name: values[place] for name, values in named.items()},
        )
        for place, one in enumerate(options.engine)
    ]
    here = any(not one.served for one in engines)
    for one in engines:
        one.check_engine(ModelOptions() if here else options)
    if subject is None and here:
        models.check_spec(options.model, options)
    tokenizer = subject.tokenizer if subject else models.load_tokenizer(options.model, options)
    return ParityPlan(options, engines, _rows(options, tokenizer), tokenizer, subject)


def _each(options: ParityOptions, name: str) -> list[Any]:
    """The value for either engine: one given is that of the servers, two are in their order."""
    given = list(getattr(options, name))
    servers = sum(one != LOCAL for one in options.engine)
    if len(given) > max(1, servers):
        raise InputError(
            f"{flag(name)} is given {len(given)} times, but {servers} of the engines are servers: give it once for all, or once "
            "for each."
        )
    values = iter(given * servers if len(given) == 1 else given)
    return [None if one == LOCAL else next(values, None) for one in options.engine]


def run(plan: ParityPlan, *, show: bool = True) -> Path | None:
    """Ask both engines; writes parity.json where a folder is named, and returns it.

    Raises:
        InputError: a server that cannot be used, or a request that does not fit a context.
    """
    record = parity(plan)
    return made_in(plan.options.out, record, describe(record) if show else None)


def parity(plan: ParityPlan) -> Parity:
    """Both engines' answers, and their scores of the first one's."""
    from tokendeep.engines.base import Request

    asked = [Request(ids, Decoding(max_new_tokens=plan.options.max_new_tokens)) for _, _, ids in plan.rows]
    with _opened(plan) as sides:
        one, two = ([done.ids for done in side.answers(asked)] for side in sides)
        places = [next_place(a, b) for a, b in zip(one, two, strict=True)]
        most = min(side.longest for side in sides)
        scored = [((row[2] + a)[:most], len(row[2])) for row, a in zip(plan.rows, one, strict=True)]
        scores = [side.scores([(ids, start) for ids, start in scored if len(ids) > start]) for side in sides]
        gaps = _gaps(sides, plan.rows, one, two, places, most)
    apart: list[list[float]] | None = None
    if scores[0] is not None and scores[1] is not None:
        apart = [[abs(x - y) for x, y in zip(a, b, strict=True)] for a, b in zip(*scores, strict=True)]
    each = iter(apart or [])
    rows = [
        ParityRow(
            id=row[0], k=row[1], tokens=len(a), differs_at=place, gap=gap,
            score_difference=max(next(each)) if apart is not None and len(ids) > start else None,
        )
        for row, a, place, gap, (ids, start) in zip(plan.rows, one, places, gaps, scored, strict=True)
    ]  # fmt: skip
    every = [x for row in apart or [] for x in row]
    options = plan.options
    here = next((side.subject for side in sides if isinstance(side, _Local)), None)
    return Parity(
        model=options.model, identity=None if plan.subject else known_identity(options.model),
        revision=here.revision if here else None, dtype=here.dtype if here else None,
        template=chat.template_hash(plan.tokenizer),
        engines=[side.name for side in sides], servers=[side.facts for side in sides], rows=rows,
        same=sum(place is None for place in places), scored=len(every),
        mean_difference=sum(every) / len(every) if every else None, largest_difference=max(every, default=None),
    )  # fmt: skip


def next_place(one: Ids, two: Ids) -> int | None:
    """The place of the first token that differs, from 1; None for equal answers."""
    if one == two:
        return None
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False), 1) if a != b), min(len(one), len(two)) + 1)


def describe(record: Parity) -> str:
    """The comparison in lines."""
    one, two = record.engines
    lines = [f"parity: {record.same} of {len(record.rows)} greedy answers of {one} and {two} are the same"]
    for row in record.rows:
        if row.differs_at is not None:
            by = "" if row.gap is None else f", where the first one's is likelier by {row.gap:.2g} nats"
            lines.append(f"  {row.id}, k={row.k}: token {row.differs_at} of {row.tokens} differs{by}")
    if record.largest_difference is None:
        lines.append("  log-probabilities: not compared, one of them does not tell those of given tokens")
    else:
        lines.append(
            f"  log-probabilities of {record.scored} tokens: {record.mean_difference:.2g} nats apart on the mean, "
            f"{record.largest_difference:.2g} at most"
        )
    return plain.told(lines)


def _rows(options: ParityOptions, tokenizer: Any) -> list[tuple[str, int, Ids]]:
    """Every row at every k that its answer is long enough for."""
    source = data.choose(options.data, options.columns)
    if max(options.k) == 0:
        given = [(one.id, one.messages, "") for one in data.read_prompts(source, limit=options.limit)]
    else:
        given = [(one.id, one.messages, one.response) for one in data.read_pairs(source, limit=options.limit)]
    rows = []
    for name, messages, response in given:
        turns: list[Message] = chat.with_system(list(messages), options.system)
        prompt = chat.prompt_ids(tokenizer, turns)
        answer = chat.response_ids(tokenizer, turns, response, end=False) if response else []
        rows += [(name, k, (*prompt, *answer[:k])) for k in options.k if k <= len(answer)]
    if not rows:
        raise InputError(f"No answer of {options.data} has {min(options.k)} tokens: give smaller --k.")
    return rows


def _gaps(
    sides: Sequence[Side], rows: Sequence[tuple[str, int, Ids]], one: Sequence[Ids], two: Sequence[Ids],
    places: Sequence[int | None], most: int,
) -> list[float | None]:  # fmt: skip
    """By how much one token was preferred to the other where answers differ, in rows of `most` tokens at most."""
    apart = [
        (n, place - 1) for n, place in enumerate(places)
        if place is not None and place <= min(len(one[n]), len(two[n]), most - len(rows[n][2]))
    ]  # fmt: skip
    pairs = [(rows[n][2] + ids[n][: i + 1], len(rows[n][2]) + i) for n, i in apart for ids in (one, two)]
    known = next((found for side in sides if pairs and (found := side.scores(pairs)) is not None), None)
    gaps: list[float | None] = [None] * len(rows)
    for m, (n, _) in enumerate(apart):
        gaps[n] = None if known is None else known[2 * m][0] - known[2 * m + 1][0]
    return gaps


@contextmanager
def _opened(plan: ParityPlan) -> Iterator[list[Side]]:
    """Both engines. Servers are met first: a model that takes minutes to load is of no use where one is not there."""
    sides: dict[int, Side] = {}
    with ExitStack() as stack:
        for place in sorted(range(len(plan.engines)), key=lambda n: not plan.engines[n].served):
            if plan.engines[place].served:
                sides[place] = stack.enter_context(closing(_Server(plan, plan.engines[place])))
            else:
                sides[place] = _Local(plan)
        yield [sides[place] for place in sorted(sides)]


class _Local:
    """The engine in memory."""

    name: str = LOCAL
    facts: EngineFacts | None = None
    longest = 10**9  # what does not fit was refused as a request

    def __init__(self, plan: ParityPlan) -> None:
        self.subject = plan.subject or models.load(plan.options.model, options=plan.options)

    def answers(self, requests: Sequence[Request]) -> list[Completion]:
        from tokendeep.engines.local import generate

        return generate(self.subject, requests)

    def scores(self, rows: Sequence[tuple[Ids, int]]) -> list[list[float]] | None:
        from tokendeep.compute.scoring import token_logps
        from tokendeep.types import IGNORE

        encoded = [Encoded(list(ids), [IGNORE] * start + list(ids[start:])) for ids, start in rows]
        return [one.tolist() for one in token_logps(self.subject, encoded)]


class _Server:
    """One server or several."""

    def __init__(self, plan: ParityPlan, engine: EngineOptions) -> None:
        from tokendeep.engines.server.engine import connect

        self.engine = connect(engine, plan.tokenizer, models.outline(plan.options.model, plan.options))
        self.name = self.engine.about.program
        self.facts: EngineFacts | None = EngineFacts(**self.engine.about.dump())
        self.longest = self.engine.context - 1  # a server writes a token behind what it scores

    def answers(self, requests: Sequence[Request]) -> list[Completion]:
        return [future.result() for future in [self.engine.submit(one) for one in requests]]

    def scores(self, rows: Sequence[tuple[Ids, int]]) -> list[list[float]] | None:
        if not self.engine.about.scores:
            return None
        return [list(future.result()) for future in [self.engine.score(*row) for row in rows]]

    def close(self) -> None:
        self.engine.close()
