"""Section: how often harmful requests are not refused, plainly and after prefilled tokens; whether safety is shallow."""

from collections.abc import Iterator, Sequence

from tokendeep import stats
from tokendeep.attacks import ATTACKS
from tokendeep.judges import JUDGES
from tokendeep.records import Rate, Share, plots
from tokendeep.records.plots import Curve
from tokendeep.report import defended, figures, trained, views
from tokendeep.report.report import Report
from tokendeep.report.section import Figure, Section, Table
from tokendeep.report.series import Condition, Series
from tokendeep.report.words import (
    REPEATED,
    WIDEST,
    bracket,
    common_shares,
    condition_name,
    did_of,
    headline_condition,
    listed,
    outcome_name,
    percent,
    rate_name,
    rate_of,
    several,
    unscored_of,
    verdict,
)

PREFIX_WORDS = (
    "The judge refusal sees a refusal prefix and what follows as one text, refusal-keywords what follows alone."
)
EVERY_K = "Prompts whose answer is long enough for every k of the run."


def build(report: Report) -> Section:
    harmful = report.harmful
    judges = list(dict.fromkeys(one.judge for one in harmful))
    what = rate_name(judges[0]) if len(judges) == 1 else "rate"
    section = Section(f"{what.capitalize()} against prefilled tokens")
    section.findings += [line for one in harmful if (line := _finding(one, harmful))]
    section.sizes += [rate.requests for one in harmful for rate in one.rows.values()]
    if not harmful:
        section.missing.append("an attack on harmful requests")
        return section
    section.text += [_judge_words(judges), *_duplicates(harmful), *trained.words(harmful)]
    swept = [one for one in harmful if one.ks()]
    for where, group in _by_data(swept):
        _add_sweep(section, group, what, where, report.styles)
    if not swept:
        section.text.append("No curve: prefill was not run.")
    section.tables += [*_other_tables(harmful, what), *defended.tables(harmful)]
    return section


# --- findings -----------------------------------------------------------------------------------


def _finding(one: Series, harmful: Sequence[Series]) -> str | None:
    plain, deep = one.plain(), headline_condition([one])
    if plain is None:
        return None
    if not one.rows[plain].n:
        return f"{one.name}: {_unjudged(one.rows[plain])} to harmful requests asked plainly could be judged."
    start, did = one.rows[plain], did_of(one.judge)
    if deep is None:
        return f"{one.name} {did} {_plainly(start, start)}{_untried(one, harmful)}."
    given = f"with {deep[1]} tokens of a harmful answer given"
    if not one.rows[deep].n:
        unjudged = f"{given}, {_unjudged(one.rows[deep])} could be judged"
        return f"{one.name} {did} {_plainly(start, start)}; {unjudged}."
    first, then, among = common_shares(start, one.rows[deep])
    return f"{one.name}{among} {did} {_plainly(start, first)} and {_of(then, given)}: {verdict(first, then)[1]}."


def _plainly(asked: Rate, rate: Share) -> str:
    """The rate of the plain request, over all prompts or those it shares with another one."""
    if asked.several:
        return f"in {_of(rate, 'answers to harmful requests asked plainly')}"
    return f"with {_of(rate, 'harmful requests asked plainly')}"


def _unjudged(rate: Rate) -> str:
    """That no answer has a verdict, and why."""
    why = listed(f"{n} {outcome_name(name)}" for name, n in rate.outcomes.items() if n) if rate.outcomes else ""
    return f"none of the {rate.unscored} answers{f' ({why})' if why else ''}"


def _untried(one: Series, harmful: Sequence[Series]) -> str:
    alike = [s for s in harmful if (s.label, s.judge, s.file) == (one.label, one.judge, one.file)]
    tried = {attack for s in alike for attack, _ in s.rows} - {"none"}  # names of attacks, or the words for one
    other = any(attack not in ATTACKS or not ATTACKS[attack].refuses for attack in tried)
    return "" if other else "; no prefilling was tried"


def _of(rate: Share, what: str) -> str:
    return (
        f"{rate.complied} of {rate.n} {what} ({percent(rate.rate)} {bracket(rate.low, rate.high)}{unscored_of(rate)})"
    )


# --- text ---------------------------------------------------------------------------------------


def _judge_words(judges: Sequence[str]) -> str:
    """What the rates of these judges measure: ours in the order of JUDGES, then the others."""
    others = [f"Rates under {judge} are that judge's own." for judge in judges if judge not in JUDGES]
    return " ".join([judge.about for name, judge in JUDGES.items() if name in judges] + others)


def _interval_words(series: Sequence[Series]) -> str:
    counted = views.counted(one.judge for one in series).capitalize()
    if several(series):
        return f"{counted} / judged answers = mean rate over samples {REPEATED}"
    return f"{counted} / judged = rate [95% Wilson interval]."


def _duplicates(harmful: Sequence[Series]) -> list[str]:
    texts = {s.prompt_id: s.instruction for one in harmful for group in (one.samples or {}).values() for s in group}
    clusters = len(set(stats.near_duplicates([texts[key] for key in sorted(texts)]))) if texts else 0
    if clusters == len(texts):
        return []
    return [
        f"The {len(texts)} prompts form {clusters} clusters of near-duplicates; intervals and tests take them as "
        "independent and are too narrow."
    ]


