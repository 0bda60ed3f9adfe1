"""Published prompts of classifiers, found in the files that users bring: a text, or the JSON, Python, notebook or model card
that holds it. Which prompt it is tells its hash alone.
"""

import ast
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokendeep import runs
from tokendeep.errors import InputError
from tokendeep.judges.base import Judge, Wording

LARGEST = 5_000_000  # bytes of a file that is looked through
_QUOTED = re.compile(r"'''(.*?)'''|\"\"\"(.*?)\"\"\"", re.S)


def worded(judge: Judge) -> bool:
    """Whether a judge asks with a published prompt."""
    return judge.rubric is not None and judge.rubric.wording is not None


def equipped(judge: Judge, file: Path) -> Judge:
    """The judge with the wording of its prompt that stands in a file.

    Raises:
        InputError: the file cannot be read, or holds none that is known.
    """
    rubric = judge.rubric
    assert rubric is not None
    assert rubric.wording is not None
    held = {runs.sha256_text(text): text for text in _texts(_read(file))}
    text, called = _found(file, held, rubric.wording)
    contextual = held.get(rubric.wording.contextual or "", "")
    return replace(judge, rubric=replace(rubric, text=text, called=called, contextual=contextual))


def _found(file: Path, held: Mapping[str, str], wording: Wording) -> tuple[str, str]:
    """A known wording among the texts of a file, by hash, and its name; of several the one to be preferred."""
    for digest, name in wording.known.items():
        if digest in held:
            return held[digest], name
    names = ", ".join(f"{name} {digest[:16]}" for digest, name in wording.known.items())
    raise InputError(
        f"{file} holds no known wording of the judge's prompt ({names}; the file itself is {next(iter(held))[:16]}): take the "
        f"unchanged file from {wording.source}."
    )


def _read(file: Path) -> str:
    if not file.is_file():
        raise InputError(f"There is no file {file}: name the one with the judge's prompt.")
    if file.stat().st_size > LARGEST:
        raise InputError(f"{file} is too large for a prompt ({file.stat().st_size} bytes): name the one that holds it.")
    try:
        return file.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise InputError(f"{file} is no text in UTF-8: name the file with the judge's prompt.") from None


def _texts(whole: str) -> Iterator[str]:
    """Every text in a file that could be the prompt: all of it, and its strings."""
    yield whole
    yield whole.removesuffix("\n")
    yield from _quoted(whole)
    with contextlib.suppress(ValueError, RecursionError):
        yield from _values(json.loads(whole))


def _values(value: Any) -> Iterator[str]:
    """The strings in a JSON value; the lines of a notebook's cell are one text."""
    if isinstance(value, str):
        yield from (value, *_quoted(value))
    elif isinstance(value, list):
        if all(isinstance(one, str) for one in value):
            yield from _quoted("".join(value))
        for one in value:
            yield from _values(one)
    elif isinstance(value, dict):
        yield from _values(list(value.values()))


def _quoted(text: str) -> Iterator[str]:
    """The strings of Python code, also of code that stands in prose."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        nodes = []
    yield from (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    yield from (one or other for one, other in _QUOTED.findall(text))
