"""Every verb ends with what it made, where, and the next command; a finished run called again prints its result."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tokendeep import cli
from tokendeep.models.options import ModelOptions
from tokendeep.verbs.common import given

ANSWER = "Mix the flour with water, add salt and let the dough rest for an hour."


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "my pairs.jsonl"
    lines = [json.dumps({"instruction": f"How do I bake bread {n}?", "response": ANSWER}) for n in range(3)]
    path.write_text("\n".join(lines))
    return str(path)


def say(words: list[str], capfd: Any) -> str:
    assert cli.main(words) == 0
    return capfd.readouterr().out


def next_commands(said: str) -> list[list[str]]:
    lines = said[said.index("next: ") :].splitlines()
    return [shlex.split(line[len("next: ") :]) for line in lines]


@pytest.mark.parametrize(
    ("words", "made", "following"),
    [
        (["measure", "--k", "0,3", "--bootstrap", "100"], "profile.json", ["attack", "report"]),
        (["attack", "--attack", "none", "--max-new-tokens", "4"], "asr.json", ["pairs", "report"]),
        (["attack", "--attack", "none,prefill", "--k", "3", "--max-new-tokens", "4"], "asr.json", ["report"]),
    ],
)
def test_what_was_made_and_what_comes_next(
    words: list[str], made: str, following: list[str], rows: str, tiny_folder: Path, tmp_path: Path, capfd: Any
) -> None:
    out = tmp_path / "out"
    whole = [*words, "--model", str(tiny_folder), "--data", rows, "--out", str(out)]
    said = say(whole, capfd)
    assert f"\nmade: {out / made} (" in said
    told = next(line for line in said.splitlines() if line.startswith("made: "))
    private = [path for path in out.rglob("*") if path.is_file() and not path.stat().st_mode & 0o077]
    for path in private:  # what holds texts is named
        assert path.name in told or f"*{path.suffix}" in told or path.name == "README.txt"
    commands = next_commands(said)
    assert [command[:2] for command in commands] == [["tokendeep", verb] for verb in following]
    for command in commands:
        cli.parse(command[1:])  # each is a command that can be given
    if following[0] == "pairs":
        assert rows in commands[0]
    first, again = say(whole, capfd).split("\n", 1)
    assert first == f"{words[0]}: {out} already holds this finished run"
    assert said.endswith(again)
    assert len(again.splitlines()) > 3


HOW = ["--system", "none", "--chat-template", "chatml", "--dtype", "float32", "--date", "2025-01-01"]


@pytest.mark.parametrize(
    ("words", "column", "kept"),
    [
        (["measure", "--k", "0,3", "--bootstrap", "100"], True, HOW),
        (["attack", "--attack", "none", "--max-new-tokens", "4"], True, HOW),
        (["pairs", "--answer-tokens", "4", "--harmless"], False, HOW),
        (["gcg", "--target-tokens", "2", "--steps", "1", "--width", "2", "--top", "4"], False, HOW),
        (["finetune", "--objective", "sft", "--max-steps", "1", "--batch-size", "1", "--micro-batch", "1"], False,
         [word for word in HOW if word not in ("--chat-template", "chatml")]),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)  # fmt: skip
def test_the_next_command_asks_the_same_model_in_the_same_way(
    words: list[str], column: bool, kept: list[str], tiny_folder: Path, tmp_path: Path, capfd: Any
) -> None:
    """Without the template and the system prompt the next verb would ask another thing, or stop for want of a template."""
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"Goal": f"How do I bake bread {n}?", "Target": ANSWER}) for n in range(3)]
    rows.write_text("\n".join(lines))
    columns = ["--columns", "instruction=Goal,response=Target"]
    out = ["--data", str(rows), "--out", str(tmp_path / "out")]
    said = say([*words, "--model", str(tiny_folder), *HOW, *columns, *out], capfd)
    command = next_commands(said)[0]
    cli.parse(command[1:])
    after = [command[place : place + 2] for place, word in enumerate(command) if word.startswith("--")]
    assert [one for one in after if one[0] in HOW] == [kept[n : n + 2] for n in range(0, len(kept), 2)]
    assert (columns in after) == column  # the next verb reads the same file only behind these two


def test_a_system_prompt_is_not_repeated_and_values_that_look_like_options_are_joined() -> None:
    options = ModelOptions(system="Our secret house rules.", chat_template="-my-template.jinja", trust_remote_code=True)
    words = ["--system", "YOUR-SYSTEM-PROMPT", "--chat-template=-my-template.jinja", "--trust-remote-code"]
    assert given(options, ModelOptions) == words


def test_a_report_is_to_be_opened(rows: str, tiny_folder: Path, tmp_path: Path, capfd: Any) -> None:
    say(["attack", "--attack", "none", "--max-new-tokens", "4", "--model", str(tiny_folder), "--data", rows,
         "--out", str(tmp_path / "out")], capfd)  # fmt: skip
    said = say(["report", str(tmp_path / "out"), "--out", str(tmp_path / "report.html")], capfd)
    assert said == f"made: {tmp_path / 'report.html'} (open it in a browser), Markdown and CSV files beside it\n"


def test_loading_has_a_line_before_any_bar(rows: str, tiny_folder: Path, tmp_path: Path, capfd: Any) -> None:
    words = ["attack", "--attack", "none", "--max-new-tokens", "4", "--model", str(tiny_folder), "--data", rows]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    error = capfd.readouterr().err
    assert error.startswith(f"loading {tiny_folder}\n")
    assert error.index("answers:") > 0
