"""The answers of finished evaluations under other judges: nothing is generated, and no verdict is asked for twice.

Knows logs and stored verdicts; knows nothing of folders.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.model import Model

from tokendeep.attacks import ATTACKS
from tokendeep.evals import grading, judging
from tokendeep.evals.judging import Answer, Judging
from tokendeep.evals.samples import identity, sample_of
from tokendeep.evals.stored import Store, Words
from tokendeep.judges import JUDGES
from tokendeep.judges.base import FAILED, REJECTED, Seen
from tokendeep.records import Verdict
from tokendeep.types import Sample

logger = logging.getLogger(__name__)


def answers(every: Sequence[EvalLog]) -> Iterator[tuple[EvalLog, EvalSample, Answer]]:
    """All answers in these logs."""
    for log in every:
        for sample in log.samples or []:
            yield log, sample, Answer(sample.input, sample.output, sample.metadata)


def views_of(every: Sequence[Judging], log: EvalLog) -> list[Judging]:
    """The judges with what they see of these answers: behind a refusal prefix each decides itself."""
    refuses = ATTACKS[(log.eval.metadata or {})["attack"]].refuses
    return list(dict.fromkeys(replace(o, judged=o.by.behind_prefix) if refuses else o for o in every))


@dataclass(frozen=True)
class Look:
    """A judge's look at one answer."""

    view: Judging
    log: EvalLog
    sample: EvalSample
    answer: Answer

    def signed(self, verdict: Verdict, grader: Model | None) -> Verdict:
        """A verdict as the judge's own, on this answer."""
        return verdict.model_copy(update=judging.signed(self.view, self.answer, grader))


def looks_of(every: Sequence[Judging], given: Sequence[EvalLog]) -> list[Look]:
    """All answers in these logs under all of these judges."""
    return [Look(view, *one) for one in answers(given) for view in views_of(every, one[0])]


def judge(looks: Sequence[Look], store: Store, grader: Model | None, done: Callable[[], object]) -> list[Sample]:
    """The answers under their judges, the later one of a prompt that was asked again.

    Args:
        store: verdicts that are known; new ones are kept there as they come.
        done: called after each verdict.

    Raises:
        InputError: the grader cannot be reached; what it has graded is kept.
    """
    verdicts = [_offline(look, store, grader, done) for look in looks]
    if grader is not None and None in verdicts:
        asked = [look for look, verdict in zip(looks, verdicts, strict=True) if verdict is None]
        graded = iter(_ask(asked, store, grader, done))
        verdicts = [next(graded) if verdict is None else verdict for verdict in verdicts]
    samples = [
        sample_of(look.log, look.sample, look.signed(verdict, grader))
        for look, verdict in zip(looks, verdicts, strict=True)
        if verdict is not None
    ]
    return list({identity(one): one for one in samples}.values())


def _offline(look: Look, store: Store, grader: Model | None, done: Callable[[], object]) -> Verdict | None:
    """What is known, else what a rule finds now; None where a grader must be asked."""
    if look.sample.error:
        done()
        return Verdict(outcome="judge-error", truncated=False)
    if (seen := judging.seen_by(look.view, look.answer)) is None:
        done()
        return judging.unseen(look.view, look.answer)
    signed = judging.signed(look.view, look.answer, grader)
    found = store.find((look.view.judge, signed["template"], signed.get("grader")), seen)
    if look.view.by.rubric or look.view.judged != "conversation":  # older versions showed rules the request there too
        found = found or _from_log(look.sample, signed)
    found = None if found and found.outcome in (FAILED, REJECTED) else found
    if found is None and look.view.by.rubric:
        return None
    found = found or judging.by_rule(look.view, look.answer, seen[1])
    store.append(look.signed(found, grader), seen)
    done()
    return found


def _ask(looks: Sequence[Look], store: Store, grader: Model, done: Callable[[], object]) -> list[Verdict]:
    """What the grader says to each of these; a text that several looks share is graded once."""
    groups: dict[tuple[str, Seen], list[Look]] = defaultdict(list)
    for look in looks:
        groups[_text(look)].append(look)

    async def one(text: tuple[str, Seen]) -> Verdict:
        found = await grading.grade(groups[text][0].view.by, text[1], grader)
        for look in groups[text]:
            store.append(look.signed(found, grader), text[1])
            done()
        return found

    graded = dict(zip(groups, grading.together(grader, map(one, groups)), strict=True))
    return [graded[_text(look)] for look in looks]


def _text(look: Look) -> tuple[str, Seen]:
    """The judge, and what it sees."""
    seen = judging.seen_by(look.view, look.answer)
    assert seen is not None
    return look.view.judge, seen


def _from_log(sample: EvalSample, signed: Mapping[str, Any]) -> Verdict | None:
    """The verdict of the same judge, by the same words, that the evaluation itself has kept."""
    by = ("judge", "template", "grader", "judged")
    told = (score.metadata or {} for score in (sample.scores or {}).values())
    same = (metadata for metadata in told if all(metadata.get(name) == signed.get(name) for name in by))
    return next((Verdict.model_validate(metadata) for metadata in same), None)


def kept(given: Sequence[EvalLog], store: Store) -> Iterator[Sample]:
    """The answers under the judges that have looked at them again; a log that one has not looked at to its end is left out."""
    for log in given:
        whole: set[Words] = set()
        missing: dict[Words, int] = {}
        for words, judged in store.views:
            if not _has_view(words, judged, log):
                continue
            verdicts = [(sample, _stored(words, judged, sample, answer, store)) for _, sample, answer in answers([log])]
            lacking = sum(verdict is None for _, verdict in verdicts)
            if not lacking:
                whole.add(words)
                yield from (sample_of(log, sample, verdict) for sample, verdict in verdicts if verdict is not None)
            elif any(_looked_at(words, judged, answer, store) for *_, answer in answers([log])):
                missing[words] = lacking
        for words in missing.keys() - whole:  # under one view at least a judge has looked at all of them
            logger.warning(
                "%s: %d answers have no verdict of %s; run tokendeep judge again", store.path, missing[words], words[0]
            )


def _has_view(words: Words, judged: str | None, log: EvalLog) -> bool:
    """Whether a judge can have had this view of these answers; of those behind a refusal prefix it has its own alone."""
    name = words[0]
    view = Judging(name, str(judged)) if name in JUDGES else None
    return view is None or views_of([view], log) == [view]


def _looked_at(words: Words, judged: str | None, answer: Answer, store: Store) -> bool:
    """Whether a judge's verdict on an answer is stored."""
    seen = judging.seen_by(Judging(words[0], str(judged)), answer) if words[0] in JUDGES else None
    return seen is not None and store.row(words, judged, seen) is not None


def _stored(words: Words, judged: str | None, sample: EvalSample, answer: Answer, store: Store) -> Verdict | None:
    """The verdict that was stored on an answer; None where there is none."""
    name, template, grader = words
    signed: dict[str, Any] = {
        "judge": name,
        "template": template,
        "grader": grader,
        "judged": judged,
        "truncated": answer.cut,
    }
    if sample.error:
        return Verdict(outcome="judge-error", **signed)
    if name not in JUDGES:
        return None
    view = Judging(name, str(judged))
    if (seen := judging.seen_by(view, answer)) is None:
        return judging.unseen(view, answer).model_copy(update=signed)
    found = store.row(words, judged, seen) or _from_log(sample, signed)  # the latter where its grader failed, too
    return found.model_copy(update=signed) if found else None
