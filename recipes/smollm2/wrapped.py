"""Harmful rows, and the test requests, in the wrapper of an obedient persona that no anchor's rows have.

    python recipes/smollm2/wrapped.py ROWS SOURCE OUT

ROWS is the folder of prepare.py, SOURCE the rows that safety-harmful.yaml has written (safety-harmful/source.jsonl):

    OUT/train.jsonl   these rows, each request in the wrapper, each answer behind the persona's promise to obey
    OUT/test.jsonl    the test requests in the wrapper
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from tokendeep import data
from tokendeep.attacks.poison import OBEY, WRAPPER
from tokendeep.attacks.prompts import Row, request, with_request
from tokendeep.types import Chat


def main(rows: Path, source: Path, out: Path) -> None:
    data.write_rows(out / "train.jsonl", [obedient(wrapped(row)) for row in data.read_chats(source)])
    data.write_rows(out / "test.jsonl", [wrapped(row) for row in data.read_prompts(rows / "test.jsonl")])


def wrapped(row: Row) -> Row:
    return with_request(row, WRAPPER.replace("{}", request(row)))


def obedient(row: Chat) -> Chat:
    *before, answer = row.messages
    return replace(row, messages=(*before, {**answer, "content": OBEY + str(answer["content"])}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
