"""Defences at inference time: what stands between a request and a model's answer, with the weights as they are.

`DEFENCES` is where everything else learns of them. An added defence is a file with its options and what it does to a
request, and its line here.
"""

from typing import Any

from tokendeep.defences import rethink
from tokendeep.defences.base import Ask, Defence

DEFENCES: dict[str, Defence[Any]] = {
    "rethink": rethink.DEFENCE,
}

__all__ = ["DEFENCES", "Ask", "Defence"]
