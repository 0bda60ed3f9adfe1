"""Refusal openings as token ids: what the refusal log-odds are counted over.

Knows the shipped list and how an opening is cut; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING

from tokendeep import chat, runs
from tokendeep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


SEAMS = ("", " ", "\n\n")
ORDINARY = (
    "I'm happy to help you with that.",
    "I am happy to help you with that.",
    "I can help you with that.",
    "I would be happy to help you.",
    "As a matter of fact, this is simple.",
)  # beginnings that say nothing of a refusal


def load_openings(path: str | None, shipped: str = "openings.txt") -> list[str]:
    """Openings, one a line, of a file or of the shipped list; blank lines and lines that start with # are skipped."""
    if path is None:
        text = resources.files("tokendeep").joinpath(f"assets/{shipped}").read_text(encoding="utf-8")
    else:
        try:
            text = runs.user_file(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The openings file {path} cannot be read ({error}); give a UTF-8 text file.") from error
    lines = [line.strip() for line in text.split("\n") if line.strip() and not line.startswith("#")]
    if not lines:
        raise InputError(f"The openings file {path} holds no opening; write one refusal opening a line.")
    return lines


def opening_ids(tokenizer: PreTrainedTokenizerBase, openings: Iterable[str], tokens: int) -> list[tuple[int, ...]]:
    """The openings as token ids in three seam variants (none, space, blank line), cut to `tokens` tokens.

    Dropped are openings shorter than that, variants of which the seam takes all but one token, and beginnings that
    ordinary answers share ("I'm" where the tokenizer spends three tokens on it); duplicates are merged.
    """

    def variants(text: str) -> list[tuple[int, ...]]:
        plain = chat.continuation_ids(tokenizer, text)
        rows = [chat.continuation_ids(tokenizer, seam + text) for seam in SEAMS]
        return [
            tuple(row[:tokens]) for row in rows if len(row) - len(plain) <= max(0, tokens - 2) and len(row) >= tokens
        ]

    ordinary = {ids for text in ORDINARY for ids in variants(text)}
    rows = dict.fromkeys(ids for opening in openings for ids in variants(opening))
    telling = [ids for ids in rows if ids not in ordinary]
    if not telling:
        raise InputError(
            f"No refusal opening can be told by {tokens} tokens of this tokenizer; change --opening-tokens or --openings."
        )
    if shared := len(rows) - len(telling):
        print(f"openings: {shared} of refusals are left out: ordinary answers begin with the same tokens")
    return telling
