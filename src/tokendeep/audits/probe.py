"""The probe of an audit: harmful requests, and where a score compares answers to them, a harmful answer and a refusal each.

Harmful answers are brought (pairs, triples), or written at run time by an unaligned model; refusals are brought (triples),
or the model's own. What the offline judge does not take for what it should be is left out and counted. Nothing harmful is
made without a model that is named for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokendeep import chat, data, judges, runs
from tokendeep.audits.base import Anchor
from tokendeep.data import stock
from tokendeep.errors import InputError
from tokendeep.training import answers, harmful
from tokendeep.types import Subject

FILE = "probe.jsonl"  # the answers, for the owner alone
FEW = 10  # anchors below which it is said


@dataclass(frozen=True)
class Probe:
    """The requests of a probe, and in lines how many of those that were read came to them."""

    anchors: Sequence[Anchor]
    lines: Sequence[str] = ()


def read(source: str | None, columns: Sequence[str], size: int) -> list[Anchor]:
    """The requests of a file with what answers it has, or those of the stock; `size` of them, evenly spread.

    Raises:
        InputError: the file cannot be read, or a row of it is wrong.
    """
    anchors = _stock() if source is None else _brought(data.choose_beside(source, columns, "harmful"))
    if len(anchors) <= size:
        return anchors
    return [anchors[place * len(anchors) // size] for place in range(size)]


def _stock() -> list[Anchor]:
    rows = stock.rows("harmful.jsonl", "train")
    return [Anchor(f"stock-{row['id']}", ({"role": "user", "content": row["instruction"]},)) for row in rows]


def _brought(source: data.Source) -> list[Anchor]:
    kind = data.kind(source)
    if kind == "prompts":
        return [Anchor(row.id, row.messages) for row in data.read_prompts(source)]
    if kind == "triples":
        return [Anchor(row.id, row.messages, row.harmful, row.refusal) for row in data.read_triples(source)]
    return [Anchor(row.id, row.messages, row.response) for row in data.read_pairs(source)]


def check(anchors: Sequence[Anchor], score: str, source: str | None, base: str | None) -> None:
    """Raises InputError where a score needs harmful answers and there is no way to them."""
    if base or any(anchor.harmful for anchor in anchors):
        return
    where = f"--probe {source} holds requests alone" if source else "the stock of requests has none"
    raise InputError(
        f"The score {score} needs a harmful answer to each request of its probe, and {where}: give --base, an unaligned model "
        "that writes them, or --probe with pairs (tokendeep pairs makes some)."
    )


def written(anchors: Sequence[Anchor], subject: Subject, options: Any) -> Probe:
    """The anchors with harmful answers by an unaligned model, where they have none; without those it does not answer."""
    missing = [anchor for anchor in anchors if not anchor.harmful]
    if not missing:
        return Probe(anchors)
    asked = [chat.with_system(anchor.messages, options.system) for anchor in missing]
    made = harmful.write(subject, asked, harmful.Writing(options.answer_tokens, tries=2))
    texts = {missing[number].id: answer.text for number, answer in made.items() if answer.complied}
    kept = [replace(one, harmful=one.harmful or texts.get(one.id, "")) for one in anchors]
    lines = [f"{subject.name} answers {len(texts)} of {len(missing)} requests of the probe"]
    if not any(one.harmful for one in kept):
        raise InputError(f"{lines[0]}; give another --base, or a --probe of pairs.")
    return Probe([one for one in kept if one.harmful], lines)


def harmful_alone(anchors: Sequence[Anchor]) -> Probe:
    """The anchors without those whose harmful answer is a refusal; requests alone stay.

    Raises:
        InputError: none is left.
    """
    kept = [one for one in anchors if not (one.harmful and _refuses(one.harmful))]
    if not kept:
        raise InputError(
            f"All {len(anchors)} harmful answers of the probe refuse themselves; give a --probe of others, or of requests alone."
        )
    lost = len(anchors) - len(kept)
    return Probe(kept, [f"{lost} harmful answers of the probe refuse themselves; they are left out"] if lost else [])


def refused(anchors: Sequence[Anchor], subject: Subject, options: Any) -> Probe:
    """All anchors, those with a harmful answer with the model's own greedy refusal too, where they have none and it refuses.

    Raises:
        InputError: none has both (`both`).
    """
    lines = []
    missing = [one for one in anchors if one.harmful and not one.refusal]
    texts = answers.sample_refusals(
        subject, [one.messages for one in missing], tokens=options.answer_tokens, system=options.system, tries=1,
        title="refusals of the probe",
    )  # fmt: skip
    found = {one.id: text for one, text in zip(missing, texts, strict=True) if text}
    whole = [replace(one, refusal=one.refusal or found.get(one.id, "")) for one in anchors]
    usable = len(both(whole))
    if missing:
        lines.append(
            f"the model refuses {len(found)} of {len(missing)} requests of the probe in {options.answer_tokens} tokens"
        )
    if not usable:
        raise InputError(
            f"No request of the probe has both a harmful answer and a refusal of {subject.name} ({'; '.join(lines)}): give a "
            "--probe that the model refuses, or one of triples."
        )
    if usable < FEW:
        lines.append(f"a probe of {usable} requests is few: read the scores with care")
    return Probe(whole, lines)


def both(anchors: Sequence[Anchor]) -> list[Anchor]:
    """The anchors that have a harmful answer and a refusal."""
    return [one for one in anchors if one.harmful and one.refusal]


def _refuses(text: str) -> bool:
    return judges.judge_refusal(text).outcome == "refused"


def kept(path: Path, make: Callable[[], Sequence[Anchor]]) -> list[Anchor]:
    """The anchors of a file of this run, which is made first where it is not there yet."""
    if not path.exists():
        rows = [{"id": one.id, "messages": list(one.messages), **_said(one)} for one in make()]
        runs.write_jsonl(path, rows, private=True)
    return [
        Anchor(row["id"], tuple(row["messages"]), row.get("harmful", ""), row.get("refusal", ""))
        for row in runs.read_jsonl(path)
    ]


def _said(anchor: Anchor) -> dict[str, str]:
    """What is said to an anchor, by the columns that the readers know."""
    return {name: text for name in ("harmful", "refusal") if (text := getattr(anchor, name))}
