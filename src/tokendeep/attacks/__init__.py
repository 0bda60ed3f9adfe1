"""Attacks at inference time, as functions from prompts to prompts; and the rows of poisoning.

`ATTACKS` is where everything else learns of them, in the order of tables. An added attack is a file with its options, what
it does to prompts and how reports call it, and its line here.
"""

from typing import Any

from tokendeep.attacks import decoding, none, prefill, rank_prefill, refusal_prefix, suffix
from tokendeep.attacks.base import Attack

ATTACKS: dict[str, Attack[Any]] = {
    "none": none.ATTACK,
    "prefill": prefill.ATTACK,
    "refusal-prefix": refusal_prefix.ATTACK,
    "decoding": decoding.ATTACK,
    "suffix": suffix.ATTACK,
    "rank-prefill": rank_prefill.ATTACK,
}

__all__ = ["ATTACKS", "Attack"]
