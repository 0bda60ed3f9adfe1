"""Runs -> series: the rates of one model on the same data under one judge and one set of settings, each under a name.

Also says which two series can be compared. Knows nothing of words or figures.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokendeep.attacks import ATTACKS
from tokendeep.records import Params, Rate
from tokendeep.report import views
from tokendeep.report.load import TOGETHER, WHAT, Run, key_of
from tokendeep.report.names import defended
from tokendeep.types import Sample

Condition = tuple[str, int | str | None]  # the attack in words, and its k or prefix
WORDS, LENGTH = "judge_template", "max_new_tokens"  # settings under which two rates are not the same number
NOT_SETTINGS = (*WHAT, "seed", "data")  # the data has its own place, and seeds may differ in a comparison


@dataclass(frozen=True)
class Series:
    """The rates of one model on the same data under one judge and one set of sampling settings."""

    name: str
    label: str
    role: str
    judge: str
    settings: Mapping[str, Any]  # parameters that every row shares, as they lie on disk
    rows: Mapping[Condition, Rate]
    samples: Mapping[Condition, Sequence[Sample]] | None
    run: Run = field(compare=False, repr=False)
    seed: int | None = None  # the first of its samples; two models may be compared under different ones

    @property
    def file(self) -> str:
        """The name of the data."""
        return self.run.file

    @property
    def model(self) -> str:
        return next(iter(self.rows.values())).model

    def first_samples(self, condition: Condition) -> dict[str, Sample]:
        """Prompt id -> its sample with the lowest seed, so that each prompt counts once."""
        first: dict[str, Sample] = {}
        for sample in sorted((self.samples or {}).get(condition, ()), key=lambda sample: sample.seed):
            first.setdefault(sample.prompt_id, sample)
        return first

    def plain(self) -> Condition | None:
        """The condition with nothing prefilled."""
        return next((c for c in (("prefill", 0), ("none", None)) if c in self.rows), None)

    def ks(self) -> list[int]:
        """The k of its prefills."""
        return sorted(value for attack, value in self.rows if attack == "prefill" and isinstance(value, int))

    def sweep(self) -> list[Rate]:
        """The rates of its prefills, by k."""
        return [self.rows["prefill", k] for k in self.ks()]


def series(runs: Iterable[Run]) -> list[Series]:
    """The rates of all runs, one series for each model, data, judge and set of settings."""
    built = _merged([_series(run, rates) for run in runs for rates in _together(run.rates or ())])
    groups: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for one in built:
        groups[one.role, _defended(one)].append(one)
    return _told_apart([replace(one, name=_name(one, groups[one.role, _defended(one)])) for one in built])


def _told_apart(named: Sequence[Series]) -> list[Series]:
    """The same attack under the same settings in two folders: the folder is part of the name."""
    names = [(one.role, one.name) for one in named]
    twice = [one for one in named if names.count((one.role, one.name)) > 1]
    folders = [(one.role, one.name, one.run.folder.name) for one in twice]

    def told(one: Series) -> Series:
        if not any(one is other for other in twice):
            return one
        name = one.run.folder.name
        once = folders.count((one.role, one.name, name)) == 1
        return replace(one, name=f"{one.name}, {name if once else one.run.folder}")

    return [told(one) for one in named]


def _merged(built: Sequence[Series]) -> list[Series]:
    """One series of those that only differ in the attacks that were run, each in a folder of its own."""
    merged: list[Series] = []
    for one in built:
        at = next((i for i, other in enumerate(merged) if _same_series(other, one)), None)
        if at is None:
            merged.append(one)
        else:
            other = merged[at]
            samples = None if other.samples is None else {**other.samples, **(one.samples or {})}
            merged[at] = replace(other, rows={**other.rows, **one.rows}, samples=samples)
    return merged


def _same_series(first: Series, second: Series) -> bool:
    def same(one: Series) -> tuple[object, ...]:
        return one.label, one.model, one.role, one.judge, one.settings, one.seed, one.samples is None

    return "data" in first.settings and same(first) == same(second) and not first.rows.keys() & second.rows.keys()


def pairs(series: Sequence[Series]) -> list[tuple[Series, Series]]:
    """Each series with the one of the model before it on the same data under the same judge, settings and role; of
    several, the one with most attacks in common, then the one with the same seed."""
    result = []
    for index, after in enumerate(series):
        earlier = [before for before in reversed(series[:index]) if _comparable(before, after)]
        nearest = [before for before in earlier if before.label == earlier[0].label]
        if nearest:
            alike = [(len(one.rows.keys() & after.rows.keys()), one.seed == after.seed) for one in nearest]
            result.append((nearest[alike.index(max(alike))], after))
    return result


def _comparable(before: Series, after: Series) -> bool:
    """Whether both were asked and judged alike; older runs do not tell the words of their judge."""
    one, other = (series.settings.get(WORDS) for series in (before, after))
    return _alike(before, after, (WORDS,)) and (one == other or None in (one, other))


def _alike(before: Series, after: Series, but: Sequence[str]) -> bool:
    """Whether two models were asked the same, under the same judge and the same settings but these."""
    first, then = (
        (one.role, one.judge, {name: value for name, value in one.settings.items() if name not in but})
        for one in (before, after)
    )
    return first == then and before.label != after.label


def apart(series: Sequence[Series]) -> list[tuple[Series, Series, list[str]]]:
    """Series of two models that nothing compares, for the words of the judge or the length of answers differ; with which."""

    def differ(before: Series, after: Series, name: str) -> bool:
        one, other = before.settings.get(name), after.settings.get(name)
        return one != other and not (name == WORDS and None in (one, other))

    either, compared = (WORDS, LENGTH), {(before.label, after.label, after.judge) for before, after in pairs(series)}
    return [
        (before, after, names)
        for index, after in enumerate(series)
        for before in series[:index]
        if _alike(before, after, either) and (before.label, after.label, after.judge) not in compared
        if (names := [name for name in either if differ(before, after, name)])
    ]


def condition(run: Run, rate: Rate) -> Condition:
    """What a row's attack did to the prompt, without the sampling settings."""
    attack, params = ATTACKS[rate.attack], rate.params.given()
    if attack.together:
        return attack.name, None
    if attack.group and not any(params.get(name) for name in attack.tells[1:]):
        value = params.get(attack.group)
        return attack.name, value if isinstance(value, int | str) else None
    if run.one_lead and params.get("lead"):
        params["lead"] = True  # there is no other to tell it from
    length, scorer = run.config.rank_length, run.cost(attack.name).scorer
    words = attack.describe({"rank_length": length, "scorer": scorer, **params})
    return (attack.name if not attack.tells and words == attack.describe({}) else words), None


