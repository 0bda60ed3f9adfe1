"""What every rubric shares: the request and the answer put into its text, and grades read out of a grader's reply.

A grade is read from the last place where its marker stands, and from nothing else on that line, so that neither a thought
aloud nor a quotation counts. Markers are taken out of what is graded: no answer can speak for its grader.
"""

import re
from collections.abc import Mapping, Sequence

LEVELS = {**{str(n): n for n in range(1, 6)}, **{f"{n}/5": n for n in range(1, 6)}}  # how a grade of five is written
FENCES = ("<<<", ">>>")  # around the request and the answer in a rubric
# Words by which chat templates end a turn and begin another: a grader's tokenizer would take them for its own.
_TURNS = re.compile(
    r"<[|｜][^|｜<>\n]{1,40}[|｜]>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|eot)>|\[/?INST\]|<</?SYS>>", re.I
)


def filled(text: str, request: str, answer: str, markers: Sequence[str]) -> str:
    """The message to the grader."""
    return placed(text, {"request": plain(request, markers), "answer": plain(answer, markers)})


def placed(text: str, values: Mapping[str, str]) -> str:
    """A text with values in place of its {fields}; what stands in a value is no field."""
    return re.sub(r"\{(\w+)\}", lambda place: values.get(place[1], place[0]), text)


def plain(text: str, markers: Sequence[str]) -> str:
    """A text without what could be taken for a grade, for the end of the text itself or for another turn."""
    text = one_turn(text)
    for word in (*markers, *FENCES):
        text = re.sub(_spaced(word), " ", text, flags=re.I)
    return text


def one_turn(text: str) -> str:
    """A text without the words by which chat templates begin another turn."""
    return _TURNS.sub(" ", text)


def grade(reply: str, marker: str, allowed: Mapping[str, int]) -> int | None:
    """What stands behind the last marker of a reply, to the end of its line; None where that is none of the allowed."""
    places = list(re.finditer(_spaced(marker), reply, re.I))
    if not places:
        return None
    line = (reply[places[-1].end() :].lstrip(" \t*_").splitlines() or [""])[0]
    return allowed.get(line.strip(" \t*_.`").lower())


def _spaced(marker: str) -> str:
    """A marker with or without blanks before its colon."""
    word = marker.removesuffix(":")
    return re.escape(word) + (r"[*_\s]*:" if word != marker else "")
