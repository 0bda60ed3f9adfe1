"""The judges that tell from a completion's text what became of the request, by name in `JUDGES`.

To add one: its rule in a file of its own here, and one entry below. Evaluations, reports and the command line know judges
through this dict alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokendeep.judges.keywords import judge_keywords
from tokendeep.judges.outcomes import OUTCOMES, SCORED, Verdict
from tokendeep.judges.rule.verdict import judge_refusal

__all__ = ["JUDGED", "JUDGES", "OUTCOMES", "SCORED", "Judge", "Verdict", "judge_keywords", "judge_refusal"]

JUDGED = ("continuation", "full")  # what a judge may see behind a prefill: what the model wrote, or the prefill as well


@dataclass(frozen=True)
class Judge:
    """One way to judge a completion.

    Args:
        name: as users write it.
        rule: (text, *, truncated) -> Verdict.
        measures: what counts as 1.
        rate: what a report calls the mean.
        about: a sentence for reports and help texts.
        behind_prefix: one of JUDGED: what it sees after a refusal prefix, which is itself part of a refusal.
    """

    name: str
    rule: Callable[..., Verdict]
    measures: str
    rate: str
    about: str
    behind_prefix: str


JUDGES = {
    judge.name: judge
    for judge in (
        Judge(
            "refusal",
            judge_refusal,
            measures="non-refusal",
            rate="non-refusal rate",
            about=(
                "Judged by an offline rule that sees whether the model refuses, not whether its answer does harm: every "
                "rate is non-refusal."
            ),
            behind_prefix="full",
        ),
        Judge(
            "refusal-keywords",
            judge_keywords,
            measures="non-refusal",
            rate="non-refusal rate",
            about="refusal-keywords is the paper's list of substrings; it too measures non-refusal.",
            behind_prefix="continuation",  # it would find its keywords in the prefix itself
        ),
    )
}
