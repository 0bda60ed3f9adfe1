"""Section: rates as the people would have them who labelled the answers of a calibration, beside the judge's own."""

from collections.abc import Iterator

from tokendeep.errors import InputError
from tokendeep.judges import agreement
from tokendeep.judges.agreement import Beyond, Corrected
from tokendeep.records import Calibration, Estimate, Rate
from tokendeep.report import views
from tokendeep.report.report import Report
from tokendeep.report.section import Cell, Csv, Section, Table
from tokendeep.report.series import Condition, Series
from tokendeep.report.words import bracket, condition_name, listed, percent, rate_of

WHAT = (
    "A judge's rates, corrected for how often it differs from people (Rogan and Gladen), where a calibration was given. The "
    "intervals hold the chance of both: which prompts were asked, and which answers were labelled. They do not hold what a "
    "calibration cannot know: whether the judge errs on these models as it does on the answers that were labelled. Answers "
    "that were not scored stay left out."
)
MEANS = {"harm": "harmful", "compliance": "complied"}
UNKNOWN = "The calibration does not say what its judge saw; it is taken for what the judge of these runs saw."
CLIPPED = "the plain formula gives a value beyond it"
COLUMNS = ("labels", "judge", "model", "attack", "raw", "raw_low", "raw_high", "corrected", "corrected_low",
           "corrected_high", "clipped")  # fmt: skip
SIDES: dict[Beyond, str] = {"below": "below the judge's false positives", "above": "above the judge's sensitivity"}
Row = tuple[Series, Condition, Rate, Corrected | Beyond | None]  # None: the judge saw other answers


def build(report: Report) -> Section:
    """A table for each calibration; nothing where none was given."""
    section = Section("Rates corrected by people's labels")
    lines: list[list[Cell]] = []
    for one in report.calibrations:
        rows = list(_rows(one, report))
        section.tables.append(_table(one, rows))
        lines += [_line(one, row) for row in rows]
    if lines:
        section.text.append(WHAT)
        section.csv["corrected"] = Csv(COLUMNS, lines)
    return section


def check(report: Report) -> None:
    """Refuse a calibration that corrects none of these runs.

    Raises:
        InputError: it is of another judge, or of one that goes by other words or saw other answers, or it tells nothing.
    """
    for one in report.calibrations:
        what = f"The calibration of {one.judge} on {one.labels}"
        judges = listed(dict.fromkeys(series.judge for series in report.harmful)) if report.harmful else "nobody"
        if one.judge not in {series.judge for series in report.harmful}:
            raise InputError(
                f"{what} corrects no rate here, for these runs were judged by {judges}; calibrate that judge."
            )
        mine = [series for series in report.harmful if series.judge == one.judge]
        for series in mine:
            _check_words(one, series, what)
        views = [rate.params.judged for series in mine for rate in series.rows.values() if not _alike(one, rate)]
        if len(views) == sum(len(series.rows) for series in mine):
            raise InputError(
                f"{what} corrects no rate here: its judge saw {one.judged}, and in these runs "
                f"{listed(map(str, dict.fromkeys(views)))}; judge the runs, or calibrate, with the same --judged."
            )
        if not agreement.tells(one):
            raise InputError(
                f"{what} corrects nothing: sensitivity + specificity is not surely above 1, so that its verdicts tell nothing of "
                f"{one.label}; label more answers, or take another judge."
            )


def _check_words(one: Calibration, series: Series, what: str) -> None:
    """Raises InputError where the judge went by other words, or asked another grader."""
    mine = {"judge_template": one.judge_template, "grader": one.grader}
    for name, word in (("judge_template", "words with the hash"), ("grader", "the grader")):
        theirs = series.settings.get(name)
        if theirs != mine[name]:
            raise InputError(
                f"{what} is of {word} {mine[name]}, but {series.run.folder} was judged by {theirs or 'what is not known'}; "
                "judge or calibrate again."
            )


def _alike(one: Calibration, rate: Rate) -> bool:
    """Whether the judge saw of these answers what it saw of the labelled ones, as far as both say it.

    Where nothing was given in advance, `continuation` and `full` are one.
    """
    mine, theirs = one.judged, rate.params.judged
    return mine == theirs or None in (mine, theirs) or (not views.given(rate) and views.WHOLE not in (mine, theirs))


def _rows(one: Calibration, report: Report) -> Iterator[Row]:
    for series in report.harmful:
        for condition, rate in series.rows.items() if series.judge == one.judge else ():
            if rate.n and rate.params.any_of is None:
                seen = Estimate(value=rate.rate, low=rate.low, high=rate.high)
                yield series, condition, rate, agreement.corrected(seen, one) if _alike(one, rate) else None


def _table(one: Calibration, rows: list[Row]) -> Table:
    shares = (("sensitivity", one.sensitivity), ("specificity", one.specificity))
    quality = ", ".join(f"{name} {percent(share.value)} {bracket(share.low, share.high)}" for name, share in shares)
    note = f"Judge {one.judge} on {one.n} labelled answers to {one.requests} requests: {quality}, {one.undecided} undecided."
    return Table(
        f"Share {MEANS[one.label]}, by {one.labels}",
        ["model", "attack", f"raw, by {one.judge}", f"corrected, {MEANS[one.label]}"],
        [
            [series.name, condition_name(condition), rate_of(rate), _words(one, rate, made)]
            for series, condition, rate, made in rows
        ],
        " ".join([note, *([UNKNOWN] if one.judged is None else []), *one.notes]),
    )


def _words(one: Calibration, rate: Rate, made: Corrected | Beyond | None) -> str:
    if made is None:
        return f"none: here the judge saw {rate.params.judged}, in the calibration {one.judged}"
    if not isinstance(made, Corrected):
        return f"none: the raw rate lies {SIDES[made]}, by more than chance: these answers are not like those labelled"
    clipped = f"; {CLIPPED}" if made.clipped else ""
    return f"{percent(made.value)} {bracket(made.low, made.high)}{clipped}"


def _line(one: Calibration, row: Row) -> list[Cell]:
    series, condition, rate, made = row
    corrected: list[Cell] = [None] * 4
    if isinstance(made, Corrected):
        corrected = [made.value, made.low, made.high, int(made.clipped)]
    return [one.labels, one.judge, series.name, condition_name(condition), rate.rate, rate.low, rate.high, *corrected]
