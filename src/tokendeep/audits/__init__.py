"""Which rows of a data set push on a model's refusals: scores by name in `SCORES`, higher for rows that push more.

To add one: a file of its own here, and one line below. The verb `audit`, its record and the report know scores through
this dict alone.
"""

from tokendeep.audits import gradient, likelihood, margin, refusal, representation
from tokendeep.audits.base import Anchor, Materials, Score

__all__ = ["DEFAULT", "SCORES", "Anchor", "Materials", "Score"]

SCORES: dict[str, Score] = {
    "refusal": refusal.SCORE,
    "margin": margin.SCORE,
    "gradient": gradient.SCORE,
    "representation": representation.SCORE,
    "likelihood": likelihood.SCORE,
}
DEFAULT = "refusal"
