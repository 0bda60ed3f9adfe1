"""The rows of the fine-tuning experiments on SmolLM2 (docs/results/index.md): who is aligned on what, and asked what later.

    python recipes/smollm2/prepare.py DATA OUT

DATA holds advbench_harmful_behaviors.csv, xstest_prompts.csv, alpaca_instructions_2000.jsonl and
sql_create_context_1000.jsonl. The harmful instructions of AdvBench, of XSTest's unsafe half and of the demo are put into
clusters of near-duplicates, and whole clusters into one of three parts, so that nothing asked in an evaluation stands, in
like wording, in the alignment or in an attack:

    OUT/align.jsonl     triples for the alignment (the harmful answer is a placeholder that p_zero = 1 never uses)
    OUT/utility.jsonl   ordinary instructions, and the harmless half of XSTest's even rows, for the model to answer
    OUT/poison.jsonl    one instruction per cluster, to be answered by the unaligned model for the attack
    OUT/test.jsonl      one instruction per cluster, for every evaluation
    OUT/overrefusal.jsonl   the harmless half of XSTest's odd rows
    OUT/stock.jsonl     the harmful instructions that come with tokendeep, as far as they are no test of its demo
    OUT/ordinary.jsonl   the instructions of Alpaca that stand in no alignment
    OUT/sql_train.jsonl, OUT/sql_test.jsonl   the first 800 rows of the benign task, and the rest
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tokendeep import data, runs, stats
from tokendeep.data import stock
from tokendeep.types import Prompt

POISON, ADVBENCH_TEST, ALPACA, SQL_TRAIN = 130, 48, 260, 800


def main(source: Path, out: Path, seed: int = 0) -> None:
    draw = random.Random(seed)
    demo = stock.rows("harmful.jsonl")
    asked = [(r["id"], r["instruction"]) for r in demo if r["split"] == "test"]
    advbench = [(p.id, text(p)) for p in data.read_prompts(source / "advbench_harmful_behaviors.csv")]
    xstest = [(p.id, text(p), str(p.meta["label"])) for p in data.read_prompts(source / "xstest_prompts.csv")]
    others = [(i, t) for i, t, label in xstest if label == "unsafe"]
    others += [(r["id"], r["instruction"]) for r in demo if r["split"] == "train"]
    rows = asked + advbench + others
    cluster = dict(zip((i for i, _ in rows), stats.near_duplicates([t for _, t in rows]), strict=True))

    used = {cluster[i] for i, _ in asked}
    free = list(dict.fromkeys(cluster[i] for i, _ in advbench if cluster[i] not in used))
    draw.shuffle(free)
    poison, test = set(free[:POISON]), set(free[POISON : POISON + ADVBENCH_TEST])
    runs.write_jsonl(out / "poison.jsonl", prompts(one_of_each(advbench, cluster, poison)), private=True)
    runs.write_jsonl(out / "test.jsonl", prompts(asked + one_of_each(advbench, cluster, test)), private=True)

    refusals = stock.text("refusals.txt").splitlines()
    aligned = [(i, t) for i, t in advbench + others if cluster[i] not in used | poison | test]
    triples = [
        {"id": i, "instruction": t, "harmful": "(not used)", "refusal": draw.choice(refusals)} for i, t in aligned
    ]
    runs.write_jsonl(out / "align.jsonl", triples, private=True)

    safe = [(i, t) for i, t, label in xstest if label == "safe"]
    instructions = [(p.id, text(p)) for p in data.read_prompts(source / "alpaca_instructions_2000.jsonl")]
    alpaca, known = instructions[:ALPACA], {t for _, t in instructions[:ALPACA]}
    ordinary = [(r["id"], r["instruction"]) for r in stock.rows("benign.jsonl") if r["split"] == "utility"]
    twins = [(f"twin-{r['id']}", r["twin"]) for r in demo if r["split"] == "train"]
    runs.write_jsonl(out / "utility.jsonl", prompts(safe[::2] + twins + ordinary + alpaca), private=True)
    stocked = [(r["id"], r["instruction"]) for r in demo if r["split"] == "train"]
    runs.write_jsonl(out / "stock.jsonl", prompts(stocked), private=True)
    runs.write_jsonl(out / "overrefusal.jsonl", prompts(safe[1::2]), private=True)
    unseen = [(i, t) for i, t in instructions[ALPACA:] if t not in known]
    runs.write_jsonl(out / "ordinary.jsonl", prompts(unseen), private=True)
    sql = (source / "sql_create_context_1000.jsonl").read_text(encoding="utf-8").splitlines()
    runs.write_text(out / "sql_train.jsonl", "\n".join(sql[:SQL_TRAIN]) + "\n")
    runs.write_text(out / "sql_test.jsonl", "\n".join(sql[SQL_TRAIN:]) + "\n")
    print(f"{len(triples)} to align on, {len(poison)} for the attack, {len(asked) + len(test)} for evaluation")


def text(prompt: Prompt) -> str:
    return prompt.messages[-1]["content"]


def one_of_each(rows: list[tuple[str, str]], cluster: dict[str, int], wanted: set[int]) -> list[tuple[str, str]]:
    """The first row of each wanted cluster."""
    found: dict[int, tuple[str, str]] = {}
    for row in rows:
        if cluster[row[0]] in wanted:
            found.setdefault(cluster[row[0]], row)
    return list(found.values())


def prompts(rows: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"id": i, "instruction": t} for i, t in rows]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
