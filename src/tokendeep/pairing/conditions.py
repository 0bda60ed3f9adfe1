"""Judged answers of two sides -> conditions that both have, and whether these are alike in all but the model.

A condition is an attack with its parameters on one kind of requests, under one judge. Knows nothing of folders.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokendeep.attacks import ATTACKS
from tokendeep.errors import InputError
from tokendeep.judges import SCORED
from tokendeep.runs.identity import sha256_text
from tokendeep.types import Sample

DECODING = ("temperature", "top_p", "top_k", "max_new_tokens")
FIELDS = (
    "prompts",
    "prefix",
    "template",
    "date",
    "system",
    "judge",
    "judge-template",
    "judged",
    "decoding",
    "engine",
    "defence",
    "dtype",
)
LATER = ("dtype",)  # those that older runs do not tell: what is not known is taken for the same, which `compare` says
Key = tuple[str, str, str]  # role of the requests, attack, its parameters in words
Prompt = tuple[str, str]  # id and request: ids such as 1, 2, 3 are those of many data sets


@dataclass(frozen=True)
class Source:
    """The judged answers of one run, and what has to be known of the run to compare it.

    Args:
        facts: those of FIELDS that no answer tells: template, date, engine, number format; None where it is not known.
    """

    name: str
    role: str
    samples: Sequence[Sample]
    facts: Mapping[str, str | None]


@dataclass(frozen=True)
class Run:
    """What one run of one side says about one condition."""

    source: Source
    samples: Sequence[Sample]

    @property
    def answers(self) -> dict[Prompt, list[Sample]]:
        """Prompt -> its answers that could be judged; an empty list where none could."""
        answers: dict[Prompt, list[Sample]] = defaultdict(list)
        for one in self.samples:
            answers[one.prompt_id, one.instruction] += [one] if one.outcome in SCORED else []
        return dict(answers)

    @property
    def unscored(self) -> dict[Prompt, float]:
        """Prompt -> the share of its answers that could not be judged."""
        asked = Counter((one.prompt_id, one.instruction) for one in self.samples)
        return {prompt: (asked[prompt] - len(judged)) / asked[prompt] for prompt, judged in self.answers.items()}

    def facts(self) -> dict[str, str | None]:
        """The value of each field that has to be the same on both sides; of texts their hashes."""
        first = self.samples[0]
        given = sorted({(one.prompt_id, one.prefix) for one in self.samples}) if _prepared(first.attack) else []
        asked = {
            "prompts": _digest(sorted(self.answers), "prompts"),
            "prefix": _digest(given, "prefixes") if given else None,
        }
        told = {**asked, **_settings(first), **self.source.facts}
        return {name: told.get(name) for name in FIELDS}


@dataclass(frozen=True)
class Condition:
    """An attack on one kind of requests that both sides have, in one run or several each."""

    role: str
    attack: str
    variant: str
    before: Sequence[Run]
    after: Sequence[Run]

    @property
    def judge(self) -> str:
        return self.before[0].samples[0].judge

    @property
    def key(self) -> Key:
        """What is asked, whoever judges it."""
        return _key(self.role, (self.before or self.after)[0].samples[0])

    def __str__(self) -> str:
        return " ".join(filter(None, (self.attack, self.variant, f"on {self.role} requests")))


@dataclass(frozen=True)
class Alone:
    """A condition that is not compared, and why; `heard`: one that is compared has the same answers, under another judge or
    other words of this one.
    """

    requests: str
    name: str
    why: str
    heard: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def conditions(before: Sequence[Source], after: Sequence[Source]) -> tuple[list[Condition], list[Alone]]:
    """The conditions that both sides have, and those that only one has.

    Where both have an attack under one judge on one set of prompts each, these are taken together, also if they differ:
    see `differences`. Where a side has several, each goes with its like; verdicts under words of the judge that only one side
    knows, such as older ones, are left out where the same answers are compared under words that both do.

    Raises:
        InputError: both have some, and none in common.
    """
    sides = [_grouped(side) for side in (before, after)]
    found: list[Condition] = []
    alone: list[Alone] = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        one, two = (side.get(key, {}) for side in sides)
        if len(one) == len(two) == 1:
            found.append(Condition(*key, next(iter(one.values())), next(iter(two.values()))))
            continue
        shared = [which for which in one if which in two]
        for which, words in _told_apart([*one, *two]).items():
            role, attack, variant = key
            made = Condition(
                role, attack, ", ".join(filter(None, (variant, words))), one.get(which, ()), two.get(which, ())
            )
            if made.before and made.after:
                found.append(made)
            else:
                side = one if made.before else two
                heard = any(_same_answers(which, other, side) for other in shared)
                why = f"{'before' if made.before else 'after'} only"
                why += "; the same answers are compared under words of the judge that both sides have" if heard else ""
                alone.append(Alone(role, str(made), why, heard))
    if not found and before and after:
        names = "; ".join(map(str, alone))
        raise InputError(f"The two sides have no attack in common: {names}; run the same attacks on both.")
    return found, alone


def differences(condition: Condition) -> dict[str, tuple[str, str]]:
    """The fields in which the runs of a condition differ, with a value of either side (or of two runs of one side)."""
    return unlike([run.facts() for run in (*condition.before, *condition.after)])


def unlike(facts: Sequence[Mapping[str, str | None]]) -> dict[str, tuple[str, str]]:
    """Those of FIELDS in which these differ, with two values; `facts` are of the runs before, then of those after."""
    values = {name: [one[name] for one in facts if one[name] is not None or name not in LATER] for name in FIELDS}
    return {
        name: (_known(told[0]), _known(next(other for other in reversed(told) if other != told[0])))
        for name, told in values.items()
        if len(set(told)) > 1
    }


def check(found: Iterable[Condition], allow: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The allowed fields that do differ. Raises InputError for another that does, with both values."""
    allowed: dict[str, tuple[str, str]] = {}
    for condition in found:
        hold(differences(condition), str(condition), allow, allowed)
    return allowed