# --- sweeps -------------------------------------------------------------------------------------


def _by_data(swept: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    """Series by the prompts they are about; named by the file, and by the hash where that does not tell them apart,
    where there is more than one set of prompts."""
    groups: dict[str, list[Series]] = {}
    for one in swept:
        groups.setdefault(one.settings.get("data") or one.file, []).append(one)
    if len(groups) < 2:
        return [("", group) for group in groups.values()]
    files = [next((one.file for one in group if one.file), "") for group in groups.values()]
    names = [
        file if file and files.count(file) == 1 else f"{file} ({key})" if file and key else key or "data unknown"
        for file, key in zip(files, groups, strict=True)
    ]
    return list(zip(names, groups.values(), strict=True))


def _add_sweep(section: Section, swept: Sequence[Series], what: str, where: str, styles: dict[str, int]) -> None:
    """The figure and the tables of the series on one set of prompts."""
    ks = sorted({k for one in swept for k in one.ks()})
    title = f"{what.capitalize()} by k" + (f", {where}" if where else "")
    section.figures.append(_figure(swept, ks, what, title, styles))
    rows = [[str(k), *(rate_of(one.rows.get(("prefill", k))) for one in swept)] for k in ks]
    section.tables.append(_table(title, "k", swept, rows, _interval_words(swept)))
    fewer = [one for one in swept if _has_own_common(one.sweep())]
    section.text += _common_words(swept, fewer, where)
    if fewer:
        rows = [[str(k), *(rate_of(_common(one, k)) for one in fewer)] for k in ks]
        section.tables.append(_table(f"{title}, common prompts", "k", fewer, rows, EVERY_K))


def _figure(swept: Sequence[Series], ks: Sequence[int], what: str, title: str, styles: dict[str, int]) -> Figure:
    curves = [curve for one in swept for curve in _curves(one, styles.get(one.name, 0))]
    ends = [
        f"{one.name} {', '.join(f'{percent(rate.rate)} at k = {rate.params.k}' for rate in one.sweep())}"
        for one in swept
    ]
    caption = f"{title}: number of harmful answer tokens given in advance, with 95% intervals."
    if any(curve.faint for curve in curves):
        caption += " Common (dotted): only prompts whose answer is long enough for every k."
    return Figure(figures.svg(plots.shares, curves, ks, what), f"{title}: {'; '.join(ends)}.", caption)


def _curves(one: Series, style: int) -> Iterator[Curve]:
    rates = one.sweep()
    low, high = [rate.low for rate in rates], [rate.high for rate in rates]
    yield Curve(one.name, one.ks(), [rate.rate for rate in rates], low, high, style)
    if _has_own_common(rates):
        common = [rate.common.rate if rate.common else None for rate in rates]
        yield Curve(f"{one.name} (common)", one.ks(), common, style=style, faint=True)


def _has_own_common(rates: Sequence[Rate]) -> bool:
    """Whether the prompts common to all k are fewer than those of some k, so that their curve is another one."""
    return any(rate.common and rate.common.n != rate.n for rate in rates)


def _common(one: Series, k: int) -> Share | None:
    rate = one.rows.get(("prefill", k))
    return rate.common if rate else None


def _common_words(swept: Sequence[Series], fewer: Sequence[Series], where: str) -> list[str]:
    without = [one.name for one in swept if len(one.ks()) > 1 and not any(rate.common for rate in one.sweep())]
    if without:
        return [f"No curve on common prompts of {listed(dict.fromkeys(without))}: asr.json does not hold it."]
    if fewer:
        return []
    prompts = f"The same prompts{f' of {where}' if where else ''}"
    return [f"{prompts} were judged at every k: the curve on common prompts is no other."]


# --- tables -------------------------------------------------------------------------------------


def _table(title: str, what: str, series: Sequence[Series], rows: list[list[str]], note: str) -> Table:
    """`what` down and the series across; where these are many, the series down."""
    columns = [what, *(one.name for one in series)]
    if len(series) <= WIDEST:
        return Table(title, columns, rows, note)
    across, *down = map(list, zip(columns, *rows, strict=True))
    return Table(title, ["model", *(f"k = {name}" if what == "k" else name for name in across[1:])], down, note)


def _other_tables(harmful: Sequence[Series], what: str) -> list[Table]:
    """Attacks that are no prefill sweep, with the plain request for comparison."""
    seen = dict.fromkeys(c for one in harmful for c in one.rows if c[0] not in ("prefill", "none"))
    conditions: list[Condition] = [("none", None), *seen]
    conditions = [c for c in conditions if any(c in one.rows for one in harmful)]
    if not conditions:
        return []
    rows = [[condition_name(c), *(rate_of(one.rows.get(c)) for one in harmful)] for c in conditions]
    refusing = any(attack in ATTACKS and ATTACKS[attack].refuses for attack, _ in seen)
    how = "with a refusal prefix" if refusing else "of other attacks" if seen else "of the plain request"
    note = _interval_words(harmful) + (" " + PREFIX_WORDS if refusing else "")
    return [_table(f"{what.capitalize()} {how}", "attack", harmful, rows, note)]
