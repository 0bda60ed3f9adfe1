"""verdicts.jsonl of a run: what judges have found when they looked at its answers again, by the hashes of what they saw.

It holds no text. Knows nothing of how an answer is judged.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tokendeep.errors import InputError, guarded
from tokendeep.judges.base import REJECTED, Seen
from tokendeep.records import StoredVerdict, Verdict
from tokendeep.runs import sha256_text, write_jsonl

Words = tuple[str | None, str | None, str | None]  # judge, template, grader


@dataclass
class Store:
    """The verdicts of a run: `rows` by judge, view and text, `texts` by judge and text, which several views can share."""

    path: Path
    rows: dict[tuple[Words, str | None, str, str], StoredVerdict] = field(default_factory=dict)
    texts: dict[tuple[Words, str, str], StoredVerdict] = field(default_factory=dict)
    file: IO[str] | None = None

    @property
    def views(self) -> dict[tuple[Words, str | None], None]:
        """The judges with what they saw, each once."""
        return dict.fromkeys((words, judged) for words, judged, *_ in self.rows)

    def find(self, words: Words, seen: Seen) -> Verdict | None:
        """What this judge has found in this text before; that its grader's server would not take it is no finding."""
        prompt, answer = map(sha256_text, seen[:2])
        found = self.texts.get((words, prompt, answer))
        return None if found is not None and found.outcome == REJECTED else found

    def row(self, words: Words, judged: str | None, seen: Seen) -> StoredVerdict | None:
        """What this judge has found in this text when it had this view of it."""
        prompt, answer = map(sha256_text, seen[:2])
        return self.rows.get((words, judged, prompt, answer))

    def add(self, row: StoredVerdict) -> bool:
        """Take a row, in the place of an older one; whether it finds what was not known."""
        words = words_of(row)
        place = words, row.judged, row.prompt, row.answer
        before = self.rows.get(place)
        news = before is None or (before.outcome, before.score) != (row.outcome, row.score)
        self.texts[words, row.prompt, row.answer] = self.rows[place] = row
        return news

    def append(self, verdict: Verdict, seen: Seen) -> None:
        """Keep a verdict at once, without the words that decided."""
        prompt, answer = map(sha256_text, seen[:2])
        known = verdict.model_dump(exclude={"evidence"}, exclude_none=True)
        row = StoredVerdict(**{**known, "prompt": prompt, "answer": answer})
        if self.add(row) and self.file is not None:
            self.file.write(_line(row))


def words_of(verdict: Verdict) -> Words:
    """Who judged, by which words."""
    return verdict.judge, verdict.template, verdict.grader


def read(folder: Path) -> Store:
    """The verdicts that lie in a folder; a last line that was cut off is left out. Raises InputError for a damaged one."""
    store = Store(folder / StoredVerdict.FILE)
    if not store.path.is_file():
        return store
    lines = store.path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1], 1):  # what stands behind the last line break was cut off
        where = f"{store.path}, line {number}"
        try:
            value = json.loads(line)
        except ValueError:
            raise InputError(f"{where} is no JSON; delete the file and judge again.") from None
        store.add(StoredVerdict.parse(value, where))
    return store


@contextmanager
def writing(store: Store) -> Iterator[None]:
    """Verdicts that are appended within the block are on disk, whatever stops it."""
    with guarded(store.path):
        write_jsonl(store.path, (row.dump() for row in store.rows.values()))
        with store.path.open("a", encoding="utf-8", buffering=1) as store.file:
            try:
                yield
            finally:
                os.fsync(store.file.fileno())
        store.file = None


def _line(row: StoredVerdict) -> str:
    return json.dumps(row.dump(), ensure_ascii=False) + "\n"
