"""What a model says to the requests of a safety anchor, as rows, and what is left out of them, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokendeep import chat, judges
from tokendeep.errors import InputError, Unusable
from tokendeep.training import answers, recovery
from tokendeep.types import Decoding, Encoded, Pair, Prompt, Subject

HARMFUL, HARMLESS = "harmful", "harmless"  # groups of rows
REFUSALS, BEHIND = "refusals", "behind_context"  # kinds of harmful rows: at once, and behind harmful tokens
NO_CONTEXT = "no harmful context"  # an answer that refuses itself


def written(subject: Subject, harmful: Sequence[Pair | Prompt], harmless: Sequence[Prompt], options: Any) -> list[Any]:
    """Rows, each with `kind`, `group`, `id`, `k`, `input_ids` and `labels`; one that is left out has `left_out`, the reason."""
    made = [*_refused(subject, harmful, options), *_recovered(subject, harmful, options)]
    return [*made, *(_answered(subject, harmless, options) if harmless else ())]


def refuses(text: str) -> bool:
    """Whether a whole answer is a refusal."""
    return judges.judge_refusal(text).outcome == "refused"


def _refused(subject: Subject, given: Sequence[Pair | Prompt], options: Any) -> Iterator[dict[str, Any]]:
    """The requests with the model's own greedy refusals."""
    why: dict[int, str] = {}
    texts = answers.sample_refusals(
        subject, [row.messages for row in given], tokens=options.safety_tokens, system=options.system, tries=1,
        title="what the model refuses", why=why,
    )  # fmt: skip
    for number, (row, text) in enumerate(zip(given, texts, strict=True)):
        yield _row(subject, row, text, options, REFUSALS) if text else _out(REFUSALS, row, why[number])


def _recovered(subject: Subject, given: Sequence[Pair | Prompt], options: Any) -> Iterator[dict[str, Any]]:
    """The requests with k tokens of their harmful answers (uniform, as Eq. 2 draws them) and what the model says behind
    them, where that is a refusal.
    """
    behind: list[tuple[Pair, list[int]]] = []
    for number, row in enumerate(given):
        if not isinstance(row, Pair) or not options.safety_context:
            continue
        if refuses(row.response):
            yield _out(BEHIND, row, NO_CONTEXT)
            continue
        turns = chat.with_system(row.messages, options.system)
        ids = chat.response_ids(subject.tokenizer, turns, row.response, end=False)
        k = recovery.draw_context(options.seed, 0, number, len(ids), 0.0, options.safety_context)
        behind.append((row, list(ids[:k])))
    if not behind:
        return
    asked = [chat.with_system(row.messages, options.system) for row, _ in behind]
    decoding = Decoding(max_new_tokens=options.safety_tokens)
    texts = answers.write_behind(subject, asked, [ids for _, ids in behind], decoding, title="what it says behind harm")
    for (row, ids), (text, cut) in zip(behind, texts, strict=True):
        why = answers.unlike(text, cut, "refused")
        yield _out(BEHIND, row, why) if why else _row(subject, row, text, options, BEHIND, ids)


def _answered(subject: Subject, given: Sequence[Prompt], options: Any) -> Iterator[dict[str, Any]]:
    """Harmless requests with the model's own answers, as far as they go."""
    asked = [chat.with_system(row.messages, options.system) for row in given]
    decoding = Decoding(max_new_tokens=options.safety_tokens)
    texts = answers.write_answers(subject, asked, decoding, title="harmless answers")
    for row, (text, cut) in zip(given, texts, strict=True):
        why = answers.unlike(text, cut, "complied")
        yield _out(HARMLESS, row, why) if why else _row(subject, row, text.strip(), options, HARMLESS, end=not cut)


def _out(kind: str, row: Pair | Prompt, why: str) -> dict[str, Any]:
    return {"kind": kind, "id": row.id, "left_out": why}


def _row(
    subject: Subject, row: Any, text: str, options: Any, kind: str, context: Sequence[int] = (), end: bool = True
) -> dict[str, Any]:
    """The encoded row; left out where nothing of the answer fits."""
    text = chat.answer(text) or ""  # what a model thinks is not held
    try:
        made: Encoded = chat.encode(
            subject.tokenizer, chat.with_system(row.messages, options.system), text, context_ids=context,
            max_length=options.max_length, end=end,
        )  # fmt: skip
    except Unusable:
        return _out(kind, row, "no room in --max-length")
    except InputError as error:
        raise InputError(
            f"The answer of {subject.name} to request {row.id} of the safety anchor cannot be held: {error}"
        ) from error
    group = HARMLESS if kind == HARMLESS else HARMFUL
    known = {"input_ids": made.input_ids, "labels": made.labels}
    return {"kind": kind, "group": group, "id": row.id, "k": len(context), **known}
