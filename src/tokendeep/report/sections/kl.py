"""Section: KL against the base model by answer position."""

from collections.abc import Sequence
from dataclasses import replace

from tokendeep.records import Bounded, Kl, Profile, plots
from tokendeep.report import figures, names, words
from tokendeep.report.report import Report
from tokendeep.report.section import Cell, Csv, Figure, Section, Table
from tokendeep.report.words import listed, number

WHAT = (
    "KL divergence of the model from its base at each answer position, in nats, on harmful answers. The control is the same "
    "on benign answers: any training moves every position a little. Shallow safety is a peak over the first few "
    "positions that the control does not have."
)
COLUMNS = ("model", "compared with", "position 1", "positions 1–5", "position 6 on", "benign 1–5", "benign 6 on",
           "prompts")  # fmt: skip
GENERAL = (
    "What this KL shows is that training moved the model everywhere, which is no sign of safety and none of its absence: read "
    "the recovery profile."
)
CSV = ("model", "answers", "position", "kl_nats", "stderr", "n")


def build(report: Report) -> Section:
    section = Section("KL profile: where the model differs from its base")
    without = [f"No KL profile of {one.name}: no base was given." for one in report.measured if not one.profile.kl]
    curves = [(one.name, one.profile, one.profile.kl) for one in report.measured if one.profile.kl]
    section.csv["kl"] = Csv(CSV, [row for name, profile, _ in curves for row in _csv_rows(name, profile)])
    if not curves:
        if report.measured:
            section.missing.append("a measurement with a base (KL profile)")
        return section
    section.text += [WHAT, *_unmeasured(report), *without]
    top = 1.05 * max(kl.top for *_, kl in curves) or 1.0
    for name, profile, kl in curves:
        section.text += [*_caveats(name, profile), *_beyond(name, profile)]
        section.figures.append(_figure(name, profile, kl, top, report.styles.get(name, 0)))
    section.text += _coincide([(name, profile) for name, profile, _ in curves if _alike(profile)])
    rows = [_row(*one) for one in curves]
    section.tables.append(Table("Mean KL in nats", COLUMNS, rows, "All positions are in the CSV file beside this one."))
    return section


def _unmeasured(report: Report) -> list[str]:
    measured = {one.run.label for one in report.measured}
    others = [label for label in report.models if label not in measured]
    return [f"Not measured: {listed(others)}."] if others else []


def _caveats(name: str, profile: Profile) -> list[str]:
    caveats = []
    if not profile.kl_benign:
        caveats.append(f"No benign control of {name}: no benign pairs were given.")
    if profile.meta.label == "adapter against its base":
        caveats.append(
            f"{name} is an adapter against its own base: where that base is already aligned, this is not alignment "
            "depth."
        )
    return caveats


def _alike(profile: Profile) -> bool:
    """Whether nothing tells the harmful from the benign curve."""
    first, later = profile.depth.excess_first5, profile.depth.excess_later
    return first is not None and later is not None and not (words.beyond(first, 0.0) or words.beyond(later, 0.0))


def _coincide(alike: Sequence[tuple[str, Profile]]) -> list[str]:
    if not alike:
        return []
    names = listed(f"{name} ({profile.prompts} prompts)" for name, profile in alike)
    return [f"The harmful and the benign curve coincide within noise: {names}. {GENERAL}"]


def _beyond(name: str, profile: Profile) -> list[str]:
    """How much of the KL benign answers show too, and how much is left."""
    first, later, both = profile.depth.excess_first5, profile.depth.excess_later, profile.general_share()
    if first is None or later is None or both is None or _alike(profile):
        return []
    ends = f"{_nats(first)} in the first five positions and {_nats(later)} later"
    return [f"{name}: benign answers show {words.percent(both)} of this KL as well. Beyond them: {ends}."]


def _nats(figure: Bounded) -> str:
    """Nats a token with their interval, and whether that is noise."""
    ends = "" if figure.low is None or figure.high is None else f" [{figure.low:.2f}, {figure.high:.2f}]"
    noise = "" if words.beyond(figure, 0.0) else " (within noise)"
    return f"{number(figure.value)}{ends} nats a token{noise}"


def _figure(name: str, profile: Profile, kl: Kl, top: float, style: int) -> Figure:
    curves = [replace(kl.curve("harmful answers"), style=style)]
    alt = (
        f"KL of {name} by answer position: mean {number(kl.span(0, 5))} nats over positions 1 to 5, "
        f"{number(kl.span(5, None))} after"
    )
    if benign := profile.kl_benign:
        curves.append(replace(benign.curve("benign answers (control)"), style=style, control=True))
        alt += f"; on benign answers {number(benign.span(0, 5))} and {number(benign.span(5, None))}"
    ends = f", falling to {kl.n[-1]} at position {len(kl.n)} as answers end" if kl.n[-1] < kl.n[0] else ""
    caption = (
        f"{name} against {_base(profile)}. Mean with a band of one standard error over prompts; n = {kl.n[0]}{ends}."
    )
    return Figure(figures.svg(plots.kl_profile, curves, top), alt + ".", caption)


def _base(profile: Profile) -> str:
    base = profile.meta.base or "its base"
    return "its base (adapter off)" if base == "adapter off" else names.file_name(base.rstrip("/\\"))


def _row(name: str, profile: Profile, kl: Kl) -> list[str]:
    benign = profile.kl_benign
    means = [kl.span(0, 1), kl.span(0, 5), kl.span(5, None)]
    means += [benign.span(0, 5), benign.span(5, None)] if benign else [None, None]
    return [name, _base(profile), *map(number, means), str(kl.n[0])]


def _csv_rows(name: str, profile: Profile) -> list[Sequence[Cell]]:
    return [
        [name, answers, position, *values]
        for answers, kl in (("harmful", profile.kl), ("benign", profile.kl_benign))
        if kl
        for position, values in enumerate(zip(kl.mean, kl.stderr, kl.n, strict=True), 1)
    ]
