"""The table of a fine-tuning attack: rates, changes and what else was measured, per objective and learning rate.

With one training per line, intervals are over prompts (Wilson; McNemar's for changes). With several seeds they also are
over trainings: seeds and prompts are resampled together, and an interval is never narrower than the one over prompts.
Few seeds tell little about the spread of trainings, so the rate of each seed stands beside it. Knows nothing of training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokendeep import stats
from tokendeep.evals import logs
from tokendeep.judges import SCORED

Answers = dict[
    str, dict[str, bool | None]
]  # training -> prompt -> whether it was not refused; None: could not be judged
RESAMPLES = 4000


def answers(folders: Mapping[str, Path], ask: str) -> Answers:
    """What every training answered to one way of asking."""
    found: Answers = {}
    for name, folder in folders.items():
        samples = logs.read_samples(folder / f"attack-{ask}")
        found[name] = {s.prompt_id: s.outcome == "complied" if s.outcome in SCORED else None for s in samples}
    return found


def rate(given: Answers) -> dict[str, Any]:
    """The share not refused over all trainings, with interval, counts, and the bounds if the unscored were known."""
    known = [value for one in given.values() for value in one.values() if value is not None]
    asked = sum(len(one) for one in given.values())
    line: dict[str, Any] = {"n": len(known), "asked": asked, "unscored": asked - len(known)}
    line["by_seed"] = [_share(list(one.values())) for one in given.values()]
    if not known:
        return {**line, "rate": None, "low": 0.0, "high": 1.0}
    prompts = list(dict.fromkeys(p for one in given.values() for p in one))
    scored = [[one[p] for one in given.values() if one.get(p) is not None] for p in prompts]
    low, high = stats.wilson_repeated([sum(map(bool, s)) for s in scored], [len(s) for s in scored])
    if len(given) > 1:
        ends = _over_seeds(_table(given, prompts))
        low, high = min(low, ends[0]), max(high, ends[1])
    best, worst = sum(known) / asked, (sum(known) + asked - len(known)) / asked
    return {**line, "rate": sum(known) / len(known), "low": low, "high": high, "best": best, "worst": worst}


def change(before: Answers, after: Answers) -> dict[str, Any] | None:
    """How much more is not refused after than before, on the same prompts and seeds; None where they share none."""
    pairs = [(before[seed], after[seed]) for seed in before if seed in after]
    common = [(one[p], two[p]) for one, two in pairs for p in one if one[p] is not None and two.get(p) is not None]
    if not common:
        return None
    test = stats.mcnemar([bool(x) for x, _ in common], [bool(y) for _, y in common])
    low, high = test.low, test.high
    if len(pairs) > 1:
        prompts = list(dict.fromkeys(p for one, _ in pairs for p in one))
        table = np.stack([_row(two, prompts) - _row(one, prompts) for one, two in pairs])
        ends = _over_seeds(table)
        low, high = min(low, ends[0]), max(high, ends[1])
    return {
        "mean": test.difference,
        "low": max(-1.0, low),
        "high": min(1.0, high),
        "pairs": len(common),
        "seeds": len(pairs),
    }


def _share(values: Sequence[bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _row(one: Mapping[str, bool | None], prompts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([np.nan if one.get(p) is None else float(bool(one[p])) for p in prompts])


def _table(given: Answers, prompts: Sequence[str]) -> NDArray[np.float64]:
    return np.stack([_row(one, prompts) for one in given.values()])


def _over_seeds(table: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of the mean of (seeds, prompts) when both are resampled."""
    rng = np.random.default_rng(0)
    seeds, prompts = table.shape
    means = []
    for _ in range(RESAMPLES):
        drawn = table[rng.integers(seeds, size=seeds)][:, rng.integers(prompts, size=prompts)]
        if np.isfinite(drawn).any():
            means.append(np.nanmean(drawn))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def line(
    objective: str,
    lr: float | None,
    folders: Mapping[str, Path],
    asks: Sequence[str],
    baseline: Mapping[str, Path] | None,
) -> dict[str, Any]:
    """One line of the table: `folders` are the trainings that are done, by seed; `baseline` those it is compared with."""
    made: dict[str, Any] = {"objective": objective, "lr": lr, "seeds": len(folders)}
    if not folders:
        return made
    for ask in asks:
        own = answers(folders, ask)
        made[ask] = rate(own)
        if baseline and (found := change(answers(baseline, ask), own)):
            made[ask]["change"] = found
    told = [json.loads((folder / "cell.json").read_text(encoding="utf-8")) for folder in folders.values()]
    made["nll"] = _mean([t["nll"] for t in told])
    made["margin"] = _mean([t["margin"]["after"]["0.5"][0] for t in told if t.get("margin")])
    made["seconds"] = _mean([t["seconds"]["train"] for t in told])
    useful = [t["utility"] for t in told if t.get("utility")]
    made["utility"] = {
        name: _mean([u.get(name) for u in useful]) for name in ("score", "exact", "executed", "truncated", "n")
    } if useful else None  # fmt: skip
    return made


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def markdown(lines: Sequence[Mapping[str, Any]], asks: Sequence[str], baseline: str, utility: str | None) -> str:
    """The table as Markdown; what has not been run is empty."""
    margins = any(made.get("margin") is not None for made in lines)
    heads = ["objective", "lr", "seeds"]
    for ask in asks:
        heads += [f"not refused ({ask})", "95 % interval", "by seed", "judged", f"change against {baseline}"]
    heads += [*(["margin after (nats)"] if margins else []), "train nll (tokens 6 on)"]
    heads += [*([utility, "exact", "executed"] if utility == "sql" else [utility] if utility else []), "s to train"]
    rows = [heads, ["---"] * len(heads)]
    for made in lines:
        cells = [made["objective"], f"{made['lr']:g}" if made["lr"] else "", str(made["seeds"] or "")]
        for ask in asks:
            cells += _rate_cells(made.get(ask))
        cells += [*([_number(made.get("margin"), 1)] if margins else []), _number(made.get("nll"))]
        if utility:
            names = ("score", "exact", "executed") if utility == "sql" else ("score",)
            cells += [_number((made.get("utility") or {}).get(name), 3) for name in names]
        rows.append([*cells, _number(made.get("seconds"), 0)])
    empty = [made["objective"] for made in lines if not made["seeds"]]
    said = f"\nEmpty: not run yet ({', '.join(map(str, empty))}); the same command goes on.\n" if empty else ""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n" + said


def _rate_cells(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return [""] * 5
    moved = found.get("change")
    return [
        _number(found["rate"]) or "none judged",
        f"{found['low']:.2f} to {found['high']:.2f}",
        " ".join(_number(value) or "-" for value in found["by_seed"]),
        f"{found['n']} of {found['asked']}",
        f"{moved['mean']:+.2f} ({moved['low']:+.2f} to {moved['high']:+.2f})" if moved else "",
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else re.sub(r"^-0$", "0", f"{value:.{digits}f}")
