"""One answer -> a verdict: what a judge sees of it, by rule or by a grader, and why it may have none.

Takes an answer as Inspect holds it, be it in an evaluation that goes on or in a log. Knows nothing of files.
"""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inspect_ai.model import ChatMessage, ContentReasoning, Model, ModelOutput

from tokendeep import chat
from tokendeep.errors import InputError, did_you_mean
from tokendeep.evals import inputs
from tokendeep.evals.options import of_grader
from tokendeep.evals.session import current
from tokendeep.judges import JUDGED, JUDGES, Judge, Verdict, classifiers, wordings
from tokendeep.judges.base import COPYRIGHT, Seen

log = logging.getLogger(__name__)
KIND = "functionalcategory"  # of a behaviour of HarmBench: standard, contextual or copyright
LENGTH_LIMITS = ("max_tokens", "model_length")


@dataclass(frozen=True)
class Judging:
    """A judge and what it sees; `own` is the judge with what the user has brought to it."""

    judge: str
    judged: str = "continuation"
    own: Judge | None = field(default=None, compare=False, repr=False)

    @property
    def by(self) -> Judge:
        return self.own or JUDGES[self.judge]


@dataclass(frozen=True)
class Answer:
    """An answer as Inspect holds it, with the request and what the task noted of it."""

    asked: str | Sequence[ChatMessage]
    output: ModelOutput
    metadata: Mapping[str, Any]

    @property
    def stopped(self) -> str:
        return self.output.choices[0].stop_reason if self.output.choices else "unknown"

    @property
    def cut(self) -> bool:
        """Whether it reached its length limit."""
        return self.stopped in LENGTH_LIMITS

    @property
    def request(self) -> str:
        """What was asked: the last turn of the user."""
        turns = [] if isinstance(self.asked, str) else [m.text for m in self.asked if m.role == "user"]
        return turns[-1] if turns else str(self.asked)

    @property
    def context(self) -> str | None:
        """The document that the request is about, where one stands before it."""
        context = self.metadata.get("context")
        return context if isinstance(context, str) and inputs.before(context) in self.request else None

    @property
    def conversation(self) -> str:
        """All that was asked, each turn with its role where there is more than one."""
        if isinstance(self.asked, str) or len(self.asked) == 1:
            return self.request
        return "\n\n".join(f"{message.role}: {message.text}" for message in self.asked)

    def said(self, judged: str) -> str | None:
        """The answer behind the model's thinking; None where it was still thinking, in the text or on its server."""
        text = self.output.completion if judged == "continuation" else self._whole()
        answer = chat.answer(text, opened=bool(self.metadata.get("thinking")))
        contents = self.output.message.content if self.output.choices else ""
        taken_out = not isinstance(contents, str) and any(isinstance(part, ContentReasoning) for part in contents)
        return None if self.cut and taken_out and not (answer or "").strip() else answer

    def _whole(self) -> str:
        """Prefill and continuation as one text: the paper's convention."""
        whole = (self.output.metadata or {}).get("answer")
        return whole if whole is not None else self.metadata.get("prefix_text", "") + self.output.completion


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """The sentence for an unknown name: the nearest known one, else all of them."""
    return f"Unknown {what} '{name}'; {did_you_mean(name, known)}."


def named(judge: str | Sequence[str], judged: str | Sequence[str]) -> list[Judging]:
    """Every judge with every view, each once. Raises InputError for an unknown one, with the nearest known, and for none."""
    names, views = _listed(judge), _listed(judged)
    for what, given, known in (("judge", names, JUDGES), ("value of judged", views, JUDGED)):
        if not given:
            raise InputError(f"No {what} is named: choose from {', '.join(known)}.")
        for name in given:
            classifiers.check_name(name)
            if name not in known:
                raise InputError(unknown(what, name, known))
    return [Judging(name, view) for name in names for view in views]


def equipped(every: Sequence[Judging], wording: str | None, label: str | None) -> list[Judging]:
    """The judges with what some of them need: the file of a published prompt, the label of a classifier that counts.

    Raises:
        InputError: one of them is missing, is for none of these judges, or is not the judge's.
    """
    for option, given, wanted in (
        ("--judge-template", wording, wordings.worded),
        ("--judge-label", label, classifiers.labelled),
    ):
        if given is not None and not any(wanted(one.by) for one in every):
            names = ", ".join(name for name, judge in JUDGES.items() if wanted(judge))
            raise InputError(f"{option} is for the judges {names}; leave it out, or name one of them with --judge.")
    found = [_equipped(one, wording, label) for one in every]
    check_equipped(found)
    return found


def _equipped(one: Judging, wording: str | None, label: str | None) -> Judging:
    if wording is not None and wordings.worded(one.by):
        return replace(one, own=wordings.equipped(one.by, Path(wording).expanduser()))
    if label is not None and classifiers.labelled(one.by):
        return replace(one, own=classifiers.named(one.by, label))
    return one


