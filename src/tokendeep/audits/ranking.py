"""From scores to an order of rows and a cut. Knows nothing of how scores come about."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tokendeep.errors import InputError


def cut_count(cut: str, rows: int) -> int:
    """How many rows a cut flags: a share such as 0.05 or 5%, rounded, at least 1; or a count such as 20.

    Raises:
        InputError: it is neither, or it flags all of the rows.
    """
    text = cut.strip()
    if re.fullmatch(r"\d+", text):
        count = int(text)
    elif re.fullmatch(r"\d*\.\d+%?|\d+\.?%", text):
        share = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
        count = max(1, round(share * rows)) if share else 0
    else:
        raise InputError(
            f"--cut is {cut[:40]!r}, but must be a share such as 0.05 or 5%, or a count of rows such as 20."
        )
    if count >= rows:
        raise InputError(
            f"--cut {text} flags all of the {rows} rows that can be scored, so nothing would be left; give a smaller one."
        )
    return count


def order(values: Sequence[float]) -> list[int]:
    """Places of rows from the highest score down; of equal ones the first in the file first, and those without one last."""
    return sorted(
        range(len(values)), key=lambda i: (math.isnan(values[i]), -values[i] if values[i] == values[i] else 0)
    )


def tied(values: Sequence[float], flagged: int) -> int:
    """How many rows behind the cut score exactly as the last one before it."""
    ranked = order(values)
    if not 0 < flagged < len(ranked):
        return 0
    return sum(values[i] == values[ranked[flagged - 1]] for i in ranked[flagged:])
