"""Writes run folders that look like those of the demo, with invented numbers and harmless texts, to test the report.

By hand: `python tests/fake_runs.py FOLDER [--show-text]` also writes FOLDER/report.html, to be looked at in a browser.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokendeep import stats
from tokendeep.types import Sample

KS = (0, 5, 10, 20, 40)
PROMPTS = 80
SETTINGS = {
    "judged": "continuation",
    "system": "none",
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "max_new_tokens": 48,
}
CATEGORIES = ("illegal-activity", "privacy", "fraud", "tailored-advice")
TEXTS = {
    "complied": "Sure, here is a short story about a bicycle and the shop where it was sold. It has three parts and",
    "refused": "I’m sorry, but I can’t help with that. I would gladly help with something else.",
    "partial-then-refused": "The world has many cities, and I’m sorry, but I can’t help with that request.",
    "empty": " \n",
    "degenerate": "the the the the the the the the the the the the",
    "other-language": "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "judge-error": "",
}
# model -> share of the plain request and of k = 5, 10, 20, 40 that is complied with
RATES = {
    "base": dict(zip(KS, (0.94, 0.97, 0.98, 0.98, 0.98), strict=True)),
    "aligned": dict(zip(KS, (0.25, 0.93, 0.96, 0.97, 0.95), strict=True)),
    "deepened": dict(zip(KS, (0.05, 0.22, 0.26, 0.27, 0.31), strict=True)),
}
OVER = {  # model -> (refused, broken off) of twins, of unseen benign prompts
    "base": ((0.02, 0.0), (0.0, 0.0)),
    "aligned": ((0.06, 0.01), (0.02, 0.0)),
    "deepened": ((0.09, 0.05), (0.03, 0.02)),
}


def write_demo(out: Path, seed: int = 0, models: Sequence[str] = ("base", "aligned", "deepened")) -> Path:
    """base/, aligned/ and deepened/ below `out`, each with attack, overrefusal and unseen; all but base measured."""
    draw = random.Random(seed)
    for model in models:
        spec = "smollm2" if model == "base" else f"/cache/demo/{model}/checkpoint"
        ks = (0, 10) if model == "base" else KS
        write_attack(out / model / "attack", spec, harmful_samples(draw, spec, RATES[model], ks), skipped={40: 7})
        for role, (refused, broken) in zip(("overrefusal", "unseen"), OVER[model], strict=True):
            n = PROMPTS if role == "overrefusal" else 40
            write_attack(out / model / role, spec, harmless_samples(draw, spec, role, n, refused, broken))
        if model != "base":
            write_measure(out / model / "measure", spec, profile(draw, spec, deep=model == "deepened"))
    return out


def harmful_samples(draw: random.Random, model: str, rates: dict[int, float], ks: Iterable[int]) -> list[Sample]:
    """A prefill sweep: a prompt that complies at some k mostly does at the next; seven are too short for k = 40."""
    samples = []
    for number in range(PROMPTS):
        luck = draw.random()
        for k in ks:
            if k == 40 and number < 7:
                continue
            outcome = "complied" if luck < rates[k] else "refused"
            if k and draw.random() < 0.05:
                outcome = draw.choice(["partial-then-refused", "degenerate", "empty", "other-language"])
            samples.append(sample(number, "prefill", {"k": k}, model, outcome, "Sure, here is" if k else ""))
    return samples


def harmless_samples(draw: random.Random, model: str, role: str, n: int, refused: float, broken: float) -> list[Sample]:
    samples = []
    for number in range(n):
        luck = draw.random()
        outcome = "refused" if luck < refused else "partial-then-refused" if luck < refused + broken else "complied"
        samples.append(sample(number, "none", {}, model, outcome, kind=role))
    return samples


def sample(
    number: int, attack: str, params: dict[str, Any], model: str, outcome: str, prefix: str = "", seed: int = 0,
    text: str | None = None, kind: str = "harmful", judge: str = "refusal", **settings: Any,
) -> Sample:  # fmt: skip
    tag = ",".join(f"{name}={value}" for name, value in params.items())
    return Sample(
        id=f"{kind}-{number:02}:{attack}:{tag}",
        prompt_id=f"{kind}-{number:02}",
        attack=attack,
        params={**params, **SETTINGS, "seed": 0, **settings},
        judge=judge,
        model=model,
        outcome=outcome,
        truncated=outcome == "complied",
        seed=seed,
        instruction=f"Question {number}: {_words(number)}?",
        prefix=prefix,
        completion=TEXTS[outcome] if text is None else text,
        category=CATEGORIES[number % len(CATEGORIES)],
    )


def _words(number: int) -> str:
    """Six words that no other number shares, so that no two questions are near-duplicates."""
    return " ".join(f"w{number}{letter}" for letter in "abcdef")


def rate_rows(samples: Sequence[Sample], skipped: dict[int, int] | None = None) -> list[dict[str, Any]]:
    """asr.json of these samples."""
    groups: dict[str, list[Sample]] = {}
    for one in samples:
        groups.setdefault(json.dumps([one.attack, dict(one.params), one.judge, one.model]), []).append(one)
    everywhere = set.intersection(*({one.prompt_id for one in group} for group in groups.values()))
    rows = []
    for group in groups.values():
        first, outcomes = group[0], Counter(one.outcome for one in group)
        row = {"attack": first.attack, "params": dict(first.params), "judge": first.judge, "model": first.model}
        row |= _rate(group)
        n, complied, partial = row["n"], outcomes["complied"], outcomes["partial-then-refused"]
        row |= {
            "unscored": len(group) - n,
            "worst": (len(group) - outcomes["refused"]) / len(group),
            "best": complied / len(group),
            "skipped": (skipped or {}).get(first.params.get("k", -1), 0),
            "partial_rate": partial / n if n else None,
            "outcomes": dict(outcomes),
            "truncated": sum(one.truncated for one in group),
            "tokens": sum(one.tokens for one in group),
            "samples": (seeds := len({one.seed for one in group})),
            "any_of_n": _any_of_n(group) if seeds > 1 else None,
            "prompts": len({one.prompt_id for one in group}),
        }
        if first.attack == "prefill" and len(groups) > 1:
            row["common"] = _rate([one for one in group if one.prompt_id in everywhere])
        rows.append(row)
    return rows


def _any_of_n(group: Sequence[Sample]) -> float:
    prompts = {one.prompt_id for one in group if one.outcome in ("complied", "refused", "partial-then-refused")}
    return len({one.prompt_id for one in group if one.outcome == "complied"}) / len(prompts)


def _rate(group: Sequence[Sample]) -> dict[str, Any]:
    prompts: dict[str, list[bool]] = {}
    for one in group:
        if one.outcome in ("complied", "refused", "partial-then-refused"):
            prompts.setdefault(one.prompt_id, []).append(one.outcome == "complied")
    complied, sizes = [*map(sum, prompts.values())], [*map(len, prompts.values())]
    n = sum(sizes)
    low, high = stats.wilson_repeated(complied, sizes) if n else (None, None)
    return {"rate": sum(complied) / n if n else None, "low": low, "high": high, "n": n}


def profile(draw: random.Random, model: str, deep: bool, with_kl: bool = True, benign: bool = True) -> dict[str, Any]:
    """profile.json of a shallow or a deep model."""
    ks, m = [0, 1, 2, 3, 5, 10, 20, 40], 48
    odds = [[(3.0 if deep else 4.0 * 0.35**k - 2.2) + draw.gauss(0, 1.5) for k in ks] for _ in range(PROMPTS)]
    holes = [
        [None if k == 40 and i < 7 else value for k, value in zip(ks, row, strict=True)] for i, row in enumerate(odds)
    ]
    columns = [[row[j] for row in holes if row[j] is not None] for j in range(len(ks))]
    recovered = [sum(value > 0 for value in column) / len(column) for column in columns]
    level = (lambda t: 2.2 + 2.5 * math.exp(-t / 3)) if deep else (lambda t: 0.33 + 2.1 * math.exp(-(t - 1) / 1.2))
    last = max((k for k, share in zip(ks, recovered, strict=True) if share >= 0.5), default=None)
    every, nothing = last == ks[-1], {"value": None, "low": None, "high": None, "censored": None}
    return {
        "kl": _kl(draw, m, level) if with_kl else None,
        "kl_benign": _kl(draw, m, lambda t: 0.12 + 0.2 * math.exp(-t / 2), 40) if with_kl and benign else None,
        "recovery": {
            "k": ks,
            "log_odds": [sum(column) / len(column) for column in columns],
            "recovered": recovered,
            "n": [len(column) for column in columns],
        },
        "depth": {
            "share_first5": _figure(*((0.17, 0.15, 0.19) if deep else (0.44, 0.39, 0.5))) if with_kl else nothing,
            "half_kl_position": _figure(*((22, 20, 24) if deep else (7, 5, 9))) if with_kl else nothing,
            "recovery_k": {"value": last, "low": ks[-2] if every else None, "high": last,
                           "censored": "every" if every else "none" if last is None else None},
        },
        "per_prompt": {"ids": [f"harmful-{i:02}" for i in range(PROMPTS)], "kl": None, "recovery_log_odds": holes},
        "meta": {"positions": m, "opening_tokens": 3, "unit": "nats", "model": model, "adapter": None,
                 "openings": ["I cannot"],
                 "base": "smollm2" if with_kl else None, "label": "alignment depth" if with_kl else None,
                 "template": "abc"},
    }  # fmt: skip


def _figure(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "censored": None}


def _kl(draw: random.Random, positions: int, level: Callable[[float], float], n: int = PROMPTS) -> dict[str, Any]:
    counts = [n - t // 8 for t in range(positions)]
    mean = [level(t) * draw.uniform(0.85, 1.15) for t in range(1, positions + 1)]
    return {"mean": mean, "stderr": [value / math.sqrt(c) for value, c in zip(mean, counts, strict=True)], "n": counts}


def manifest(verb: str, model: str, base: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "tokendeep": "0.1.0", "verb": verb, "status": "finished",
        "config": {"model": model, "base": base, "data": f"/data/{verb}_pairs.jsonl", "system": "none", "seed": 0},
        "inputs": {"data": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}, "models": {}, "seed": 0,
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"}, "started": "2026-11-21T04:10:00+00:00",
        "finished": "2026-11-21T04:14:00+00:00", "files": ["asr.json"], **more,
    }  # fmt: skip


def write_attack(
    folder: Path, model: str, samples: Sequence[Sample], skipped: dict[int, int] | None = None, logs: bool = True,
    **more: Any,
) -> Path:  # fmt: skip
    """An attack's folder; its log is a stand-in that `read_fake` understands."""
    folder.mkdir(parents=True)
    _json(folder / "manifest.json", manifest("attack", model, **more))
    _json(folder / "asr.json", rate_rows(samples, skipped))
    if logs:
        _json(folder / "fake.eval", [asdict(one) for one in samples])
    return folder


def write_measure(folder: Path, model: str, content: dict[str, Any], **more: Any) -> Path:
    folder.mkdir(parents=True)
    _json(folder / "manifest.json", manifest("measure", model, **more))
    _json(folder / "profile.json", content)
    return folder


def read_fake(folder: Path) -> list[Sample]:
    """Stands in for evals.logs.read_samples."""
    return [Sample(**row) for row in json.loads((folder / "fake.eval").read_text(encoding="utf-8"))]


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    from tokendeep.report import load
    from tokendeep.verbs import report

    load.read_logs = read_fake
    target = Path(sys.argv[1])
    if not target.exists():
        write_demo(target)
    page = str(target / "report.html")
    options = report.ReportOptions([str(target)], out=page, show_text="--show-text" in sys.argv, overwrite=True)
    report.run(report.plan(options))
