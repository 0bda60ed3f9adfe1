"""Whether a text mostly repeats itself. Knows words and their periods, and nothing of what they say."""

import re
from operator import eq

_LONGEST_UNIT = 40  # words: a looping sentence or two
_MONOTONOUS = 15  # words: so many with three different ones say nothing
_READABLE = 40  # words: an answer this long before it loops can be judged by what it says
_CHAR_LOOP = re.compile(r"([^\s\d]{1,12}?)\1{9,}|(\d)\2{29,}")
PUNCTUATION_LOOP = re.compile(r"(\S{1,3}?)(?:\s{0,3}\1){19,}")
_MARKER = re.compile(r"\W*(?:\d{1,3}[.):]|[-+*•])$")  # a list's number or bullet, standing alone


def find_loop(text: str) -> str | None:
    """The text with its repeated unit written once, if it mostly repeats itself; else None."""
    squeezed = _CHAR_LOOP.sub(lambda match: match[1] or match[2], text)
    if len(squeezed) < 0.5 * len(text):
        return squeezed
    words = [m for m in re.finditer(r"\S+", text) if not _MARKER.match(m.group())]
    keys = [word.group().strip(".,;:!?\"'()").lower() for word in words]
    start, unit, repeated = _longest_period(keys)
    counted = _longest_period([re.sub(r"\d+", "#", key) for key in keys])  # "Step 1: stir. Step 2: stir."
    if counted[2] > repeated and _is_phrase(keys[counted[0] :][: counted[1]]):
        start, unit, repeated = counted
    if repeated >= max(6, (3 if unit < 5 else 2) * unit, len(keys) / 2) and start + unit < _READABLE:
        rest = words[start + unit + repeated :]
        return text[: words[start + unit - 1].end()] + (" " + text[rest[0].start() :] if rest else "")
    keys = keys[: start + unit] + keys[start + unit + repeated :]
    grams = {tuple(keys[i : i + 3]) for i in range(len(keys) - 2)}
    few = len(set(keys)) < 0.15 * len(keys) or len(grams) < 0.35 * len(keys)
    if (len(keys) >= _READABLE and few) or (len(keys) >= _MONOTONOUS and len(set(keys)) <= 3):
        return text
    return None


def _is_phrase(keys: list[str]) -> bool:
    """Whether a repeated unit is words with a counter rather than a table of sums."""
    return sum(key.isalpha() and len(key) > 2 for key in keys) >= 2 and "=" not in keys


def _longest_period(keys: list[str]) -> tuple[int, int, int]:
    """(start, unit length, words beyond the first unit) of the run that repeats the most words."""
    best = (0, 1, 0)
    for unit in range(1, min(_LONGEST_UNIT, len(keys) // 2) + 1):
        if sum(map(eq, keys[unit:], keys)) < max(unit, best[2] + 1):  # no run of them can be long enough
            continue
        run = 0
        for i in range(unit, len(keys)):
            run = run + 1 if keys[i] == keys[i - unit] else 0
            if run > best[2] and run >= unit:
                best = (i - run - unit + 1, unit, run)
    return best
