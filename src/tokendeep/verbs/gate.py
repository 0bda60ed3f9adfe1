"""VERB gate: whether a change of a model stays within limits, as an exit code for continuous integration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal
from xml.etree import ElementTree

from tokendeep import plain, runs, stats
from tokendeep.errors import InputError, did_you_mean, flag
from tokendeep.pairing.conditions import FIELDS, Alone
from tokendeep.pairing.difference import Difference
from tokendeep.pairing.sides import Tested
from tokendeep.records import Check, Compared, Gated
from tokendeep.report.words import MANY
from tokendeep.runs.files import user_path
from tokendeep.verbs import compare
from tokendeep.verbs.common import Names, check_place, heading, output
from tokendeep.verbs.compare import ComparePlan

what = heading("What to let through")
JUNIT, SUMMARY = "gate.xml", "gate.md"
CONDITIONS = "conditions"  # in --allow: what one side lacks
FILES = (Compared.FILE, Gated.FILE, JUNIT, SUMMARY)
LIMITS = {  # option: the requests it is about, and what to run where there are none
    "max_asr_rise": (("harmful",), "runs of attack on harmful requests"),
    "max_refusal_rise": (("twins", "unseen"), "runs of attack on harmless requests (--role twins)"),
    "max_utility_drop": (("task",), "runs of measure, or trainings of poison, with --utility-data"),
}


@dataclass(frozen=True)
class GateOptions:
    """Exit with 0 when a change of a model is within every limit, 1 when it is beyond one or cannot be told, 2 on bad input."""

    before: Annotated[str, what(help="Runs of attack of the model as it was; as compare takes them.")]
    after: Annotated[str, what(help="The same of the model as it is to be.")]
    max_asr_rise: Annotated[
        float | None,
        what(help="Largest rise of the rate on harmful requests, 0.02 is two points; each attack must be within."),
    ] = field(default=None, kw_only=True)
    max_refusal_rise: Annotated[
        float | None, what(help="Largest rise of the share of harmless requests that are refused or broken off.")
    ] = field(default=None, kw_only=True)
    max_utility_drop: Annotated[
        float | None,
        what(help="Largest drop of a task's score, where runs of measure or trainings of poison hold one."),
    ] = field(default=None, kw_only=True)
    undecided: Annotated[
        Literal["fail", "pass"],
        what(
            help="What to do where prompts are too few to tell, or one side lacks an attack: fail is exit code 1, pass is 0."
        ),
    ] = field(default="fail", kw_only=True)
    allow: Annotated[
        Names,
        what(
            help=f"What may differ between the runs, as compare takes it; {CONDITIONS} leaves out what stands on one side only."
        ),
    ] = field(default_factory=list, kw_only=True)
    parity: Annotated[str | None, what(help="parity.json of the two engines that answered, as compare takes it.")] = (
        field(default=None, kw_only=True)
    )
    out: Annotated[
        str | None, output(help=f"Folder for {', '.join(FILES)}, in place of earlier ones; left out, none are written.")
    ] = field(default=None, kw_only=True)


@dataclass(frozen=True)
class GatePlan:
    """The comparison, and what of it is within its limit."""

    options: GateOptions
    compared: ComparePlan
    checks: Sequence[Check]
    skipped: Sequence[Alone] = ()

    def lines(self) -> list[str]:
        limits = [f"{flag(name)} {limit}" for name, limit in _limits(self.options).items()]
        return [*self.compared.lines(), f"limits: {', '.join(limits)}; undecided: {self.options.undecided}"]

    def record(self) -> Gated:
        """What is written."""
        found = {one.verdict for one in self.checks}
        verdict = next((one for one in ("fail", "undecided") if one in found), "pass")
        passes = verdict == "pass" or (verdict == "undecided" and self.options.undecided == "pass")
        return Gated(verdict=verdict, passes=passes, checks=list(self.checks), skipped=list(map(str, self.skipped)))


def plan(options: GateOptions) -> GatePlan:
    """Read both sides and hold every condition to its limit; writes nothing.

    Raises:
        InputError: as compare's; also no limit, one that is no share, or one on what the runs do not hold.
    """
    limits = _limits(options)
    if not limits:
        raise InputError(f"gate needs a limit; give one or more of {', '.join(map(flag, LIMITS))}, such as 0.02.")
    for name, limit in limits.items():
        if not 0 <= limit < 1:
            raise InputError(f"{flag(name)} is {limit}, but must be a share from 0 to below 1; 0.02 is two points.")
    for name in options.allow:
        if name not in (*FIELDS, CONDITIONS):
            raise InputError(f"--allow does not know {name!r}; {did_you_mean(name, (*FIELDS, CONDITIONS))}.")
    check_place(options.out, FILES)
    allow = [name for name in options.allow if name != CONDITIONS]
    plan = compare.plan(
        compare.CompareOptions(options.before, options.after, allow=allow, parity=options.parity, out=options.out)
    )
    checks = [one for name, limit in limits.items() for one in _checks(name, limit, plan)]
    missing = [(name, limit, one) for name, limit in limits.items() for one in _missing(name, plan)]
    if CONDITIONS in options.allow:
        return GatePlan(options, plan, checks, [one for *_, one in missing])
    return GatePlan(options, plan, [*checks, *(_unseen(*one) for one in missing)])


def run(plan: GatePlan, *, show: bool = True) -> int:
    """Write the files where a folder is named, print the summary, and return the exit code."""
    record = plan.record()
    if plan.options.out:
        out = user_path(plan.options.out)
        runs.write_json(out / Compared.FILE, plan.compared.record().dump())
        runs.write_json(out / Gated.FILE, record.dump())
        runs.write_text(out / JUNIT, junit(record))
        runs.write_text(out / SUMMARY, markdown(record, plan.compared.record(), _beside(plan)))
    if show:
        said = [f"{one.verdict}: {sentence(one)}" for one in record.checks]
        said += [f"not compared: {one}" for one in _beside(plan)]
        print(plain.told([*said, *(f"not held to a limit, as allowed: {name}" for name in record.skipped)]))
        print(f"gate: {record.verdict}" + (", which passes" if record.passes and record.verdict != "pass" else ""))
    return 0 if record.passes else 1


def _limits(options: GateOptions) -> dict[str, float]:
    return {name: value for name in LIMITS if (value := getattr(options, name)) is not None}


def _checks(name: str, limit: float, plan: ComparePlan) -> Iterator[Check]:
    """The checks of one limit. Raises InputError where no condition is about it."""
    requests, remedy = LIMITS[name]
    chosen = [one for one in plan.tests if one.row.requests in requests]
    if not chosen:
        there = "; ".join(map(str, _missing(name, plan)))
        raise InputError(
            f"{flag(name)} is given, but the two sides have no {remedy} in common{f' ({there})' if there else ''}; add them, or "
            "leave it out."
        )
    for one in chosen:
        yield _check(_short(name), limit, one)


def _missing(name: str, plan: ComparePlan) -> list[Alone]:
    """What a limit is about and could not be compared."""
    return [one for one in plan.alone if one.requests in LIMITS[name][0] and not one.heard]


def _beside(plan: GatePlan) -> list[Alone]:
    """What a limit is about and was not compared, for the same answers were, under another judge or other words of it."""
    requests = {one for name in _limits(plan.options) for one in LIMITS[name][0]}
    return [one for one in plan.compared.alone if one.heard and one.requests in requests]


def _unseen(name: str, limit: float, one: Alone) -> Check:
    return Check(
        limit=_short(name), condition=one.name, at_most=limit, change=None, low=None, high=None, n=0, left_out=0,
        verdict="undecided", reason=one.why,
    )  # fmt: skip


def _short(name: str) -> str:
    return name.removeprefix("max_").replace("_", "-")


def _check(name: str, limit: float, one: Tested) -> Check:
    change, row = one.difference, one.row
    if name.endswith("drop"):
        change = _mirrored(change)
    low, high = change.interval(2 * stats.LEVEL - 1)
    verdict = change.verdict(limit)
    check = Check(
        limit=name, condition=row.name, at_most=limit, change=change.mean, low=low, high=high, n=row.n, left_out=row.left_out,
        unscored_before=row.unscored_before, unscored_after=row.unscored_after, verdict=verdict,
        needed=change.deciding(limit) if verdict == "undecided" else None,
    )  # fmt: skip
    return check.model_copy(update={"verdict": "undecided"}) if verdict == "pass" and _too_many(check) else check


def _too_many(one: Check) -> str:
    """Why what could not be judged leaves a check undecided, in words; empty where it does not."""
    before, after = one.unscored_before, one.unscored_after
    told = f"{100 * before:.1f} % of the answers before and {100 * after:.1f} % after are unscored"
    if max(before, after, one.left_out / (one.n + one.left_out)) >= MANY:
        return f"{told}, too many to tell"
    return f"{told}, a rise beyond the limit by itself" if after - before > one.at_most + 1e-9 else ""


def _mirrored(change: Difference) -> Difference:
    return replace(change, lost=change.gained, gained=change.lost)


# --- words --------------------------------------------------------------------------------------


def sentence(one: Check) -> str:
    """A check in words: no text of prompts or answers."""
    if one.change is None or one.low is None or one.high is None:
        return f"{one.condition}, {one.limit} not known: {one.reason}; ask both sides the same, or --allow {CONDITIONS}"
    said = (
        f"{one.condition}, {one.limit} {100 * one.change:+.1f} points, one-sided 95 % bounds {100 * one.low:+.1f} and "
        f"{100 * one.high:+.1f}, at most {100 * one.at_most:g} (n = {one.n})"
    )
    if one.left_out:
        said += f"; {one.left_out} of {one.n + one.left_out} prompts left out, unscored on either side"
    if one.verdict == "undecided" and (why := _too_many(one)):
        said += f"; {why}"
    elif one.verdict == "undecided" and one.needed is None:
        said += (
            "; a limit of 0 passes an improvement alone" if not one.at_most else "; more prompts alone would not decide"
        )
    if one.needed:
        said += f"; about {one.needed} scored prompts would decide"
    return said


def junit(record: Gated) -> str:
    """The checks as a JUnit file; what does not let through is a failure."""
    bad = [one for one in record.checks if not (record.passes or one.verdict == "pass")]
    suite = ElementTree.Element(
        "testsuite",
        name="tokendeep gate",
        tests=str(len(record.checks) + len(record.skipped)),
        failures=str(len(bad)),
        errors="0",
        skipped=str(len(record.skipped)),
    )
    for one in record.checks:
        name, said = plain.one_line(one.condition), plain.one_line(sentence(one))
        case = ElementTree.SubElement(suite, "testcase", classname=f"tokendeep.gate.{one.limit}", name=name)
        if one in bad:
            ElementTree.SubElement(case, "failure", type=one.verdict, message=said)
        else:
            ElementTree.SubElement(case, "system-out").text = f"{one.verdict}: {said}"
    for name in record.skipped:
        case = ElementTree.SubElement(suite, "testcase", classname="tokendeep.gate", name=plain.one_line(name))
        ElementTree.SubElement(case, "skipped", message=f"left out by --allow {CONDITIONS}")
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode") + "\n"


def markdown(record: Gated, compared: Compared, beside: Sequence[Alone] = ()) -> str:
    """The summary that a pull request shows; `beside` are conditions whose answers are compared in another one."""
    lets = "" if record.passes == (record.verdict == "pass") else " (passes)"
    lines = [
        f"# tokendeep gate: {record.verdict}{lets}",
        "",
        "| verdict | limit | condition | points | bounds | at most | n |",
    ]
    lines += ["|---|---|---|---|---|---|---|", *map(_row, record.checks), ""]
    said = [sentence(one) for one in record.checks if one.verdict == "undecided"]
    said += [note for row in compared.rows for note in compare.notes(row)]
    said += compare.unknown(compared)
    said += [f"Parity of the engines: {compared.parity}."] if compared.parity else []
    said += [f"Not held to a limit, as allowed: {name}." for name in record.skipped]
    said += [f"Not compared: {one}." for one in beside]
    said += [f"Allowed to differ: {name} ({one}; {two})." for name, (one, two) in compared.allowed.items()]
    lines += [f"- {plain.markdown(line)}" for line in said]
    return "\n".join(lines) + "\n"


def _row(one: Check) -> str:
    seen = ["-", "-"]
    if one.change is not None and one.low is not None and one.high is not None:
        seen = [f"{100 * one.change:+.1f}", f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"]
    cells = [one.verdict, one.limit, one.condition, *seen, f"{100 * one.at_most:g}", str(one.n)]
    return f"| {' | '.join(map(plain.markdown, cells))} |"
