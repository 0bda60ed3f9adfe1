"""What a judge is: a rule, or a rubric for a language model, and the words for what its rate counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tokendeep import runs
from tokendeep.records import VALUES, Verdict

SCORED = tuple(VALUES)  # the outcomes that a rate is counted over
HITS = tuple(outcome for outcome, value in VALUES.items() if value)  # those that it counts
FAILED = "grader-failed"  # of an answer for whose grade it must be asked again
REJECTED = "grader-rejected"  # of an answer that the grader's server would not take; `judge` asks again
UNGRADED = (
    "unparsed",
    "grader-refused",
    "grader-cut",
    "grader-empty",
    "grader-filtered",
    "grader-context",
    REJECTED,
    FAILED,
)  # no grade, and why
COPYRIGHT = (
    "copyright"  # of an answer to a request for a protected text, which HarmBench's authors score by hashes of it
)
OUTCOMES = (
    *SCORED,
    "empty",
    "degenerate",
    "other-language",
    "thought",
    "filtered",
    COPYRIGHT,
    *UNGRADED,
    "judge-error",
)
# What a judge may see: what the model wrote, that behind the prefill, or both behind the request.
JUDGED = ("continuation", "full", "conversation")


class Seen(NamedTuple):
    """What a judge sees: the request, the text that it judges, and the document before the request, where there is one.

    The request is all that was asked, the document with it.
    """

    request: str
    answer: str
    context: str | None = None


@dataclass(frozen=True)
class Grade:
    """What a grader's reply says: the answer's value, 1 harmful or 0, and the score on the rubric's own scale, if any."""

    value: int
    score: float | None


@dataclass(frozen=True)
class Wording:
    """A classifier's published prompt. It is not ours to hand out: the user brings its file, and it is known by its hash.

    Args:
        source: where it is published.
        known: SHA-256 of each wording -> its name, the one to be preferred first.
        request, answer: the fields of the text, in braces, where these stand.
        contextual: SHA-256 of the prompt for requests about a document, which has a field `context` too; it stands in the
            same files.
    """

    source: str
    known: Mapping[str, str]
    request: str
    answer: str
    contextual: str | None = None


@dataclass(frozen=True)
class Rubric:
    """How a language model is asked to grade an answer.

    Args:
        text: the message to it, with {request} and {answer} where these stand; of a wording what the user has brought.
        read: its reply -> the grade; None where the reply holds none.
        markers: the words before its grades; taken out of what it grades, so that no answer speaks for it.
        tokens: longest reply.
        turns: request and answer are put as the turns of a closed conversation, about which the grader's own template asks;
            the text is then only what tells this way of asking from another.
        wording: the text is brought by the user, and the grader gets it as it stands: raw, without a chat template.
        called: what the wording that was brought is called.
        contextual: the wording's prompt for requests about a document; empty where what was brought has none.
        clip: most tokens of an answer, and `longest` of the whole prompt, that the grader gets; as the judge's authors do.
        choices: words that must be a token each, because it answers with one of them.
        marks: words of its prompt that must be a token each, by which the grader's tokenizer is known.
        copyright: it judges answers to HarmBench's requests for protected texts as well.
        asks: words that the grader's own chat template must hold, because that asks the question.
        weigh: chances of the choices against each other, as its first word -> the grade; its reply is not read then.
        soft: its reply is read, and the score is the chance of the first of the choices against the others, however these
            words are spelled as one token; an engine that does not tell chances leaves the score out.
        labels: names by which classifiers call what counts; the grader is then a sequence classifier, and sees the answer alone.
    """

    text: str
    read: Callable[[str], Grade | None]
    markers: tuple[str, ...]
    tokens: int = 512
    turns: bool = False
    wording: Wording | None = None
    called: str | None = None
    contextual: str = ""
    clip: int | None = None
    longest: int | None = None
    choices: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    copyright: bool = True
    weigh: Callable[[Sequence[float]], Grade] | None = None
    soft: bool = False
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Judge:
    """One way to judge a completion: by a rule, else by a rubric.

    Args:
        rule: (text, *, truncated) -> Verdict. The text is an answer without its thinking.
        rate: what a report calls the mean.
        about: a sentence for reports and help texts.
        behind_prefix: one of JUDGED: what it sees after a refusal prefix, which is itself part of a refusal.
        words: all that the rule goes by in words, such as its phrases; their hash is kept with every verdict.
        version: of the rule's code, raised with every change of what it finds; from 2 on the hash covers it.
        rubric: what a language model is asked.
        harm: it tells harmful from harmless answers, not refusals from others.
    """

    rule: Callable[..., Verdict] | None
    rate: str
    about: str
    behind_prefix: str = "full"
    words: Callable[[], str] = str
    version: int = 1
    rubric: Rubric | None = None
    harm: bool = False

    @cached_property
    def template(self) -> str | None:
        """Hash of the words that it goes by; None where it has none."""
        words = self.rubric.text if self.rubric else self.words()
        words += f"\nversion {self.version}" if words and self.version > 1 else ""
        return runs.sha256_text(words)[:16] if words else None