def check_equipped(every: Collection[Judging]) -> None:
    """Raises InputError for a judge whose prompt has not been brought."""
    for one in every:
        if (rubric := one.by.rubric) and rubric.wording and not rubric.text:
            raise InputError(
                f"The judge {one.judge} asks with a published prompt that does not come with tokendeep: give tokendeep judge its "
                f"file with --judge-template ({rubric.wording.source})."
            )


def check_contexts(every: Collection[Judging], answers: Iterable[Answer]) -> None:
    """Raises InputError for requests about a document under a judge whose prompt for these has not been brought.

    Logs of older versions do not tell the document from the request, so their answers get the other prompt, which is said.
    """
    asking = [
        (one.judge, rubric, wording)
        for one in every
        if (rubric := one.by.rubric) and (wording := rubric.wording) and wording.contextual
    ]
    read = list(answers) if asking else []  # all logs, which nobody else needs yet
    count = sum(answer.context is not None for answer in read)
    untold = sum("context" not in answer.metadata and inputs.before("") in answer.request for answer in read)
    for judge, rubric, wording in asking:
        if count and not rubric.contextual:
            raise InputError(
                f"{count} answers are to requests with a context, for which {judge} has a prompt of its own "
                f"({str(wording.contextual)[:16]}); the file of --judge-template does not hold it: give the unchanged "
                f"{wording.source}."
            )
        if untold:
            log.warning(
                "%d requests look like HarmBench's with a context, but their log is an older one that does not tell it: %s "
                "judges them with its prompt for requests without one; run attack again to have them judged as its authors do",
                untold, judge,
            )  # fmt: skip


def _listed(names: str | Sequence[str]) -> list[str]:
    given = names.split(",") if isinstance(names, str) else names
    return list(dict.fromkeys(str(name).strip() for name in given if str(name).strip()))


def name_of(grader: Model | None) -> str | None:
    """What verdicts call a grader; one that is given ids is told from others by its weights and template too.

    Where its server is gone, it is called what the logs of the same run have called it.

    Raises:
        InputError: its server, which tells them, cannot be reached, and no log names it.
    """
    try:
        return getattr(grader.api, "known", str(grader)) if grader else None
    except InputError as error:
        if (run := current()) and run.grader_name:
            return run.grader_name
        raise InputError(f"The grader could not be asked: {of_grader(str(error))}") from error


def facts(
    every: Sequence[Judging], grader: Model | None = None, signed: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """What each judge goes by, for the manifest.

    Args:
        signed: judge -> the name of its grader, where verdicts are there that say it; the grader is not asked then.
    """
    judges, known = {one.judge: one.by for one in every}, signed or {}
    graded = {
        name: {"grader": known.get(name) or name_of(grader), "max_tokens": j.rubric.tokens, "wording": j.rubric.called}
        for name, j in judges.items()
        if j.rubric
    }
    return {name: {"template": judge.template, **graded.get(name, {})} for name, judge in judges.items()}


def signed(one: Judging, answer: Answer, grader: Model | None) -> dict[str, Any]:
    """What every verdict of a judge on this answer says."""
    judge = one.by
    by = {"grader": name_of(grader)} if judge.rubric else {}
    return {"truncated": answer.cut, "judged": one.judged, "judge": one.judge, "template": judge.template, **by}


def seen_by(one: Judging, answer: Answer) -> Seen | None:
    """The request, and the text that is judged; None where nothing is there for this judge.

    A rule reads what was said and no request, which would be taken for a part of the answer.
    """
    said = answer.said(one.judged)
    if said is None or answer.stopped == "content_filter" or _left(one, answer):
        return None
    return Seen(answer.conversation if one.judged == "conversation" else answer.request, said, answer.context)


def _left(one: Judging, answer: Answer) -> bool:
    """Whether the request is of a kind that the judge leaves."""
    rubric = one.by.rubric
    return rubric is not None and not rubric.copyright and answer.metadata.get(KIND) == COPYRIGHT


def unseen(one: Judging, answer: Answer) -> Verdict:
    """The verdict where nothing is there for it: a filter spoke, the model was still thinking, it judges no such request."""
    if answer.stopped == "content_filter":  # the server's doing: what the model would have said is not known
        return Verdict(outcome="filtered", truncated=answer.cut, evidence=answer.stopped)
    left = answer.said(one.judged) is not None and _left(one, answer)
    return Verdict(outcome=COPYRIGHT if left else "thought", truncated=answer.cut)


def by_rule(one: Judging, answer: Answer, text: str) -> Verdict:
    """What an offline judge finds; one that breaks is a result of its own, not a zero."""
    rule = one.by.rule
    assert rule is not None
    try:
        return rule(text, truncated=answer.cut)
    except Exception as error:
        return Verdict(outcome="judge-error", truncated=answer.cut, evidence=type(error).__name__)
