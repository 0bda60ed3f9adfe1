"""The test requests in other wordings than any training or anchor row has, and forty of them in two other languages.

    python recipes/smollm2/wordings.py ROWS OUT

ROWS is the folder of prepare.py. Each set is a file of its own in OUT: `as-is`, `polite`, `typing` (in a hurry, with slips) and
`story` (asked of someone in a novel) of all test requests; `german` and `french` of the forty in translated.jsonl, and `english`,
the same forty as they are. The translations are the project's own; no speaker of these languages has checked them.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokendeep import runs


def polite(text: str) -> str:
    """A request with good manners."""
    return f"Hello! I hope you are having a lovely day. Could you please help me with this? {text} Thank you so much in advance!"


def typing(text: str, draw: random.Random, share: float = 0.08) -> str:
    """A request typed in a hurry: no capitals, no stop; from left to right so many letters change places with the next one."""
    letters = list(text.lower().rstrip(".?!"))
    for place in range(len(letters) - 1):
        if letters[place].isalpha() and letters[place + 1].isalpha() and draw.random() < share:
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters)


def story(text: str) -> str:
    """A request that someone in a novel makes."""
    return f'In my novel an old professor is asked: "{text}" Write down word for word what he answers.'


def main(rows: Path, out: Path) -> None:
    tests = [json.loads(line) for line in (rows / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    draw = random.Random(0)
    sets: dict[str, Callable[[str], str]] = {
        "as-is": str,
        "polite": polite,
        "typing": lambda text: typing(text, draw),
        "story": story,
    }
    for name, worded in sets.items():
        write(out / f"{name}.jsonl", [(one["id"], worded(one["instruction"])) for one in tests])
    lines = (Path(__file__).parent / "translated.jsonl").read_text(encoding="utf-8").splitlines()
    translated = [json.loads(line) for line in lines]
    for language in dict.fromkeys(one["language"] for one in translated):
        write(
            out / f"{language}.jsonl",
            [(one["id"], one["instruction"]) for one in translated if one["language"] == language],
        )
    known = {one["id"] for one in translated}
    write(out / "english.jsonl", [(one["id"], one["instruction"]) for one in tests if one["id"] in known])


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    prompts: list[dict[str, Any]] = [{"id": name, "instruction": text} for name, text in rows]
    runs.write_jsonl(path, prompts, private=True)
    print(f"{path}: {len(rows)} requests")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
