"""Every verb ends with what it made, where, and the next command; a finished run called again prints its result."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tokendeep import cli

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
