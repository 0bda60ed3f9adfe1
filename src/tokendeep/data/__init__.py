"""Rows of people's data, on disk, on a hub or in memory, as typed values."""

from tokendeep.data.fields import conversation
from tokendeep.data.reading import has_field, kind, read_chats, read_pairs, read_prompts, read_triples
from tokendeep.data.sources import Source, identity, named, read_rows
from tokendeep.data.write import pair_of, request_of, write_rows

__all__ = [
    "Source",
    "conversation",
    "has_field",
    "identity",
    "kind",
    "named",
    "pair_of",
    "read_chats",
    "read_pairs",
    "read_prompts",
    "read_rows",
    "read_triples",
    "request_of",
    "write_rows",
]
