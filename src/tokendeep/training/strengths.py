"""How the strength of an objective is chosen, on rows that no test asks: a rule over records, the same for all objectives."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokendeep.records import AskRate, Strength

ROUNDING = 1e-9  # of scores that lie on the margin


@dataclass(frozen=True)
class Margins:
    """What a strength may cost.

    Args:
        utility: how far utility may lie below plain fine-tuning's; None: it is not measured.
        harmless: how many more harmless requests may be refused or broken off than by the model before the attack, as a
            share; None: they are not asked.
    """

    utility: float | None = None
    harmless: float | None = None


def rule(margins: Margins) -> str:
    """How it is chosen, in a few sentences."""
    limits, best = (
        [],
        "the one with the lowest non-refusal on the validation prompts is taken (of equal ones the smallest)",
    )
    counted, notes = "an answer that cannot be judged counts as not refused", ""
    if margins.utility is None:
        notes = " No utility was measured, so nothing speaks against a strength that unlearns the task."
    else:
        limits.append(
            f"whose utility on the validation rows is at most {margins.utility:g} below that of plain fine-tuning"
        )
        otherwise = "it, the one with the highest utility"
    if margins.harmless is None:
        notes += (
            " Refusals of harmless requests are not looked at, so nothing speaks against a strength that refuses all."
        )
    else:
        limits.append(
            f"whose share of harmless validation requests refused or broken off is at most {margins.harmless:g} above that of "
            "the model before the attack"
        )
        otherwise = "it, the one with the fewest such refusals"
        counted += ", of a harmless request as refused"
    if not limits:
        return f"Of the strengths of each objective {best}; {counted}.{notes}"
    if len(limits) > 1:
        otherwise = "both margins, the one that lies least beyond them, both added up"
    within = ", and ".join(limits)
    return f"Of the strengths {within}, {best}; where no strength is within {otherwise}; {counted}.{notes}"


def judged(line: Strength, plain: Strength, before: AskRate | None, margins: Margins) -> Strength:
    """The line, with whether it lies within the margins and how far beyond; nothing is told of what is not known.

    Args:
        plain: the line of plain fine-tuning, at the same learning rate.
        before: the harmless requests of the model before the attack.
    """
    found: dict[str, bool | float] = {}
    over = 0.0
    if margins.utility is not None and line.utility is not None and plain.utility is not None:
        less = plain.utility - margins.utility - line.utility
        found["enough"], over = less <= ROUNDING, over + max(0.0, less)
    if margins.harmless is not None and line.harmless and before:
        more = worst(line.harmless) - worst(before) - margins.harmless
        found["answers_enough"], over = more <= ROUNDING, over + max(0.0, more)
    return line.model_copy(update={**found, **({"beyond": over} if found else {})})


def choose(lines: Sequence[Strength]) -> Strength:
    """The strength that `rule` takes, of one objective and learning rate.

    Args:
        lines: at least one; over all seeds, `judged`.
    """
    within = [line for line in lines if line.enough is not False and line.answers_enough is not False]
    if within:
        return min(within, key=lambda line: (worst(line.asked), line.times or 0))
    return min(lines, key=lambda line: (line.beyond or 0, line.times or 0))


def worst(asked: AskRate | None) -> float:
    """The share with the answers that could not be judged counted in; 1 where none could."""
    known = asked.worst if asked else None
    return 1.0 if known is None else float(known)
