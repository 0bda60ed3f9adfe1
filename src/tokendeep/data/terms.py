"""Under which terms the public sets may be used, how they are to be had, and how many rows they have as published.

Knows the sets by their names; reads the first row of a source to tell which it is, and counts the rest.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokendeep.data.hub import HUB_SOURCE, known_of
from tokendeep.data.known import XSTEST_TYPES
from tokendeep.data.row import Row
from tokendeep.data.sources import Source, plain, read_rows
from tokendeep.errors import InputError

SAFETY = "for safety research, not to be handed on"


@dataclass(frozen=True)
class Terms:
    """What a set may be used for.

    Args:
        licence: as its authors state it.
        limits: what else a user must know; "" where there is nothing.
        rows: how many rows its files have as published; none where they are too many to say.
    """

    licence: str
    limits: str = ""
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.licence}{f'; {self.limits}' if self.limits else ''}"


TERMS: Mapping[str, Terms] = {
    "HEx-PHI": Terms("its own agreement", SAFETY, (300, 330)),
    "AdvBench": Terms("MIT", "many near-duplicates", (520,)),
    "HarmBench": Terms("MIT", "100 of its 400 behaviours ask for protected texts, which no judge of harm judges",
                       (400, 320, 200, 100, 80)),
    "StrongREJECT": Terms("MIT", rows=(313, 60)),
    "JailbreakBench": Terms("MIT", "some of its behaviours are AdvBench's or HarmBench's, word for word", (100,)),
    "MaliciousInstruct": Terms("none stated by its authors (a copy says CC-BY-SA-4.0)", rows=(100,)),
    "XSTest": Terms("CC-BY-4.0", rows=(450,)),
    "OR-Bench": Terms("CC-BY-4.0"),
    "SORRY-Bench": Terms("its own agreement", SAFETY, (440, 450, 9240)),
    "WildJailbreak": Terms("ODC-BY", "its authors' guidelines of responsible use"),
    "SAMSum": Terms("CC-BY-NC-ND-4.0", "not for commercial use"),
    "SQL-create-context": Terms("CC-BY-4.0"),
    "GSM8K": Terms("MIT"),
    "Alpaca": Terms("CC-BY-NC-4.0", "not for commercial use"),
}  # fmt: skip
OWN_FILES = {
    "harmful_behaviors": "AdvBench",
    "harmful-behaviors": "JailbreakBench",
    "benign-behaviors": "JailbreakBench",
}
FILE_WORDS = {  # that public sets have in the names of their files
    "harmful", "benign", "behaviors", "behaviours", "prompts", "instructions", "questions", "data", "dataset", "text", "all",
    "test", "train", "val", "eval", "validation", "main", "hard", "toxic", "small", "full", "completions", "responses",
}  # fmt: skip
OWN_COLUMNS = {  # that no other set has
    "forbidden_prompt": "StrongREJECT", "FunctionalCategory": "HarmBench", "data_type": "WildJailbreak",
    "prompt_style": "SORRY-Bench",
}  # fmt: skip


def set_of(source: Source) -> str | None:
    """The name of the public set that a source is, as far as its name or its columns tell; None for any other.

    Columns that anybody's rows may have (question, answer ...) tell nothing.
    """
    given = plain(source)
    if not isinstance(given, str | Path):
        return None
    if match := HUB_SOURCE.fullmatch(str(given)):
        known = known_of(match["repo"])
        return known.name if known else None
    try:
        return _by_row(next(read_rows(given)))
    except InputError:
        return None


def _by_row(row: Row) -> str | None:
    if row.origin.known:
        return row.origin.known.name
    if row.values.get("type") in XSTEST_TYPES and "prompt" in row.values:
        return "XSTest"
    stem = row.origin.part.split(".")[0].lower()
    named = (name for name in TERMS if _is_named(stem, name))
    return OWN_FILES.get(stem) or next((OWN_COLUMNS[c] for c in row.values if c in OWN_COLUMNS), next(named, None))


def _is_named(stem: str, name: str) -> bool:
    """Whether a file's name is that of a set, with nothing behind it but a size, a date or what parts are called."""
    said = re.match("[^a-z0-9]*".join(re.sub("[^a-z0-9]", "", name.lower())), stem)
    rest = re.split(r"[^a-z0-9]+", stem[said.end() :]) if said else ["no"]
    return all(not word or word in FILE_WORDS or re.fullmatch(r"v?\d+k?", word) for word in rest)


def described(source: Source, name: str) -> str:
    """A set with its licence and limits, and how many of its rows a local source has where that is not as published."""
    terms, count = TERMS[name], ""
    if terms.rows and not str(plain(source)).startswith("hf:"):
        rows = sum(1 for _ in read_rows(plain(source)))
        published = " or ".join(map(str, sorted(terms.rows)))
        count = "" if rows in terms.rows else f"; {rows} rows here, {published} as published"
    return f"{name} ({terms}){count}"
