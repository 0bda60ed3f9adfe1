"""Rows of people's data, on disk, on a hub or in memory, as typed values."""

from tokendeep.data.reading import chat, kind, read_chats, read_pairs, read_prompts, read_triples, read_whole_chats
from tokendeep.data.row import idle_columns
from tokendeep.data.sources import (
    Chosen,
    Role,
    Source,
    choose,
    choose_beside,
    content,
    identity,
    named,
    read_rows,
    role_of,
)
from tokendeep.data.terms import TERMS, described, set_of
from tokendeep.data.texts import read_texts
from tokendeep.data.write import asked, pair_of, write_rows
