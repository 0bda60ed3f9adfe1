"""One line for each attack on a model and data set, with what it cost: what the comparison of attacks is made from.

The settings of decoding and the suffixes of one search are taken together, and asking plainly again and again is an
attack by itself. Knows nothing of tables or tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tokendeep.attacks import ATTACKS
from tokendeep.attacks.decoding import KNOBS
from tokendeep.judges import SCORED
from tokendeep.pairing.pairs import Hits, complied
from tokendeep.records import Rate
from tokendeep.report import attacked, views
from tokendeep.report.load import TOGETHER, Run
from tokendeep.report.series import condition
from tokendeep.report.words import condition_name, percent, rate_of, share
from tokendeep.types import Sample

# Settings that a comparison must not mix.
ALIKE = ("judged", "judge_template", "grader", "system", "defence", "max_new_tokens", "template", *KNOBS)
Search = tuple[str, float, str]  # target of a suffix, its tokens, the model it was found on


@dataclass(frozen=True)
class Line:
    """One attack on one model and data set.

    `kind` and `value` (tokens given, answers asked for) or `search` say which attack; `rate` is the row that counts for
    it, in words, and `share` as a number. `tokens`, `seconds`, `passes` and `candidates` are totals over `requests`; None
    is unknown.
    """

    label: str
    data: str
    file: str
    judge: str
    settings: Mapping[str, Any]
    kind: str
    words: str
    rate: str
    share: float | None
    answers: int
    unscored: int
    requests: int
    tokens: int | None
    seconds: float | None
    passes: int = 0
    candidates: float | None = None
    value: int | None = None
    search: Search | None = None
    hits: Hits = field(default_factory=dict)
    draws: Sequence[Line] = ()  # of an attack that asks again and again: asked once, twice, ...

    def a_request(self, total: float | None, form: str = ".0f") -> str:
        """A total, for each request."""
        return "unknown" if total is None or not self.requests else format(total / self.requests, form)

    @property
    def steps(self) -> int | None:
        """Forward passes of the model: one for each token it wrote, and those of a search by rank."""
        return None if self.tokens is None else self.tokens + self.passes

    @cached_property
    def searched(self) -> str:
        """What was searched before the model was asked, for each request."""
        if self.kind == "suffix":
            return f"{self.a_request(self.candidates)} candidates"
        return f"{self.a_request(self.passes)} passes" if self.passes else "-"

    @cached_property
    def budget(self) -> str:
        """What the attack takes, in the unit in which it is comparable."""
        return self.searched if self.kind == "suffix" else f"{self.a_request(self.steps)} passes"


def attack_lines(runs: Sequence[Run]) -> list[Line]:
    """The attacks of all runs on harmful requests, those of the decoding settings and suffixes taken together.

    Where there are several judges, or views of the same answers, the label names them.
    """
    chosen = [run for run in runs if run.role == "harmful" and run.finished]
    every = [rate for run in chosen for rate in compared(run)]
    lines = [replace(line, label=line.label + views.told(rate, every)) for run in chosen for rate, line in _of_run(run)]
    files = [file for file, _ in {(line.file, line.data) for line in lines}]
    return [line if files.count(line.file) == 1 else replace(line, file=line.data) for line in lines]


def compared(run: Run) -> list[Rate]:
    """The rows that stand in lines; behind a refusal prefix nothing breaks."""
    return [rate for rate in views.distinct(run.rates or ()) if not ATTACKS[rate.attack].refuses]


def _of_run(run: Run) -> Iterator[tuple[Rate, Line]]:
    """The lines, each with a row that tells its judge."""
    for name in sorted(TOGETHER):
        line = {"decoding": _decoding, "suffix": _suffix}.get(name, _best)
        yield from ((rates[0], line(run, rates)) for rates in run.batches.get(name, ()))
    for rate in compared(run):
        if not ATTACKS[rate.attack].together:
            yield rate, _again_and_again(run, rate) if rate.attack == "none" and rate.several else _single(run, rate)


def _single(run: Run, rate: Rate) -> Line:
    kind, value = rate.attack, None
    if kind == "prefill":
        kind = "lead" if rate.params.lead else "thinking" if rate.params.thinking else kind
        value = rate.params.k
    elif kind != "none":
        value = run.config.rank_length
    return replace(_line(run, [rate], kind, rate), words=condition_name(condition(run, rate)), value=value)


def _again_and_again(run: Run, rate: Rate) -> Line:
    """The plain request, asked as often as it was; `draws` are those asked fewer times."""
    line = replace(_line(run, [rate], "samples", rate), rate=percent(rate.any_of_n), share=rate.any_of_n)
    draws = [_again(line, run, rate, count) for count in range(1, rate.samples + 1)]
    return replace(draws[-1], draws=draws, value=rate.samples)


def _again(line: Line, run: Run, rate: Rate, count: int) -> Line:
    """The plain request, asked so many times."""
    plain = condition_name(condition(run, rate))
    line = replace(line, words=f"{plain}, any of {count} at temperature {rate.params.temperature or 0.0:g}")
    answers = run.behind(rate)
    seeds = sorted({one.seed for one in answers})[:count]
    some = [one for one in answers if one.seed in seeds]
    if not some:
        return line
    hits = _hits(run, some, pooled=True)
    line = replace(line, hits=hits, tokens=sum(one.tokens for one in some))
    if not hits:
        return replace(line, rate="none scored", share=None)
    broken = sum(hit for _, hit in hits.values())
    return replace(line, rate=share(broken, len(hits)), share=broken / len(hits))


def _decoding(run: Run, rates: Sequence[Rate]) -> Line:
    settings = list(attacked.single(rates).values())
    words = f"decoding, any of {len(settings)} settings" if len(settings) > 1 else "decoding"
    words += f", chat template {run.template}" if run.template else ""
    return replace(_line(run, settings, "decoding", attacked.any_of(rates, "all") or settings[0]), words=words)


def _best(run: Run, rates: Sequence[Rate]) -> Line:
    """The best of several settings of one attack."""
    best = attacked.best_of(rates) or rates[0]
    words = best.attack + (f", best of {len(rates)}" if len(rates) > 1 else "")
    return replace(_line(run, rates, best.attack, best), words=words, hits=_hits(run, run.behind(best)))


def _suffix(run: Run, rates: Sequence[Rate]) -> Line:
    line, cost = _best(run, rates), run.cost("suffix")
    words = line.words.replace("suffix", attacked.suffix_words(run), 1)
    seconds = None if cost.seconds is None else line.seconds
    return replace(line, words=words, search=attacked.suffix_search(run), candidates=cost.candidates, seconds=seconds)


def _line(run: Run, rates: Sequence[Rate], kind: str, counted: Rate) -> Line:
    """A line over these rows, of which `counted` gives the rate; without its words."""
    first, cost = rates[0], run.cost(rates[0].attack)
    digest = (run.digest(first.params.data) or "")[:8]
    answers = [one for rate in rates for one in run.behind(rate)]
    unscored = sum(rate.unscored for rate in rates)
    given = first.params.given()
    return Line(
        label=attacked.label(run, first), data=run.data or digest, file=run.file or digest, judge=first.judge,
        settings={**{name: given.get(name) for name in ALIKE}, "template": run.template},
        kind=kind, words="", rate=rate_of(counted), share=counted.rate,
        answers=sum(rate.n for rate in rates) + unscored, unscored=unscored,
        requests=max(rate.prompts or rate.n for rate in rates),
        tokens=_total([rate.tokens for rate in rates]), seconds=_seconds(answers, cost.seconds),
        passes=int(cost.passes or 0), hits=_hits(run, answers, pooled=kind in ("samples", "decoding")),
    )  # fmt: skip


def _total(counts: Sequence[int | None]) -> int | None:
    """The sum, unknown where any part is."""
    return None if None in counts else sum(filter(None, counts))


def _seconds(answers: Sequence[Sample], search: float | None) -> float | None:
    """The model's time for these answers and the search before; unknown where any answer's is."""
    known = [one.seconds for one in answers if one.seconds is not None]
    return sum(known) + (search or 0) if answers and len(known) == len(answers) else None


def _hits(run: Run, samples: Sequence[Sample], pooled: bool = False) -> Hits:
    """Prompt -> whether its first scored answer complied, or (`pooled`) any of them.

    Where the data is known by its hash a prompt's id says which it is; else its words do, which a suffix changes.
    """
    hits: dict[str, tuple[str, bool]] = {}
    for one in sorted(samples, key=lambda one: one.seed):
        if one.outcome in SCORED and (one.prompt_id not in hits or (pooled and complied(one))):
            known = run.digest(one.params.get("data"))
            hits[one.prompt_id] = ("" if known else one.instruction, complied(one))
    return hits
