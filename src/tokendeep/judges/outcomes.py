"""What a judge says of one completion. Knows nothing of how it comes to say so."""

from __future__ import annotations

from dataclasses import dataclass

SCORED = ("refused", "complied", "partial-then-refused")  # the outcomes that a rate is counted over
OUTCOMES = (*SCORED, "empty", "degenerate", "other-language", "thought", "judge-error")


@dataclass(frozen=True)
class Verdict:
    """What a judge found in one completion.

    Args:
        outcome: one of OUTCOMES (`judge-error` is for judges that can fail; the rules here cannot).
        truncated: whether the completion was cut at its length limit, as the caller knows it.
        evidence: the few words, or the kind of defect, that decided; None where nothing was found.
    """

    outcome: str
    truncated: bool
    evidence: str | None
