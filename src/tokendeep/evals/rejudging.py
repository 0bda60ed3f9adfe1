"""The answers of finished evaluations under other judges: nothing is generated, and no verdict is asked for twice.

Knows logs and stored verdicts; knows nothing of folders.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.model import Model

from tokendeep.attacks import ATTACKS
from tokendeep.evals import judging
from tokendeep.evals.judging import Answer, Judging
from tokendeep.evals.samples import identity, sample_of
from tokendeep.evals.stored import Store, Words
from tokendeep.judges import JUDGES
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
    return list(dict.fromkeys(Judging(o.judge, JUDGES[o.judge].behind_prefix) if refuses else o for o in every))


def judge(
    every: Sequence[Judging], given: Sequence[EvalLog], store: Store, grader: Model | None, done: Callable[[], object]
) -> list[Sample]:
    """The answers under each of these judges, the later one of a prompt that was asked again.

    Args:
        store: verdicts that are known; new ones are kept there as they come.
        done: called after each answer.
    """
    samples: dict[str, Sample] = {}
    for log, sample, answer in answers(given):
        for view in views_of(every, log):
            verdict = _verdict(view, sample, answer, store, grader)
            one = sample_of(log, sample, verdict.model_copy(update=judging.signed(view, answer, grader)))
            samples[identity(one)] = one
        done()
    return list(samples.values())


def _verdict(view: Judging, sample: EvalSample, answer: Answer, store: Store, grader: Model | None) -> Verdict:
    """What is known, else what the judge finds now."""
    if sample.error:
        return Verdict(outcome="judge-error", truncated=False)
    if (seen := judging.seen_by(view, answer)) is None:
        return judging.unseen(answer)
    signed = judging.signed(view, answer, grader)
    found = store.find((view.judge, signed["template"], signed.get("grader")), seen)
    found = found or _from_log(sample, signed) or judging.by_rule(view, answer, seen[1])
    store.append(found.model_copy(update=signed), seen)
    return found


def _from_log(sample: EvalSample, signed: Mapping[str, Any]) -> Verdict | None:
    """The verdict of the same judge, by the same words, that the evaluation itself has kept."""
    by = ("judge", "template", "grader", "judged")
    told = (score.metadata or {} for score in (sample.scores or {}).values())
    same = (metadata for metadata in told if all(metadata.get(name) == signed.get(name) for name in by))
    return next((Verdict.model_validate(metadata) for metadata in same), None)


def kept(given: Sequence[EvalLog], store: Store) -> Iterator[Sample]:
    """The answers under the judges that have looked at them again; a log that one has not looked at to its end is left out."""
    for words, judged in store.views:
        for log in given:
            verdicts = [(sample, _stored(words, judged, sample, answer, store)) for _, sample, answer in answers([log])]
            missing = sum(verdict is None for _, verdict in verdicts)
            if missing and missing < len(verdicts):
                logger.warning(
                    "%s: %d answers have no verdict of %s; run tokendeep judge again", store.path, missing, words[0]
                )
            if not missing:
                yield from (sample_of(log, sample, verdict) for sample, verdict in verdicts if verdict is not None)


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
    if (seen := judging.seen_by(Judging(name, str(judged)), answer)) is None:
        return judging.unseen(answer).model_copy(update=signed)
    found = store.row(words, judged, seen)
    return found.model_copy(update=signed) if found else None
