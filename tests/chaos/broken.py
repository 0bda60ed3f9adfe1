"""Ways in which files are broken: values of another type, texts cut off or flipped, and what people really write."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 10**30, -(10**30), 1.5, float("nan"), float("inf"), 1e308, "", " ", "text", "\ud800", "\x00"),
    *("０", "😀", "x" * 3000, "../up", [], [[]], [None], ["text"], [0, "a"], {}, {"a": {}}, {"role": 3}),
]  # fmt: skip
BYTES = [
    b"",
    b"\x00" * 64,
    b"\xff\xfe\x00",
    b"{",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"\xef\xbb\xbf{}",
    b"PK\x03\x04",
    b"<html>",
]
YAML_LINES = [
    "{name}: [0, 5", "{name}: &a [*a]", "{name}: *b", "{name}: !!python/object:os.system {{}}", "{name}: 2020-01-01",
    "{name}: !!binary aGk=", "{name}: .inf", "{name}: .nan", "{name}: 1e999", "{name}: " + "9" * 400, "{name}: 0x1F",
    "{name}: 0o17", "{name}: 12:30:45", "{name}: ~", "{name}: yes", "{name}: [[0]]", "{name}: {{a: 1}}", "? [a]\n: 3",
    "{name}: '０,５'", "{name}: '[０,５]'", '{name}: "\\ud800"', '{name}: "\\0"', '{name}: "a\\nb"', "{name}:\t3",
    "{name}: |\n  x",
    "{name}: ''", "{name}: [a, 1]", "{name}: -1", "{name}: 1.5", "{name}: 100000000000000000000000", "{name}: '1e400,2'",
    "{name}: [1.0e+400]", "<<: {{{name}: 3}}", "{name}: 3\n{name}: 4", "---\n{name}: 3\n---\n{name}: 4", "3: 4", "nothing: 1",
    "{name}: " + "[" * 3000, "{name}: '\x07'", "{name}: [null]", "{name}: [0, -1, 3.5]", "%YAML 9.9\n---\n{name}: 1",
]  # fmt: skip
TEMPLATES = Path(__file__).with_name("templates.txt").read_text(encoding="utf-8").splitlines()  # one a line


def flipped(draw: random.Random, raw: bytes) -> bytes:
    """Bytes cut off, emptied, replaced, or with one of them changed."""
    way = draw.randrange(5)
    if way == 0:
        return raw[: draw.randrange(len(raw) + 1)]
    if way == 1 or not raw:
        return draw.choice(BYTES)
    at = draw.randrange(len(raw))
    if way == 2:
        return raw[:at] + bytes([draw.randrange(256)]) + raw[at + 1 :]
    if way == 3:
        return raw[:at] + draw.choice(BYTES) + raw[at:]
    return raw + draw.choice(BYTES)


def value(draw: random.Random, tree: Any) -> Any:
    """A JSON value with one place in it changed, or taken out."""
    if isinstance(tree, dict) and tree and draw.random() < 0.85:
        name = draw.choice(list(tree))
        if draw.random() < 0.2:
            return {key: kept for key, kept in tree.items() if key != name}
        return {**tree, name: value(draw, tree[name])}
    if isinstance(tree, list) and tree and draw.random() < 0.6:
        at = draw.randrange(min(len(tree), 50))
        return [*tree[:at], value(draw, tree[at]), *tree[at + 1 :]]
    return draw.choice(VALUES)


def json_text(draw: random.Random, text: str) -> bytes:
    """A JSON text with one value changed, or spoilt as text."""
    if draw.random() < 0.25:
        return flipped(draw, text.encode())
    return json.dumps(value(draw, json.loads(text))).encode("utf-8", "surrogatepass")


def file_of(draw: random.Random, folder: Path) -> str:
    """Damage one file of a folder; says which, and how."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file() and "trainer" not in path.parts))
    name = path.relative_to(folder).as_posix()
    way = draw.random()
    if way < 0.06:
        path.unlink()
        return f"{name} gone"
    if way < 0.12:
        path.unlink()
        path.mkdir()
        return f"{name} a folder"
    raw = path.read_bytes()
    if path.suffix == ".json":
        path.write_bytes(json_text(draw, raw.decode()))
    elif path.suffix == ".jsonl":
        lines = raw.decode().splitlines()
        at = draw.randrange(len(lines))
        path.write_bytes(b"\n".join([*(x.encode() for x in lines[:at]), json_text(draw, lines[at])]))
    else:
        path.write_bytes(flipped(draw, raw))
    return f"{name} changed"


