"""A condition -> its row of compare.json: counts, paired difference, interval, p and what could have been found.

Values are of prompts, one a run: whether the answer was not refused, or the mean over several samples. Knows nothing of
settings or folders.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Any

from tokendeep import stats
from tokendeep.errors import InputError
from tokendeep.judges import JUDGES
from tokendeep.pairing.conditions import Condition, Run
from tokendeep.pairing.difference import Difference, difference
from tokendeep.pairing.pairs import Event, complied, not_answered
from tokendeep.records import ComparedRow

Values = Mapping[Hashable, float | None]  # prompt -> the value of one run; None where no answer could be judged
NOT_ANSWERED = "refused or broken off"


@dataclass(frozen=True)
class Tested:
    """A paired difference with the row that tells it; `p_holm` is not adjusted yet."""

    row: ComparedRow
    difference: Difference


def tested(condition: Condition) -> Tested:
    """The test of a condition. Raises InputError where no prompt has a scored answer on both sides."""
    harmful = condition.role == "harmful"
    event = complied if harmful else not_answered
    before, after = ([_values(run, event) for run in side] for side in (condition.before, condition.after))
    texts: dict[Hashable, str] = {prompt: prompt[1] for run in condition.before for prompt in run.answers}
    judge = JUDGES.get(condition.judge)
    about = {
        "requests": condition.role,
        "attack": condition.attack,
        "variant": condition.variant,
        "judge": condition.judge,
        "event": (judge.rate if judge else condition.judge) if harmful else NOT_ANSWERED,
        **{f"unscored_{side}": share for side, share in _unscored(condition).items()},
        "models_before": _models(condition.before),
        "models_after": _models(condition.after),
    }
    return paired(before, after, about, texts)


def paired(
    before: Sequence[Values],
    after: Sequence[Values],
    about: Mapping[str, Any],
    texts: Mapping[Hashable, str] | None = None,
) -> Tested:
    """The paired difference of values of two sides, in one or several runs each.

    Args:
        about: what is compared, as fields of the row.
        texts: the request of each prompt, of which near-duplicates count as alike; None: they are not known.
    """
    both = [prompt for prompt in dict.fromkeys(p for one in before for p in one) if any(prompt in one for one in after)]
    one, two = _means(before), _means(after)
    known = [prompt for prompt in both if prompt in one and prompt in two]
    if not known:
        name = " ".join(filter(None, (about["attack"], about["variant"], f"on {about['requests']} requests")))
        raise InputError(
            f"No prompt has a scored answer on both sides ({name}; {len(both)} prompts in common), so there is nothing to "
            "compare; look at the outcomes of either run in its report."
        )
    clusters = stats.near_duplicates(_unlike([texts[prompt] for prompt in known])) if texts else None
    off = [_off(side, means, known) for side, means in ((before, one), (after, two)) if len(side) > 1]
    change = difference([two[p] - one[p] for p in known], clusters, off)
    low, high = change.interval()
    p = change.p()
    row = ComparedRow(
        **about, n=len(known), left_out=len(both) - len(known), before=fmean(one[p] for p in known),
        after=fmean(two[p] for p in known), lost=change.lost, gained=change.gained, difference=change.mean, low=low,
        high=high, p=p, p_holm=p, test=change.test, effect=change.effect,
        clusters=len(set(clusters)) if clusters else None, detectable=change.detectable(), runs_before=len(before),
        runs_after=len(after),
    )  # fmt: skip
    return Tested(row, change)


def _unscored(condition: Condition) -> dict[str, float]:
    """Side -> the share of its answers to the prompts of both that could not be judged."""
    sides = {"before": condition.before, "after": condition.after}
    asked = {name: {prompt for run in side for prompt in run.answers} for name, side in sides.items()}
    both = asked["before"] & asked["after"]
    shares = {
        name: [share for run in side for prompt, share in run.unscored.items() if prompt in both]
        for name, side in sides.items()
    }
    return {name: fmean(every) if every else 0.0 for name, every in shares.items()}


def _models(side: Sequence[Run]) -> list[str]:
    return sorted({one.model for run in side for one in run.samples[:1]})


def _values(run: Run, event: Event) -> dict[Hashable, float | None]:
    return {prompt: fmean(map(event, answers)) if answers else None for prompt, answers in run.answers.items()}


def _means(side: Sequence[Values]) -> dict[Hashable, float]:
    """Prompt -> the mean over the runs that could judge it."""
    prompts = dict.fromkeys(prompt for run in side for prompt in run)
    values = {prompt: [x for run in side if (x := run.get(prompt)) is not None] for prompt in prompts}
    return {prompt: fmean(each) for prompt, each in values.items() if each}


def _off(side: Sequence[Values], means: Mapping[Hashable, float], prompts: Sequence[Hashable]) -> list[float]:
    """By how much each run lies off the mean of all, on the prompts that it could judge."""
    return [fmean([x - means[p] for p in prompts if (x := run.get(p)) is not None] or [0.0]) for run in side]


def _unlike(texts: Sequence[str]) -> list[str]:
    """The requests without the end that all share, such as a suffix of an attack."""
    ends = zip(*(text[::-1] for text in texts), strict=False)
    end = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, ends)) if len(set(texts)) > 1 else 0
    return [text[: len(text) - end] for text in texts]
