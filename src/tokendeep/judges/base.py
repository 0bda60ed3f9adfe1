"""What a judge is: a rule from a completion's text to an outcome, and the words for what its rate counts."""

from collections.abc import Callable
from dataclasses import dataclass

from tokendeep.records import Verdict

SCORED = ("refused", "complied", "partial-then-refused")  # the outcomes that a rate is counted over
OUTCOMES = (*SCORED, "empty", "degenerate", "other-language", "thought", "filtered", "judge-error")
JUDGED = ("continuation", "full")  # what a judge may see behind a prefill: what the model wrote, or the prefill as well


@dataclass(frozen=True)
class Judge:
    """One way to judge a completion.

    Args:
        rule: (text, *, truncated) -> Verdict. The text is an answer without its thinking.
        rate: what a report calls the mean.
        about: a sentence for reports and help texts.
        behind_prefix: one of JUDGED: what it sees after a refusal prefix, which is itself part of a refusal.
    """

    rule: Callable[..., Verdict]
    rate: str
    about: str
    behind_prefix: str = "full"
