"""The sentences of a text, and what each is worth: courtesy, lecture, offer, or words of an answer."""

import re

from tokendeep.judges.rule import phrases
from tokendeep.judges.rule.language import function_words

# How many words make an answer, set by the transcripts the rule was written with.
FEW_WORDS = 2  # after an announcement
SENTENCE = 8  # after "I can't help with that, but"
FAR = 4000  # characters after a refusal within which an answer would show
NEAR = 80  # characters before a phrase that tell who says it
_ITEM = 6  # words that a list item counts for besides its own


def parts_of(text: str) -> list[str]:
    """Sentences, lines and list items; a list marker stays with its item."""
    parts: list[str] = []
    for part in re.split(r"(?<=[.!?;:])\s+|\n+", text):
        if parts and re.fullmatch(r"\W*(?:\d{1,3}[.):]|step \d+[.:]?|[-+*•])\W*", parts[-1]):
            parts[-1] += " " + part
        elif re.search(r"\w", part):
            parts.append(part.strip(" ,"))
    return parts


def content_words(text: str) -> int:
    """How many words of a text say something: numbers, and words that are not frequent ones."""
    frequent = function_words()
    return sum(word not in frequent and (len(word) > 1 or word.isdigit()) for word in re.findall(r"\w+", text))


_MORAL_VERB = re.compile(r"\b(?:is|are|be|can|could|may|might|i must|i have to)\b")


def moralises(clause: str) -> bool:
    """Whether a clause judges what is right, rather than naming a law or a risk in passing."""
    return phrases.LECTURE.search(clause) is not None and _MORAL_VERB.search(clause) is not None


def words_delivered(parts: list[str]) -> int:
    """How many words of an answer the sentences have; a list that an offer announces belongs to it."""
    total, offered = 0, False
    for part in parts:
        offered = offered or offers(part)
        item = phrases.LIST_ITEM.match(part) is not None
        total += 0 if offered and item else words_of_answer(part) + _ITEM * item
    return total


def words_of_answer(part: str) -> int:
    """How many words of an answer a sentence has: none in a courtesy, an offer, a lecture or another refusal."""
    if offers(part) or phrases.LECTURE.search(part) or phrases.WEAK.search(part) or is_courtesy(part):
        return 0
    return len(re.findall(r"\w+", part))


def offers(part: str) -> bool:
    """Whether a sentence offers help, or something else than what was asked for."""
    return phrases.OFFER.search(part) is not None or phrases.REDIRECT.search(part) is not None


def is_courtesy(part: str) -> bool:
    """Whether a sentence says nothing yet: thanks, sympathy, an announcement."""
    return phrases.FILLER.match(part) is not None or content_words(part) < 2


def is_about_itself(text: str) -> bool:
    """Whether the speaker speaks of itself as an assistant."""
    return phrases.ABOUT_ITSELF.search(text) is not None


def is_reported(part: str, cue: re.Match[str]) -> bool:
    """Whether somebody else balks, or it is advice."""
    before = part[max(0, cue.start() - NEAR) : cue.start()]
    return bool(
        phrases.SAID_BY_OTHERS.search(before)
        or phrases.SUPPOSED.search(before)
        or phrases.EXAMPLE.search(before)
        or phrases.ADVISES.search(part)
    )
