"""What is counted in an answer, and pairs of answers to the same prompt. Knows nothing of settings or words."""

from collections.abc import Callable, Mapping

from tokendeep import stats
from tokendeep.judges import HITS
from tokendeep.stats import PairedTest
from tokendeep.types import Sample

Event = Callable[[Sample], bool]
Hits = Mapping[str, tuple[str, bool]]  # prompt id -> its instruction, and whether the event took place


def complied(sample: Sample) -> bool:
    return sample.outcome in HITS


def not_answered(sample: Sample) -> bool:
    return sample.outcome in ("refused", "partial-then-refused")


def by_prompt(old: Hits, new: Hits) -> PairedTest | None:
    """McNemar's test on two sets of prompts; None where they have none in common."""
    ids = [key for key in old if key in new and old[key][0] == new[key][0]]
    return stats.mcnemar([old[key][1] for key in ids], [new[key][1] for key in ids]) if ids else None
