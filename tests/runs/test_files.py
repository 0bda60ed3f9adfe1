"""Places that users name: what can be read once, or for ever, is refused before it is read."""

import os

import pytest

from tokendeep import chat, data, models, runs
from tokendeep.attacks import suffix
from tokendeep.depth.openings import load_openings
from tokendeep.errors import InputError
from tokendeep.models.options import ModelOptions
from tokendeep.verbs.common import yaml_settings

READERS = {
    "rows": data.read_prompts,
    "model": lambda path: models.check_spec(str(path), ModelOptions()),
    "suffixes": suffix.load,
    "openings": lambda path: load_openings(str(path)),
    "template": lambda path: chat.read_template(str(path)),
    "options": lambda path: yaml_settings(str(path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_device_or_a_pipe_is_refused(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in (("/dev/full", "/dev/full is a device"), (tmp_path / "pipe", "pipe is a pipe")):
        with pytest.raises(InputError, match=f"{what}, .*; give a file.$"):
            READERS[reader](path)


def test_other_places_are_left_to_their_readers(tmp_path):
    for name in ("none", "folder", "x" * 300, "a\0b"):
        assert runs.user_file(tmp_path / name) == tmp_path / name
    assert runs.user_file("~/x") == runs.user_path("~/x")


TEXTS = {  # reader -> a file's text, and what is read from it
    "rows": ('{"id": "a", "instruction": "Boil an egg"}\n', lambda read: [one.id for one in read] == ["a"]),
    "suffixes": ('{"suffix": " now"}\n', lambda read: [one.text for one in read] == [" now"]),
    "openings": ("# ours\nI cannot\nNo\n", lambda read: read == ["I cannot", "No"]),
    "template": ("{{ messages }}", lambda read: read == "{{ messages }}"),
    "options": ("seed: 1\n", lambda read: read == {"seed": 1}),
}


@pytest.mark.parametrize("reader", TEXTS)
def test_the_mark_that_windows_puts_before_a_text_is_none_of_it(reader, tmp_path):
    text, is_right = TEXTS[reader]
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "file.jsonl").write_text(text, encoding=encoding)
        assert is_right(READERS[reader](tmp_path / "file.jsonl"))


def test_a_line_ends_at_a_line_break_alone(tmp_path):
    """Others, such as U+2028, may stand in a text of a JSON line, which write_jsonl leaves as it is."""
    texts = [" one\u2028two", " three\x85four", " five\u2029"]
    path = runs.write_jsonl(tmp_path / "suffixes.jsonl", [{"suffix": text} for text in texts])
    assert [one.text for one in suffix.load(path)] == texts
    assert runs.read_jsonl(path) == [{"suffix": text} for text in texts]
    path.write_text("I can\u2028not\r\nNo\n", encoding="utf-8")
    assert load_openings(str(path)) == ["I can\u2028not", "No"]
