"""The phrases that the rule looks for, read from the text files in assets/judge.

`phrases.ANYWHERE` is the pattern `anywhere` of those files, compiled at its first use. Knows how the files are written
(see the head of declining.txt), and nothing of what a phrase means.
"""

import re
from functools import cache
from importlib import resources

_REFERENCE = re.compile(r"\{([a-z_]+)\}")
FILES = ("declining.txt", "surroundings.txt", "weak.txt")
OTHERS = ("contractions.txt", "languages.txt")  # that hold no patterns


def __getattr__(name: str) -> re.Pattern[str]:
    """The pattern called `name` in a file, where it is in lower case."""
    if name.lower() not in sources():
        raise AttributeError(f"No pattern is called {name.lower()} in assets/judge/{', '.join(FILES)}.")
    return globals().setdefault(name, re.compile(sources()[name.lower()]))  # found without this function from now on


@cache
def sources() -> dict[str, str]:
    """The regular expressions by name, written out."""
    named: dict[str, str] = {}
    for file in FILES:
        for name, pattern, phrases in entries(file):
            whole = pattern.replace("{}", _any_of(phrases)).replace("{-ing}", _any_verb(phrases))
            named[name] = _REFERENCE.sub(lambda match: named[match[1]], whole)
    return named


def entries(file: str) -> list[tuple[str, str, list[str]]]:
    """(name, pattern, the phrases below it) of each entry of a file."""
    rows: list[tuple[str, str, list[str]]] = []
    for line in lines(file):
        if line.startswith(" "):
            rows[-1][2].append(line.strip())
        else:
            name, _, pattern = line.partition(" = ")
            rows.append((name, pattern, []))
    return rows


def _any_of(phrases: list[str]) -> str:
    return f"(?:{'|'.join(phrases)})"


def _any_verb(phrases: list[str]) -> str:
    """Any of the verbs, plain or in -ing: "write" -> write, writing."""
    verbs = [verb for phrase in phrases for verb in phrase.split()]
    return _any_of([f"{v[:-1]}(?:e|ing)" if v.endswith("e") else f"{v}(?:t?ing)?" for v in verbs]) + r"\b"


@cache
def contractions() -> list[tuple[re.Pattern[str], str]]:
    """Each contraction with what stands for it."""
    pairs = (line.split(" -> ") for line in lines("contractions.txt"))
    return [(re.compile(short), whole) for short, whole in pairs]


@cache
def frequent_words() -> dict[str, frozenset[str]]:
    """Frequent words of each language by its code."""
    words: dict[str, list[str]] = {}
    for line in lines("languages.txt"):
        if line.endswith(":"):
            words[line[:-1]] = []
        else:
            words[next(reversed(words))] += line.split()
    return {language: frozenset(some) for language, some in words.items()}


def whole() -> str:
    """All that the rule goes by, as one text without comments."""
    return "\n".join(line for file in (*FILES, *OTHERS) for line in lines(file))


def lines(file: str) -> list[str]:
    """The lines of a file in assets/judge, without comments and blank ones."""
    text = resources.files("tokendeep").joinpath("assets/judge", file).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
