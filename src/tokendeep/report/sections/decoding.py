"""Section: decoding parameters, each setting by itself and any of many."""

from collections.abc import Sequence

from tokendeep.attacks.decoding import GREEDY_NAME, KNOBS
from tokendeep.records import Rate
from tokendeep.report import attacked, views
from tokendeep.report.load import Run
from tokendeep.report.report import Report
from tokendeep.report.section import Section, Table
from tokendeep.report.words import did_of, listed, percent, rate_of

WHAT = (
    "The same requests, sampled with many settings. The rate of one setting and the share of requests that any of "
    "several settings broke are different numbers: the second is the attack's, and grows with the settings tried. "
    "Best single setting: the highest of many rates on the same requests, so it flatters the attacker."
)
COLUMNS = ("name", "chat template", "settings", GREEDY_NAME, "best single setting", *(f"any of {k}" for k in KNOBS),
           "any of all")  # fmt: skip


def build(report: Report) -> Section:
    """A line per model and way of asking; nothing where decoding was not attacked."""
    section = Section("Decoding parameters", findings=_findings(report))
    batches = [(run, rates) for run in report.runs for rates in run.batches.get("decoding", ())]
    if batches:
        section.text.append(WHAT)
        every = [rates[0] for _, rates in batches]
        rows = [_row(run, rates, views.told(rates[0], every)) for run, rates in batches]
        event = views.counted(one.judge for one in every).capitalize()
        section.tables.append(Table(f"{event}, by decoding setting", COLUMNS, rows))
    return section


def _row(run: Run, rates: Sequence[Rate], by: str) -> list[str]:
    each = attacked.single(rates)
    greedy, best = each.get(GREEDY_NAME), attacked.best_of(list(each.values()))
    knobs = [attacked.any_of(rates, knob) for knob in (*KNOBS, "all")]
    return [
        attacked.named(run, rates, template=False) + by, run.template or "the model's own", str(len(each)),
        rate_of(greedy) if greedy else "-", f"{rate_of(best)} ({best.params.setting})" if best else "-",
        *(rate_of(rate) if rate else "-" for rate in knobs),
    ]  # fmt: skip


def _findings(report: Report) -> list[str]:
    """What sampling did to each model, in one sentence a model."""
    parts: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    chosen = [run for run in report.runs if run.role == "harmful" and run.finished]
    every = [rates[0] for run in chosen for rates in run.batches.get("decoding", ())]
    for run in chosen:
        for rates in run.batches.get("decoding", ()):
            settings = tuple(sorted(attacked.single(rates)))
            if words := _finding(run, rates):
                label = attacked.label(run, rates[0]) + views.told(rates[0], every)
                parts.setdefault((label, rates[0].judge, settings), []).append(words)
    return [
        f"{label}: with some setting of {len(settings)} tried it {did_of(judge)} with {listed(words)}."
        for (label, judge, settings), words in parts.items()
    ]


def _finding(run: Run, rates: Sequence[Rate]) -> str | None:
    whole, greedy = attacked.any_of(rates, "all"), attacked.single(rates).get(GREEDY_NAME)
    if whole is None or not whole.n:
        return None
    alone = f" (greedy alone {percent(greedy.rate)})" if greedy and greedy.n else ""
    return f"{percent(whole.rate)} of {whole.n} requests{attacked.where(run)}{alone}"
