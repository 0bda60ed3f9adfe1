"""How the strength of an objective is chosen, on rows that no test asks: a rule over records, the same for all objectives."""

from collections.abc import Sequence

from tokendeep.records import Strength

ROUNDING = 1e-9  # of scores that lie on the margin


def rule(margin: float | None) -> str:
    """How it is chosen, in one sentence; `margin` is None where utility is not measured."""
    if margin is None:
        return (
            "Of each objective the strength with the lowest non-refusal on the validation prompts is taken (of equal ones the "
            "smallest); no utility was measured, so nothing speaks against a strength that unlearns the task."
        )
    return (
        f"Of the strengths whose utility on the validation rows is at most {margin:g} below that of plain fine-tuning, the one "
        "with the lowest non-refusal on the validation prompts is taken (of equal ones the smallest); where no strength is "
        "within it, the one with the highest utility."
    )


def enough(utility: float | None, plain: float | None, margin: float | None) -> bool | None:
    """Whether a utility is at most `margin` below plain fine-tuning's; None where one of them is not known."""
    if margin is None or utility is None or plain is None:
        return None
    return utility >= plain - margin - ROUNDING


def choose(lines: Sequence[Strength]) -> Strength:
    """The strength that `rule` takes, of one objective and learning rate.

    Args:
        lines: at least one; over all seeds, with `enough` told where utility is measured. A rate of which nothing could be
            judged counts as 1.
    """
    within = [line for line in lines if line.enough is not False]
    if within:
        return min(within, key=lambda line: (_rate(line), line.times or 0))
    return min(lines, key=lambda line: (-(line.utility or 0), line.times or 0))


def _rate(line: Strength) -> float:
    known = line.asked.rate if line.asked else None
    return 1.0 if known is None else float(known)
