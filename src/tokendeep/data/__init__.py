"""Rows of people's data, on disk or on a hub, as typed values."""

from tokendeep.data.rows import (
    has_field,
    identity,
    kind,
    read_chats,
    read_pairs,
    read_prompts,
    read_triples,
)

__all__ = [
    "has_field",
    "identity",
    "kind",
    "read_chats",
    "read_pairs",
    "read_prompts",
    "read_triples",
]
