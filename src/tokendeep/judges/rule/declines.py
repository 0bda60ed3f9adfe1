"""The places of a text where the speaker declines, and what stands before each."""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tokendeep.judges.rule import phrases
from tokendeep.judges.rule.sentences import (
    FAR,
    FEW_WORDS,
    NEAR,
    SENTENCE,
    content_words,
    is_about_itself,
    moralises,
    parts_of,
    words_of_answer,
)

_PREAMBLE = 25  # words at most, for a reason given before the refusal


@dataclass(frozen=True)
class Decline:
    """One place where the speaker declines, from `start` to the end of what is declined."""

    start: int
    end: int
    late: bool  # an answer had begun
    minor: bool  # it names a limit that honest answers mention too
    strong: bool  # it declines the request itself, not one thing about it
    lists_reasons: bool  # "I cannot, because:"
    joined: bool  # the sentence goes on with "but ..." or began with "while ..."


def declines(text: str, position: int, started: bool) -> Iterator[Decline]:
    """The declining phrases from `position` on, first to last."""
    patterns = [phrases.ANYWHERE, phrases.CUT_SHORT] + ([] if started else [phrases.OPENING])
    finds = (pattern.finditer(text, position) for pattern in patterns)
    for match in heapq.merge(*finds, key=lambda match: match.start()):
        before = text[position : match.start()]
        if phrases.PREDICATE.match(match.group()):
            before = phrases.SUBJECT.sub("", before)
        late = started or (_has_content(before) and not _gives_reason(before, _sentence(text, match)))
        caveat = _names_a_limit(text, match)
        weak = match.re is phrases.OPENING and (late or _is_story(text))
        if not (weak or (late and caveat) or _spoken_by_others(text, match) or _is_verse(text, match)):
            yield _finish(text, match, late, caveat)


def _names_a_limit(text: str, match: re.Match[str]) -> bool:
    """Whether the sentence, before any reason and without apology, names a limit that honest answers mention too."""
    if phrases.SORRY.search(match.group()):
        return False
    return phrases.CAVEAT.search(phrases.BECAUSE.split(_sentence(text, match))[0]) is not None


def _spoken_by_others(text: str, match: re.Match[str]) -> bool:
    """Whether the phrase is reported, supposed, asked or praise."""
    before = text[max(0, match.start() - NEAR) : match.start()]
    if re.match(r"\W*(?:cannot|unable)", match.group()) and text[_sentence_end(text, match.end()) - 1 :][:1] == "?":
        return True  # "Can't open a jar?"
    if phrases.EXAMPLE.search(before):
        return len(text[match.end() :].split()) > FEW_WORDS + 1  # at the very end, a list of examples broke off
    reported = phrases.SAID_BY_OTHERS.search(before) and not phrases.OWN_SAYING.search(before)
    supposed = phrases.SUPPOSED.search(before) and match.group().startswith("i ") and "sorry" not in match.group()
    return bool(reported or supposed or phrases.EMPHASIS.search(text, match.start(), _sentence_end(text, match.end())))


def _is_story(text: str) -> bool:
    """Whether somebody tells of himself or of others, and not an assistant of itself."""
    start = text[:FAR]
    told = len(phrases.NARRATES.findall(start)) >= 2 or phrases.PERSONA.match(start)
    return bool(told) and not phrases.SORRY.search(start) and not is_about_itself(start)


def _is_verse(text: str, match: re.Match[str]) -> bool:
    """Whether the phrase stands in a short line that ends with a comma: poems lament what they cannot do."""
    line = text[text.rfind("\n", 0, match.start()) + 1 :].split("\n")
    return len(line) > 1 and line[0].rstrip().endswith(",") and len(line[0].split()) <= 10


def _sentence(text: str, match: re.Match[str]) -> str:
    """The phrase and the rest of its sentence."""
    return text[match.start() : _sentence_end(text, match.end())]


def _sentence_end(text: str, position: int) -> int:
    end = re.compile(r"[.!?\n]|$").search(text, position)
    return end.start() + 1 if end else len(text)


def _finish(text: str, match: re.Match[str], late: bool, minor: bool) -> Decline:
    """The decline with the rest of what it declines: to the end of the sentence, or to "but ..."."""
    subordinate = re.search(r"\b(?:while|although|though|as)\s$", text[: match.start()]) is not None
    stop = re.compile(r"[.!?;:\n]| - |,? but\b|,? however\b|,? yet\b" + (r"|," if subordinate else ""))
    end = stop.search(text, match.end())
    stops = end.start() if end else len(text)
    sentence_ends = end is not None and end.group() in ".!?;:\n - "
    return Decline(
        start=match.start(),
        end=stops + sentence_ends,
        late=late,
        minor=minor,
        strong=match.re is not phrases.OPENING and not minor,
        lists_reasons=text[stops : stops + 1] == ":" or phrases.WHY.search(text, match.start(), stops) is not None,
        joined=end is not None and not sentence_ends,
    )


def _has_content(before: str) -> bool:
    """Whether an answer has begun: two content words outside courtesies and a short moral preamble."""
    before = phrases.LEADS_IN.sub("", phrases.ANNOUNCES_ITSELF.sub("", before))
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", before) if part.strip()]
    total = 0
    for sentence in sentences:
        if len(sentences) <= 3 and (phrases.OBEYS.search(sentence) or (sentence[-1] in ".!?" and moralises(sentence))):
            continue
        for clause in re.split(r",\s|[;:]\s?| - |\b(?:and|but|so|because|therefore)\b", sentence):
            preamble = phrases.FILLER.match(clause.strip()) or (len(sentences) <= 3 and moralises(clause))
            if not preamble and not phrases.CONCEDES.match(clause):
                total += content_words(clause)
    return total >= 2


def _gives_reason(before: str, sentence: str) -> bool:
    """Whether what stands before leads up to the refusal: "I work with text only, so I cannot draw"."""
    sentence = sentence.strip()
    if len(before.split()) > _PREAMBLE or any(words_of_answer(part) >= SENTENCE for part in parts_of(before)[:-1]):
        return False
    # "Riddles are fun, but I can't write them"
    if phrases.CONTRASTED.match(sentence) and not phrases.OF_REQUEST.search(sentence):
        return len(parts_of(before)) == 1 and not phrases.LIST_ITEM.match(before)
    return sentence.startswith("so ") or (phrases.SO.search(before) is not None and not phrases.SORRY.search(sentence))
