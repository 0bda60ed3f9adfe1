"""One answer -> a verdict: what a judge sees of it, by rule or by a grader, and why it may have none.

Takes an answer as Inspect holds it, be it in an evaluation that goes on or in a log. Knows nothing of files.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inspect_ai.model import ChatMessage, ContentReasoning, Model, ModelOutput

from tokendeep import chat
from tokendeep.errors import InputError, did_you_mean
from tokendeep.evals.provider import TokendeepAPI
from tokendeep.judges import JUDGED, JUDGES, Verdict

LENGTH_LIMITS = ("max_tokens", "model_length")


@dataclass(frozen=True)
class Judging:
    """A judge and what it sees."""

    judge: str
    judged: str = "continuation"


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
            if name not in known:
                raise InputError(unknown(what, name, known))
    return [Judging(name, view) for name in names for view in views]


def _listed(names: str | Sequence[str]) -> list[str]:
    given = names.split(",") if isinstance(names, str) else names
    return list(dict.fromkeys(str(name).strip() for name in given if str(name).strip()))


def name_of(grader: Model | None) -> str | None:
    """What verdicts call a grader; one that runs here is told from others by its weights and template too."""
    ours = grader.api if grader and isinstance(grader.api, TokendeepAPI) else None
    return ours.known if ours else str(grader) if grader else None


def facts(every: Sequence[Judging], grader: Model | None = None) -> dict[str, dict[str, Any]]:
    """What each judge goes by, for the manifest."""
    judges = {one.judge: JUDGES[one.judge] for one in every}
    graded = {
        name: {"grader": name_of(grader), "max_tokens": j.rubric.tokens} for name, j in judges.items() if j.rubric
    }
    return {name: {"template": judge.template, **graded.get(name, {})} for name, judge in judges.items()}


def signed(one: Judging, answer: Answer, grader: Model | None) -> dict[str, Any]:
    """What every verdict of a judge on this answer says."""
    judge = JUDGES[one.judge]
    by = {"grader": name_of(grader)} if judge.rubric else {}
    return {"truncated": answer.cut, "judged": one.judged, "judge": one.judge, "template": judge.template, **by}


def seen_by(one: Judging, answer: Answer) -> tuple[str, str] | None:
    """The request, and the text that is judged; None where nothing of the model's is there to be judged."""
    said = answer.said(one.judged)
    if said is None or answer.stopped == "content_filter":
        return None
    if one.judged != "conversation":
        return answer.request, said
    return answer.conversation, said if JUDGES[one.judge].rubric else f"{answer.conversation}\n\n{said}"


def unseen(answer: Answer) -> Verdict:
    """The verdict on an answer of which nothing is there: a filter spoke, or the model was still thinking."""
    if answer.stopped == "content_filter":  # the server's doing: what the model would have said is not known
        return Verdict(outcome="filtered", truncated=answer.cut, evidence=answer.stopped)
    return Verdict(outcome="thought", truncated=answer.cut)


def by_rule(one: Judging, answer: Answer, text: str) -> Verdict:
    """What an offline judge finds; one that breaks is a result of its own, not a zero."""
    rule = JUDGES[one.judge].rule
    assert rule is not None
    try:
        return rule(text, truncated=answer.cut)
    except Exception as error:
        return Verdict(outcome="judge-error", truncated=answer.cut, evidence=type(error).__name__)
