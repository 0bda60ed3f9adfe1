"""Section: what was run, and what did not finish or could not be read."""

from tokendeep.attacks import ATTACKS
from tokendeep.data import TERMS
from tokendeep.report import names
from tokendeep.report.load import Run
from tokendeep.report.report import Report
from tokendeep.report.section import Section, Table
from tokendeep.report.words import ROLE_NAMES, listed

COLUMNS = ("name", "verb", "attacks", "model", "data (hash)", "seed", "status", "when (UTC)")


def build(report: Report) -> Section:
    section = Section("What was run", tables=[Table("Runs", COLUMNS, [_row(run) for run in report.runs])])
    if unfinished := [run for run in report.runs if not run.finished and not run.cut]:
        section.text.append(
            f"{len(unfinished)} of {len(report.runs)} runs did not finish; their numbers are left out: "
            f"{listed(f'{run.label} ({run.verb})' for run in unfinished)}."
        )
    if cut := [run for run in report.runs if run.cut]:
        section.text.append(
            "Evaluation logs that did not come to their end: "
            f"{listed(f'{len(run.cut)} in {run.folder}' for run in cut)}; only the answers they hold are counted."
        )
    if report.foreign:
        section.text.append(
            f"Passed over, for no evaluation log in it is one of an attack: {listed(map(str, report.foreign))}."
        )
    if bare := [run for run in report.runs if not run.has_manifest]:
        section.text.append(f"No manifest: {listed(str(run.folder) for run in bare)}.")
    if sets := dict.fromkeys(name for run in report.runs for name in run.manifest.sets.values() if name in TERMS):
        section.text.append(f"Public data: {'; '.join(f'{name} ({TERMS[name]})' for name in sets)}.")
    return section


def verb(run: Run) -> str:
    """The verb, with what an attack was run on."""
    return f"{run.verb}: {ROLE_NAMES.get(run.role, run.role)}" if run.rates is not None else run.verb


def _row(run: Run) -> list[str]:
    manifest = run.manifest
    when = (manifest.finished or manifest.started or "-")[:16].replace("T", " ")
    seed = "-" if manifest.seed is None else str(manifest.seed)
    model = names.end(run.model) + (f" → {names.end(run.made)}" if run.made else "")
    return [run.label, verb(run), _attacks(run), model, run.data or "-", seed, _status(run), when]


def _status(run: Run) -> str:
    status = "UNFINISHED" if not run.finished else "finished" if run.has_manifest else "-"
    return status + (", ATTACK CHECKPOINT" if run.attack_checkpoint else "")


def _attacks(run: Run) -> str:
    """Which attacks were run, the plain request first."""
    tried = {rate.attack for rate in run.rates or ()}
    return ", ".join("plain" if name == "none" else name for name in ATTACKS if name in tried) or "-"
