"""Section: what happened per token while training, at the recorded steps of every training that was watched."""

from tokendeep.records import CURVES, Dynamics, DynamicsStep, plots
from tokendeep.report import figures
from tokendeep.report.report import Report
from tokendeep.report.section import Figure, Section, Table
from tokendeep.report.words import number, percent

CAPTIONS = {
    "cross_entropy": "Cross-entropy of the probe's answers, by position",
    "gradient_norm": "Norm of each token's gradient, mean over the probe",
    "kl": "KL of the trained model to the aligned one on the probe",
    "kl_sampled": "The same on answers that the trained model samples",
}
ABOVE = "Above 0 a refusal is likelier than the harmful answer's own next tokens."


def build(report: Report) -> Section:
    """Nothing where no training was watched."""
    section = Section("What happened per token while training")
    for run in report.runs:
        if run.dynamics and run.dynamics.steps:
            section.figures += _figures(run.label, run.dynamics)
            section.tables.append(_table(run.label, run.dynamics))
            section.text += _monitor(run.label, run.dynamics)
    return section


def _figures(label: str, dynamics: Dynamics) -> list[Figure]:
    drawn = []
    for name, caption in CAPTIONS.items():
        if curves := dynamics.curves(name):
            steps = ", ".join(curve.name.removeprefix("step ") for curve in curves)
            alt = f"{label}: {caption.lower()} at steps {steps}"
            drawn.append(Figure(figures.svg(plots.by_position, curves, CURVES[name]), alt, f"{label}: {caption}"))
    return drawn


def _monitor(label: str, dynamics: Dynamics) -> list[str]:
    meta = dynamics.meta
    if meta.fall is None:
        return []
    if meta.fired is None:
        return [f"{label}: the monitor (a fall of {meta.fall:g} nats) did not fire."]
    return [
        f"{label}: the monitor fired at step {meta.fired}, when the refusal log-odds had fallen by more than "
        f"{meta.fall:g} nats."
    ]


def _table(label: str, dynamics: Dynamics) -> Table:
    steps = dynamics.steps
    rated = any(one.rated for one in steps)
    title = "not refused" if any(one.asr_asked is not None for one in steps) else "attack success"
    columns = ["step", *(f"k = {k}" for k in steps[0].log_odds.k), *([title] if rated else [])]
    rows = [
        [str(one.step), *(number(v, 1) for v in one.log_odds.median), *([_asked(one)] if rated else [])]
        for one in steps
    ]
    return Table(f"{label}: median refusal log-odds (nats) after k harmful tokens", columns, rows, ABOVE)


def _asked(step: DynamicsStep) -> str:
    """The rate of a record, and of how many answers where it says so."""
    if step.asr_asked is None:
        return percent(step.asr)
    if step.asr is None:
        return f"none of {step.asr_asked} judged"
    return f"{percent(step.asr)} of {step.asr_judged} judged of {step.asr_asked}"
