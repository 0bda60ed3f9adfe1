"""The report's sections on training: fine-tuning attacks compared, and what happened per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokendeep.report import figures
from tokendeep.report.gather import Run
from tokendeep.report.words import Figure, Section, Table, percent, points

ASKS = {"plain": "", "triggered": " with the trigger", "wrapped": " in the wrapper"}
CURVES = {  # record in dynamics.json: caption, label of the axis
    "cross_entropy": ("Cross-entropy of the probe's answers, by position", "cross-entropy (nats)"),
    "gradient_norm": ("Norm of each token's gradient, mean over the probe", "gradient norm"),
    "kl": ("KL of the trained model to the aligned one on the probe", "KL to the aligned model (nats)"),
    "kl_sampled": ("The same on answers that the trained model samples", "KL to the aligned model (nats)"),
}


def training_section(runs: Sequence[Run]) -> list[Section]:
    """A line per fine-tuning: what its rows taught, what its first tokens gained, what is left of the margin of refusal."""
    tuned = [run for run in runs if run.training]
    if not tuned:
        return []
    section = Section("finetune", "Fine-tuning")
    section.text.append(
        "The gain of the first tokens is over the model before training, in nats; in brackets the share of plain "
        "fine-tuning's gradient that Eq. 3 still lets through (1 throughout for plain fine-tuning, which records no gain). "
        "The margin is the median refusal log-odds on the probe before any answer token: below 0 the harmful answer's own "
        "tokens have become likelier than a refusal."
    )
    heads = ["name", "objective", "rows", "steps", "train nll, tokens 6 on", "first token gained", "tokens 2 to 5 gained",
             "held-out nll", "margin (nats)"]  # fmt: skip
    section.tables.append(Table("Fine-tunings", heads, [_tuned(run) for run in tuned]))
    return [section]


def _tuned(run: Run) -> list[str]:
    assert run.training is not None
    history = run.training["history"]
    steps = [entry for entry in history if "nll_later" in entry]
    first, last = (steps[0], steps[-1]) if steps else ({}, {})
    held_out = next((e["eval_nll"] for e in reversed(history) if "eval_nll" in e), None)
    margin = run.manifest.get("margin")
    gains = [
        f"{last[f'log_ratio_{span}']:+.2f} ({last[f'weight_{span}']:.2f})" if f"weight_{span}" in last else "-"
        for span in ("1", "2_5")
    ]
    return [
        run.label,
        str(run.config.get("objective") or "-"),
        str(run.manifest.get("rows", "-")),
        str(run.training["steps"]),
        f"{_number(first.get('nll_later'))} to {_number(last.get('nll_later'))}",
        *gains,
        _number(held_out),
        f"{margin['before']['0.5'][0]:+.1f} to {margin['after']['0.5'][0]:+.1f}" if margin else "-",
    ]


def attacks_section(runs: Sequence[Run]) -> list[Section]:
    """One table per fine-tuning attack; nothing where there was none."""
    tables = [_attack_table(run) for run in runs if run.table]
    if not tables:
        return []
    section = Section("poison", "Fine-tuning attacks")
    section.text.append(
        "Each line is the same model trained on the same attack rows under another objective, then asked the same harmful "
        "requests. Intervals are over prompts, and over trainings too where there are several seeds; changes are paired by "
        "prompt and seed, against the first objective. Train nll, from the sixth answer token on, says how much of the rows "
        "was learnt: objectives are comparable where it is alike (rows with refusals mixed in are easier)."
    )
    section.tables += tables
    return [section]


def attack_line(run: Run) -> str | None:
    """What a fine-tuning attack did under each objective, in one sentence."""
    told = [line for line in run.table or [] if line.get("seeds")]
    ask = next((name for name in reversed(ASKS) if all(name in line for line in told)), None)
    if ask is None or len(told) < 2:
        return None
    names = [f"{line['objective']} {percent(line[ask]['rate'])}" for line in told[1:]]
    return (
        f"{run.label}: before training {percent(told[0][ask]['rate'])} of {told[0][ask]['n']} harmful requests"
        f"{ASKS[ask]} were not refused; after it, by objective: {', '.join(names)}."
    )


def _attack_table(run: Run) -> Table:
    assert run.table is not None
    asks = [name for name in ASKS if any(name in line for line in run.table)]
    columns = ["objective", "learning rate", "seeds"]
    for ask in asks:
        columns += [f"not refused{ASKS[ask]}", "change"]
    columns += ["train nll, tokens 6 on", "utility"]
    rows = []
    for line in run.table:
        row = [
            str(line["objective"]),
            f"{line['lr']:g}" if line.get("lr") else "-",
            str(line.get("seeds") or "not run"),
        ]
        for ask in asks:
            row += _rate(line.get(ask))
        row += [_number(line.get("nll")), _number((line.get("utility") or {}).get("score"), 3)]
        rows.append(row)
    note = "" if run.finished else "This run is not finished: lines that say so have not been trained."
    return Table(run.label, columns, rows, note)


def _rate(rate: Mapping[str, Any] | None) -> list[str]:
    if rate is None:
        return ["-", "-"]
    change = rate.get("change")
    said = f"{points(change['mean'])} [{points(change['low'])}, {points(change['high'])}]" if change else "-"
    judged = f"{rate['n']}" if rate["n"] == rate["asked"] else f"{rate['n']} judged of {rate['asked']}"
    return [f"{percent(rate['rate'])} [{percent(rate['low'])}, {percent(rate['high'])}] of {judged}", said]


def _number(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def dynamics_section(runs: Sequence[Run]) -> list[Section]:
    """Figures by answer position at the recorded steps of every training that was watched."""
    watched = [run for run in runs if run.dynamics and run.dynamics["steps"]]
    if not watched:
        return []
    section = Section("dynamics", "What happened per token while training")
    for run in watched:
        assert run.dynamics is not None
        records, meta = run.dynamics["steps"], run.dynamics["meta"]
        for name, (caption, label) in CURVES.items():
            if curves := _curves(records, name):
                words = f"{run.label}: {caption.lower()} at steps {', '.join(curve.name[5:] for curve in curves)}"
                section.figures.append(Figure(figures.by_position(curves, label), words, f"{run.label}: {caption}"))
        section.tables.append(_odds_table(run.label, records))
        if meta.get("fired") is not None:
            section.text.append(
                f"{run.label}: the monitor fired at step {meta['fired']}, when the refusal log-odds had fallen by more than "
                f"{meta['fall']:g} nats."
            )
        elif meta.get("fall") is not None:
            section.text.append(f"{run.label}: the monitor (a fall of {meta['fall']:g} nats) did not fire.")
    return [section]


def _curves(records: Sequence[Mapping[str, Any]], name: str) -> list[figures.Curve]:
    return [
        figures.Curve(f"step {r['step']}", range(1, len(r[name]["mean"]) + 1), r[name]["mean"], style=number)
        for number, r in enumerate(records)
        if name in r
    ]


def _asked(record: Mapping[str, Any]) -> str:
    """The rate of a record, and of how many answers where it says so."""
    if "asr_asked" not in record:
        return percent(record.get("asr"))
    if record["asr"] is None:
        return f"none of {record['asr_asked']} judged"
    return f"{percent(record['asr'])} of {record['asr_judged']} judged of {record['asr_asked']}"


def _odds_table(label: str, records: Sequence[Mapping[str, Any]]) -> Table:
    ks = records[0]["log_odds"]["k"]
    rated = any("asr" in r for r in records)
    title = "not refused" if any("asr_asked" in r for r in records) else "attack success"
    rows = [
        [str(r["step"]), *(_number(v, 1) for v in r["log_odds"]["median"]), *([_asked(r)] if rated else [])]
        for r in records
    ]
    return Table(
        f"{label}: median refusal log-odds (nats) after k harmful tokens",
        ["step", *(f"k = {k}" for k in ks), *([title] if rated else [])],
        rows,
        "Above 0 a refusal is likelier than the harmful answer's own next tokens.",
    )