def rows(draw: random.Random, good: Path, folder: Path) -> Path:
    """A file of rows like a good one, but not quite."""
    lines, way = good.read_text(encoding="utf-8").splitlines(), draw.random()
    if way < 0.6:
        at = draw.randrange(len(lines))
        lines[at] = json_text(draw, lines[at]).decode("latin-1")
        return _written(folder / "rows.jsonl", "\n".join(lines).encode("latin-1", "replace"))
    if way < 0.7:
        return _written(folder / "rows.jsonl", flipped(draw, good.read_bytes()))
    table = [json.loads(row) for row in lines]
    if way < 0.78:
        return _written(folder / "rows.json", json_text(draw, json.dumps(table)))
    names = list(table[0])
    text = "\n".join([",".join(names), *(",".join(f'"{row[name]}"' for name in names) for row in table)])
    if way < 0.88:
        return _written(folder / "rows.csv", flipped(draw, text.encode()))
    return _place(draw, folder)


def _place(draw: random.Random, folder: Path) -> Path:
    """Something that is no file of rows at all."""
    way, path = draw.randrange(7), folder / "rows.jsonl"
    if way == 0:
        path.mkdir()
    elif way == 1:
        path.symlink_to(path)
    elif way == 2:
        os.mkfifo(path)
    elif way == 3:
        return Path("/dev/null")
    elif way == 4:
        return folder / ("n" * 300 + ".jsonl")
    elif way == 5:
        return _written(folder / "rows.xyz", b"hello\n")
    return path


def _written(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def yaml(draw: random.Random, names: list[str]) -> bytes:
    """A YAML file of options with something in it that is none."""
    lines = [draw.choice(YAML_LINES).format(name=draw.choice(names)) for _ in range(draw.choice((1, 1, 2)))]
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    return draw.choice((raw, raw, raw, raw, raw.decode("utf-8", "replace").encode("utf-16"), flipped(draw, raw)))


def template(draw: random.Random) -> bytes:
    """A chat template that cannot be one."""
    return draw.choice(TEMPLATES).encode("utf-8", "surrogatepass")


def manifest(draw: random.Random, out: Path, verb: str) -> str:
    """Put something that is no manifest, or a damaged one, into a folder; says what."""
    path, way = out / "manifest.json", draw.randrange(6)
    whole = {
        "schema": 2, "tokendeep": "0.1.0", "verb": verb, "status": draw.choice(("running", "finished")), "config": {},
        "inputs": {}, "models": {}, "seed": 0, "versions": {}, "started": "2026-01-01T00:00:00+00:00", "finished": None,
        "files": ["profile.json", "*.eval"],
    }  # fmt: skip
    if way == 0:
        path.mkdir()
        return "a folder"
    if way == 1:
        path.write_bytes(draw.choice(BYTES))
        return "other bytes"
    if way == 2:
        path.symlink_to(path)
        return "a loop"
    if way == 3:
        whole["files"] = draw.choice(
            (["../x"], ["/etc/*"], ["**"], [3], [None], ["a\x00b"], [""], ["."], "text", {"a": 1})
        )
    path.write_bytes(json_text(draw, json.dumps(whole)) if way == 4 else json.dumps(whole).encode())
    if way == 5:
        shutil.rmtree(out / "lock", ignore_errors=True)
        (out / ".lock").mkdir()
        return "the lock a folder"
    return f"way {way}"
