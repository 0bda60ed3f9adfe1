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
