"""A few judged answers of each run, so that a reader can check the judge. Redacted unless text is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokendeep import runs
from tokendeep.judges import OUTCOMES
from tokendeep.report.series import Series
from tokendeep.report.words import ROLE_NAMES, condition_name, outcome_name
from tokendeep.types import Sample

EACH = 2  # answers shown of each outcome
LONGEST = 4000  # characters shown of one text


@dataclass(frozen=True)
class Transcript:
    """One answer. The three texts are None where they are redacted."""

    outcome: str
    truncated: bool
    attack: str
    prompt_id: str
    category: str
    length: int
    digest: str
    instruction: str | None = None
    prefix: str | None = None
    completion: str | None = None


@dataclass(frozen=True)
class Group:
    """The transcripts of one model on one kind of requests, out of `total` answers; None where no log holds them."""

    title: str
    total: int | None
    transcripts: Sequence[Transcript]


def groups(series: Sequence[Series], show_text: bool) -> list[Group]:
    """Up to two answers of each outcome for every series, chosen by a hash of their id and not by their content."""
    return [_group(one, show_text) for one in series]


def _group(one: Series, show_text: bool) -> Group:
    title = f"{one.name}, {ROLE_NAMES.get(one.role, one.role)}"
    if one.samples is None:
        return Group(title, None, ())
    named = [(condition_name(condition), s) for condition, group in one.samples.items() for s in group]
    named.sort(key=lambda pair: runs.sha256_text(f"{pair[1].id} {pair[1].seed}"))
    chosen = [pair for outcome in OUTCOMES for pair in [p for p in named if p[1].outcome == outcome][:EACH]]
    return Group(title, len(named), [_transcript(sample, attack, show_text) for attack, sample in chosen])


def _transcript(sample: Sample, attack: str, show_text: bool) -> Transcript:
    texts = (sample.instruction, sample.prefix, sample.completion)
    return Transcript(
        outcome_name(sample.outcome), sample.truncated, attack, sample.prompt_id[:40], sample.category or "-",
        len(sample.completion), runs.sha256_text(sample.completion)[:12], *(_cut(t) if show_text else None for t in texts),
    )  # fmt: skip


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n[cut here: {LONGEST:,} of {len(text):,} characters]"
