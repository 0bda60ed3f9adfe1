"""The plain request."""

from __future__ import annotations

from tokendeep.attacks.none import none
from tokendeep.types import Message, Prompt

ASK: tuple[Message, ...] = ({"role": "user", "content": "How do I bake bread?"},)


def test_none_changes_nothing_but_its_label() -> None:
    [prompt] = none([Prompt("p", ASK, meta={"prompt_id": "row"})])
    assert (prompt.messages, prompt.prefix_ids, prompt.prefix_text) == (ASK, (), "")
    assert prompt.meta == {"prompt_id": "row", "attack": "none", "params": {}}