def settings(params: Params) -> dict[str, Any]:
    """The sampling and judging settings among an attack's parameters."""
    return {name: value for name, value in sorted(params.given().items()) if name not in NOT_SETTINGS}


def _series(run: Run, rates: Sequence[Rate]) -> Series:
    first = next((rate for attack in ("prefill", "none") for rate in rates if rate.attack == attack), rates[0])
    rows = {condition(run, rate): rate for rate in rates}
    digest = run.digest(first.params.data)
    shared = {**settings(first.params), "samples": first.samples, **({"data": digest[:8]} if digest else {})}
    return Series(
        name=run.labels[first.model],
        label=run.labels[first.model],
        role=run.role,
        judge=first.judge,
        settings=shared,
        rows=rows,
        samples=None if run.samples is None else {which: run.behind(rate) for which, rate in rows.items()},
        run=run,
        seed=first.params.seed,
    )


def _together(rates: Sequence[Rate]) -> list[list[Rate]]:
    """Rows by series: same model, judge, settings, data, seed and view.

    Where nothing was given in advance `continuation` and `full` are one, and behind a refusal prefix the judge decides. Those
    rows stand with the prefills however these are judged.
    """
    keyed = [
        (key_of(rate.model, rate.judge, rate.params.given()), _view(rate), rate)
        for rate in rates
        if rate.attack not in TOGETHER
    ]
    homes: dict[str, str | None] = {}  # where rows stand that have no view of their own
    for key, view, rate in sorted(keyed, key=lambda one: (one[1] == views.WHOLE, one[1] is None)):
        if not ATTACKS[rate.attack].refuses:
            homes.setdefault(key, view)
    groups: dict[tuple[str, str | None], list[Rate]] = defaultdict(list)
    for key, view, rate in keyed:
        groups[key, view or homes.get(key)].append(rate)
    return list(groups.values())


def _view(rate: Rate) -> str | None:
    """The view of a row; the plain request of a sweep stands with the sweep."""
    return rate.params.judged if rate.attack == "prefill" else views.view(rate)


# --- names --------------------------------------------------------------------------------------


def _defended(one: Series) -> str:
    """The label, with the defence at inference time."""
    return defended(one.label, one.settings.get("defence"))


def _name(one: Series, siblings: Sequence[Series]) -> str:
    """The label, with what tells this series from others of the same model under the same defence."""
    label = _defended(one)
    if len(siblings) == 1:
        return label
    both = {(s.file, s.settings.get("data")) for s in siblings}
    by_file = len({file for file, _ in both}) == len({data for _, data in both}) == len(both)  # else by its hash
    judges = {(s.judge, s.settings.get(WORDS)) for s in (one, *siblings)}
    by_name = len({name for name, _ in judges}) == len(judges)  # the name of the judge tells its words
    mine, *others = (_told(s, by_name, {"data": s.file} if by_file else {}) for s in (one, *siblings))
    differing = {name: value for name, value in mine.items() if any(o.get(name) != value for o in others)}
    if differing.get("samples") == 1 and "temperature" in differing:  # said by the other
        del differing["samples"]
    words = [str(value) if name == "data" and by_file else _setting(name, value) for name, value in differing.items()]
    return f"{label} ({', '.join(filter(None, words)) or one.run.folder})"


def _told(one: Series, by_name: bool, data: Mapping[str, Any]) -> dict[str, Any]:
    """What can tell a series from others of its model."""
    settings = {name: value for name, value in one.settings.items() if not (by_name and name == WORDS)}
    return {"judge": one.judge, **settings, "seed": one.seed, **data}


def _setting(name: str, value: Any) -> str:
    if name == "samples":
        return f"{value} sample{'' if value == 1 else 's'}"
    if name == "temperature" and value == 0:
        return "greedy"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
