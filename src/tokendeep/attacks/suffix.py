"""The suffix attack: a text behind the request, found by `gcg` or brought along.

Knows the file of suffixes and how a request gets one. Knows nothing of how they are found, of models or of judges.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tokendeep import runs
from tokendeep.attacks.base import Attack, Params, Prepared, Rows, Victim, option
from tokendeep.attacks.prompts import attacked, request, with_request
from tokendeep.errors import InputError
from tokendeep.runs.files import user_file
from tokendeep.types import Prompt

NAME = "suffix"
FILE = "suffixes.jsonl"
COST = ("candidates", "seconds")


@dataclass(frozen=True, kw_only=True)
class SuffixOptions:
    """Which suffixes are tried."""

    suffixes: Annotated[
        str | None,
        option(help='Texts that suffix tries: the folder that gcg wrote, or a file with rows {"suffix": ...}.'),
    ] = None


@dataclass(frozen=True)
class Suffix:
    """A text, its name in results (its own words stay out of them), and the `key` of the request it is for (None: any).

    `candidates` and `seconds` are what finding it has cost, where its file says so.
    """

    name: str
    text: str
    only: str | None = None
    candidates: int | None = None
    seconds: float | None = None


def path_of(source: str | Path) -> Path:
    """The file of suffixes, which may be named by its folder."""
    path = user_file(source)
    return path / FILE if path.is_dir() else path


def load(source: str | Path) -> list[Suffix]:
    """The suffixes of a file, a row {"suffix": ...} each, or of the folder that `gcg` wrote.

    Raises:
        InputError: no such file, or a row that holds no suffix.
    """
    path = path_of(source)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The suffixes in {path} cannot be read ({error}); give the folder that gcg wrote.") from error
    filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    suffixes = [_read(line, f"{path}, line {at}", number) for number, (at, line) in enumerate(filled, 1)]
    if not suffixes:
        raise InputError(f"{path} holds no suffix; give at least one.")
    if len({(s.name, s.only) for s in suffixes}) < len(suffixes):
        raise InputError(f"{path} gives two suffixes the same name; name each once.")
    return suffixes


def _read(line: str, where: str, number: int) -> Suffix:
    """The suffix of one line; one without a name goes by its number."""
    try:
        row = json.loads(line)
        texts = [row.get(name) for name in ("suffix", "name", "for")]
    except (ValueError, AttributeError):
        texts = [None]
    if not all(value is None or isinstance(value, str) for value in texts) or not (texts[0] or "").strip():
        raise InputError(f'{where}: a row is {{"suffix": "a text"}}, with a text as name where it has one.')
    name = row.get("name") or f"suffix {number}"
    return Suffix(name, row["suffix"], row.get("for"), *(_number(row, what) for what in COST))


def cost(suffixes: Sequence[Suffix], prompts: Sequence[Prompt]) -> dict[str, float]:
    """What finding those that are tried on these prompts has cost; nothing where the file does not say it of all."""
    asked = {key(prompt) for prompt in prompts}
    used = [one for one in suffixes if one.only is None or one.only in asked]
    total = {what: [getattr(one, what) for one in used] for what in COST}
    return {what: sum(each) for what, each in total.items() if None not in each}


def search_of(source: str | Path) -> dict[str, Any]:
    """What `gcg` drove answers to (`target`, and its first `target_tokens` where not all) and on which model (`found_on`, and
    its `label`), from the manifest in its folder; nothing for suffixes that come from elsewhere."""
    try:
        kept = json.loads((path_of(source).parent / "manifest.json").read_text(encoding="utf-8"))
        config = kept["config"] if kept["verb"] == "gcg" else {}
        reach = {"target": str(config["target"]), "target_tokens": int(config["target_tokens"])}
        return {**reach, "found_on": str(config["model"]), "label": config.get("label")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _number(row: dict[str, Any], what: str) -> Any:
    return value if isinstance(value := row.get(what), int | float) and math.isfinite(value) else None


def suffix(prompts: Sequence[Prompt], suffixes: Sequence[Suffix]) -> list[Prompt]:
    """Every prompt with every suffix that is for it, behind its last user turn.

    Raises:
        InputError: all suffixes are for other requests.
    """
    made = [_with(prompt, one) for prompt in prompts for one in suffixes if one.only in (None, key(prompt))]
    if not made:
        raise InputError("Every suffix was found for another request: give the data they were found on.")
    return made


def key(prompt: Prompt) -> str:
    """A request by the hash of its words, by which a suffix of its own finds it in any file."""
    return runs.fingerprint(request(prompt))


def _with(prompt: Prompt, one: Suffix) -> Prompt:
    name = f"its own, {one.name}" if one.only else f"{one.name} ({runs.fingerprint(one.text)})"
    return attacked(with_request(prompt, request(prompt) + one.text), NAME, {"suffix": name}, tag=name)


def check(options: SuffixOptions) -> None:
    if not options.suffixes:
        raise InputError("suffix needs --suffixes: the folder that gcg wrote, or a file with rows of suffixes.")


def prepare(rows: Rows, options: SuffixOptions, victim: Victim) -> Prepared:
    source = str(options.suffixes)
    suffixes = load(source)
    paid = {**cost(suffixes, rows.prompts), **search_of(source)}
    return Prepared(suffix(rows.prompts, suffixes), cost=paid)


def describe(params: Params) -> str:
    return f"{NAME}, {params['suffix']}"


def files(options: SuffixOptions) -> Mapping[str, Path]:
    return {"suffixes": path_of(str(options.suffixes))}


ATTACK = Attack(
    NAME, "puts a text behind the request, such as gcg finds", SuffixOptions, prepare, describe, check=check,
    tells=("suffix",), together=True, files=files,
)  # fmt: skip