def hold(
    found: Mapping[str, tuple[str, str]], what: str, allow: Sequence[str], allowed: dict[str, tuple[str, str]]
) -> None:
    """Add to `allowed` what differs and may. Raises InputError for another field, naming both values and `what`."""
    for name, values in found.items():
        if name not in allow:
            raise InputError(
                f"The runs differ in {name}: {values[0]} before and {values[1]} after ({what}), so a difference "
                f"would not be the model's; run one of them as the other was, or allow it with --allow {name}."
            )
        allowed.setdefault(name, values)


def _grouped(side: Sequence[Source]) -> dict[Key, dict[str, list[Run]]]:
    """Condition -> data and settings -> the runs."""
    groups: dict[Key, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for source in side:
        parts: dict[tuple[Key, str, str], list[Sample]] = defaultdict(list)
        for one in source.samples:
            which = json.dumps({"data": (one.params.get("data") or "")[:8], **_settings(one)})
            parts[_key(source.role, one), which, one.model].append(one)
        for (key, which, _), samples in parts.items():
            groups[key][which].append(Run(source, samples))
    return groups


def _same_answers(which: str, other: str, side: Mapping[str, Sequence[Run]]) -> bool:
    """Whether two groups of a side differ in the words of the judge alone, and the second has the answers of the first."""
    told = [{**json.loads(each), "judge-template": None} for each in (which, other)]
    answers = [{(run.source.name, len(run.samples)) for run in side[each]} for each in (which, other)]
    return told[0] == told[1] and answers[0] <= answers[1]


def _key(role: str, sample: Sample) -> Key:
    told = {name: sample.params.get(name) for name in ATTACKS[sample.attack].tells}
    words = [f"{name} {value}" for name, value in told.items() if value is not None and value is not False]
    return role, sample.attack, ", ".join(words)


def _settings(sample: Sample) -> dict[str, str | None]:
    """The fields that an answer itself tells."""
    params, grader = sample.params, sample.params.get("grader")
    decoding = {name: params.get(name) for name in DECODING if name not in ATTACKS[sample.attack].sets}
    return {
        "system": params.get("system"),
        "judge": f"{sample.judge} by {grader}" if grader else sample.judge,
        "judge-template": params.get("judge_template"),
        "judged": _view(sample),
        "defence": params.get("defence", "none"),
        "decoding": ", ".join(f"{name} {value}" for name, value in decoding.items()),
    }


def _view(sample: Sample) -> str | None:
    """What the judge saw; with nothing given in advance its answer is all of it."""
    view: str | None = sample.params.get("judged")
    return "continuation" if view == "full" and not sample.prefix else view


def _told_apart(keys: Iterable[str]) -> dict[str, str]:
    """Each of these keys of `_grouped`, with the data and settings in which they differ in words."""
    told = {key: json.loads(key) for key in keys}
    names = [name for name in next(iter(told.values())) if len({one[name] for one in told.values()}) > 1]
    return {key: ", ".join(f"{name} {_known(one[name])}" for name in names) for key, one in told.items()}


def _prepared(attack: str) -> bool:
    """Whether the tokens given in advance come from the data, so that they have to be the same for both models."""
    return ATTACKS[attack].prefills and not ATTACKS[attack].weights


def _digest(values: Sequence[Any], word: str) -> str:
    return f"{len(values)} {word} ({sha256_text(json.dumps(values))[:8]})"


def _known(value: str | None) -> str:
    return "not known" if value is None else value
