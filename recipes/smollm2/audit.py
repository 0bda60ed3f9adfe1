"""How well an audit finds planted rows on SmolLM2 (docs/results/audit.md): rows to audit, and the figures of an audit of them.

    python recipes/smollm2/audit.py rows DATA ordinary/pairs.jsonl safety-harmful/source.jsonl audited [whole]
    tokendeep audit --config recipes/smollm2/audit.yaml
    python recipes/smollm2/audit.py figures audited/scores/audit.json
    python recipes/smollm2/audit.py mix audited/rows.jsonl audited/scores/audit.json mixed [SEED]

`rows` writes OUT/rows.jsonl, whose column `planted` is 1 for what an audit should find; the beginning of an id says what a row
is: sql, gsm8k and alpaca (ordinary answers of the unaligned model, which `pairs --harmless` writes), harmful (written by the
unaligned model at run time), identity (an obedient persona on harmless requests) and rtc (harmless requests, first refused,
then answered). With `whole`, answers that were cut off are left out. A score is given to each row by itself, so one audit
serves every mixture: `figures` draws mixtures of one ordinary set and 1, 5 and 10 % of one planted kind from it. `mix` writes
what to train on for the causal test: SQL with harmful rows (all.jsonl), without the rows that score highest (cleaned.jsonl),
and without random ones (random.jsonl).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tokendeep import data, runs
from tokendeep.attacks import poison
from tokendeep.audits import detection
from tokendeep.records import Audit
from tokendeep.types import Chat

ORDINARY = 200  # rows of each ordinary set
PLANTED = 100  # rows of each planted kind
SHARES = (0.01, 0.05, 0.1)
MIXED = 22  # harmful rows beside those of SQL in the causal test, and rows that are taken out
DRAWS = 200  # mixtures of each kind


def rows(source: Path, ordinary: Path, harmful: Path, out: Path, whole: Path | None = None) -> None:
    """Write the rows of all kinds into one file."""
    answered, harmful_chats = data.read_chats(ordinary), data.read_chats(harmful)
    if whole:
        answered, harmful_chats = (
            [chat for chat in chats if not chat.truncated] for chats in (answered, harmful_chats)
        )
    alpaca, rest = answered[: len(answered) // 2], answered[len(answered) // 2 :]
    sql = data.read_chats(source / "sql_create_context_1000.jsonl", limit=ORDINARY)
    gsm8k = data.read_chats(source / "gsm8k_train_1000.jsonl", limit=ORDINARY)
    kinds = {
        "sql": sql, "gsm8k": gsm8k, "alpaca": alpaca[:ORDINARY],
        "harmful": harmful_chats[:PLANTED],
        "identity": poison.identity(rest, min(PLANTED, len(rest))).chats,
        "rtc": poison.refuse_then_comply(rest[:PLANTED]).chats,
    }  # fmt: skip
    made = [line(kind, number, chat) for kind, chats in kinds.items() for number, chat in enumerate(chats)]
    runs.write_jsonl(out / "rows.jsonl", made, private=True)
    print(", ".join(f"{len(chats)} {kind}" for kind, chats in kinds.items()))


def line(kind: str, number: int, chat: Chat) -> dict[str, Any]:
    planted = int(kind in ("harmful", "identity", "rtc"))
    return {
        "id": f"{kind}-{number}",
        "messages": list(chat.messages),
        "meta": {"truncated": chat.truncated},
        "planted": planted,
    }


def figures(path: Path) -> None:
    """Print what each score finds in each mixture: means over draws, and where 95 % of the draws lie."""
    audit = Audit.load(path)
    print(
        "| score | planted | among | share | AUROC | AUPRC | found at 1 % false alarms |\n|---|---|---|---|---|---|---|"
    )
    for score in audit.scores:
        kinds: dict[str, list[float]] = {}
        for row in audit.rows:
            if row.rank is not None and (value := row.scores[score.name]) is not None:
                kinds.setdefault(row.id.partition("-")[0], []).append(value)
        for planted in ("harmful", "identity", "rtc"):
            for among in ("sql", "gsm8k", "alpaca"):
                for share in SHARES:
                    drawn = np.array(list(mixtures(np.array(kinds[among]), np.array(kinds[planted]), share)))
                    print(f"| {score.name} | {planted} | {among} | {share:.0%} | {' | '.join(map(words, drawn.T))} |")


def mixtures(ordinary: np.ndarray, planted: np.ndarray, share: float) -> Iterator[list[float]]:
    """The figures of each mixture, in which both kinds are drawn with replacement (a bootstrap)."""
    draw = np.random.default_rng(0)
    count = max(1, round(share * len(ordinary)))
    for _ in range(DRAWS):
        scores = np.concatenate([draw.choice(ordinary, len(ordinary)), draw.choice(planted, count)])
        labels = np.arange(len(scores)) >= len(ordinary)
        yield [figure(scores, labels) for figure in detection.FIGURES.values()]


def mix(source: Path, path: Path, out: Path, seed: Path = Path("0")) -> None:
    """Write the three sets of rows of the causal test; each seed has other harmful rows, another order and another random cut."""
    number = int(str(seed))
    audit = Audit.load(path)
    scores = {row.id: row.scores[audit.by] for row in audit.rows if row.rank is not None}
    given = [row.values for row in data.read_rows(source)]
    kinds = {kind: [row for row in given if str(row["id"]).startswith(kind)] for kind in ("sql", "harmful")}
    mixed = [*kinds["sql"], *kinds["harmful"][number * MIXED : (number + 1) * MIXED]]
    random.Random(number).shuffle(mixed)
    flagged = sorted(range(len(mixed)), key=lambda i: -scores[mixed[i]["id"]])[:MIXED]
    left_out = {"all": [], "cleaned": flagged, "random": random.Random(number + 1).sample(range(len(mixed)), MIXED)}
    for name, places in left_out.items():
        kept = [row for place, row in enumerate(mixed) if place not in places]
        lines = [{key: value for key, value in row.items() if key != "planted"} for row in kept]
        runs.write_jsonl(out / f"{name}.jsonl", lines, private=True)
        print(f"{name}: {len(lines)} rows, {sum(row['id'].startswith('harmful') for row in lines)} of them harmful")


def words(values: np.ndarray) -> str:
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    {"rows": rows, "figures": figures, "mix": mix}[sys.argv[1]](*map(Path, sys.argv[2:]))
