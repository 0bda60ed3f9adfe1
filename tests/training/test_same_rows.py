"""The same rows give the same tokens on the command line and in the trainers, in every form of a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from rowfiles import FORMS, write
from tokendeep.training import chats, rows


@pytest.mark.parametrize("form", FORMS)
def test_rows_train_alike(form: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    given = [json.loads(json.dumps(FORMS[form]))] * 2
    path = write(tmp_path, "rows.jsonl", given)
    ours = chats.encode(tiny_tokenizer, chats.load(path, whole=True), source="rows", max_length=512)
    try:
        table = Dataset.from_list(given)
    except Exception:  # contents that are texts here and lists there, which no table can hold
        pytest.skip("no table can hold this row")
    theirs = rows.encode(table, tiny_tokenizer, max_length=512)
    assert [one.input_ids for one in ours] == list(theirs["input_ids"])
    assert [one.labels for one in ours] == list(theirs["labels"])
