"""Task metrics: against hand-computed values, on queries that are alike and unlike, and on data of the public schema."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tokendeep import data
from tokendeep.errors import InputError
from tokendeep.judges import sql
from tokendeep.judges import tasks as utility
from tokendeep.types import Pair, Subject

SCHEMA = "CREATE TABLE head (name VARCHAR, age INTEGER, born_state VARCHAR)"


def pair(response: str, request: str = "?") -> Pair:
    return Pair("p", ({"role": "user", "content": request},), response)


def test_rouge1_by_hand() -> None:
    # 2 of the answer's 4 words are among the right one's 3: precision 1/2, recall 2/3, F1 4/7
    assert utility.rouge1(pair("red green blue"), "red blue black white")["score"] == pytest.approx(4 / 7)
    assert utility.rouge1(pair("running dogs"), "run dog")["score"] == 1.0  # stemmed
    assert utility.rouge1(pair("red"), "")["score"] == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("We add. #### 1,200", 1.0),
        ("#### $1200", 1.0),
        ("#### 1200.0", 1.0),
        ("#### 7 no, #### 1200", 1.0),
        ("#### **1200**", 1.0),
        ("#### £1,200.", 1.0),
        ("#### 1200 #### 1/2", 0.0),
        ("it is 1200", 0.0),
        ("#### 120", 0.0),
        ("", 0.0),
    ],
)
def test_the_number_behind_the_marks(answer: str, score: float) -> None:
    assert utility.gsm8k(pair("So many.\n#### 1200"), answer)["score"] == score


def test_a_negative_number() -> None:
    assert utility.number("#### -$5") == -5


def test_a_row_without_a_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "p", "question": "?", "answer": "no number"}))
    with pytest.raises(InputError, match="row p has no number"):
        utility.load(str(path), "gsm8k")


@pytest.mark.parametrize(
    ("wanted", "given", "exact", "executed"),
    [
        ("SELECT COUNT(*) FROM head WHERE age > 56", "select count( * ) from head where age>56;", 1, 1),
        ('SELECT name FROM head WHERE born_state = "Ohio"', "SELECT name FROM head WHERE born_state = 'Ohio'", 1, 1),
        ('SELECT name FROM head WHERE born_state = "Ohio"', "SELECT name FROM head WHERE born_state = 'ohio'", 0, 0),
        ("SELECT name, age FROM head", "SELECT h.name, h.age FROM head AS h", 0, 1),
        ("SELECT name, age FROM head ORDER BY age", "SELECT h.name, h.age FROM head AS h", 0, 0),
        ("SELECT name FROM head ORDER BY age DESC", "SELECT name FROM head ORDER BY age ASC", 0, 0),
        ("SELECT name FROM head WHERE age > 56", "```sql\nSELECT name\nFROM head\nWHERE age > 56;\n```", 1, 1),
        ("SELECT name FROM head WHERE age > 56", "SELECT name FROM head WHERE age > 56\nAND born_state = 'x'", 0, 0),
        ("SELECT name FROM head WHERE age > 56", "SELECT 1 WHERE 0", 0, 0),
        ("SELECT COUNT(*) FROM head WHERE age > 56", "SELECT COUNT(name) FROM head WHERE age > 0", 0, 0),
        ("SELECT COUNT(*) FROM head WHERE age > 56", "DROP TABLE head", 0, 0),
        ("SELECT COUNT(*) FROM head WHERE age > 56", "I think it is 5", 0, 0),
    ],
)
def test_queries_are_compared_as_text_and_by_what_they_give(wanted: str, given: str, exact: int, executed: int) -> None:
    found = utility.sql(pair(wanted, f"{SCHEMA}\n\nHow many?"), given)
    assert (found["exact"], found["executed"]) == (exact, executed)


def test_a_query_that_never_ends_is_stopped() -> None:
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"
    assert sql.run_query([SCHEMA], endless, "") is None
    large = "WITH RECURSIVE c(x) AS (SELECT zeroblob(100000000) UNION ALL SELECT x FROM c LIMIT 40) SELECT x FROM c"
    assert sql.run_query([SCHEMA], large, "") is None
    assert sql.run_query([SCHEMA], "SELECT '\ud800'", "") is None


def test_a_right_query_that_does_not_run_tells_nothing_however_it_is_answered() -> None:
    wanted = "SELECT year FROM head"  # no such column
    for given in (wanted, "SELECT name FROM head"):
        assert utility.sql(pair(wanted, SCHEMA), given)["executed"] is None


def test_without_a_schema_execution_is_not_known() -> None:
    found = utility.sql(pair("SELECT 1"), "SELECT 2")
    assert found["executed"] is None


def test_the_public_rows_can_be_scored() -> None:
    folder = os.environ.get("TOKENDEEP_TEST_DATA")
    if not folder:
        pytest.skip("TOKENDEEP_TEST_DATA is not set")
    pairs = data.read_pairs(Path(folder) / "sql_create_context_1000.jsonl", limit=200)
    own = [utility.sql(p, p.response) for p in pairs]
    assert all(row["exact"] == row["score"] == 1 for row in own)
    assert all(row["executed"] in (1, None) for row in own)
    assert sum(row["executed"] == 1 for row in own) > 170
    empty = [utility.sql(p, "SELECT 1 WHERE 0") for p in pairs]
    assert sum(row["executed"] == 1 for row in empty) < 4
    other = [utility.sql(p, q.response) for p, q in pairwise(pairs)]
    assert sum(row["executed"] is not None for row in other) > 170
    assert sum(row["executed"] == 1 for row in other) < 20
    numbers = data.read_pairs(Path(folder) / "gsm8k_test_300.jsonl")
    assert all(utility.gsm8k(p, p.response)["score"] == 1 for p in numbers)


def test_measure_asks_the_model_and_scores_every_row(tmp_path: Path, tiny_subject: Subject) -> None:
    rows = [{"question": f"{i} + {i}?", "answer": f"It is\n#### {2 * i}"} for i in range(5)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found: dict[str, Any] = utility.measure(tiny_subject, utility.load(str(path), "gsm8k")[:4], "gsm8k", tokens=4)
    assert found["n"] == len(found["rows"]) == 4
    assert found["asked"].keys() == {"prompts", "system", "template", "tokens", "dtype"}
    assert (found["asked"]["tokens"], found["asked"]["system"]) == (4, "default")
    assert "+ 1" not in json.dumps(found)
    assert found["low"] <= found["score"] <= found["high"]
    assert found["truncated"] <= 4


def test_one_row_has_a_score_and_no_interval(tiny_subject: Subject) -> None:
    found = utility.measure(tiny_subject, [pair("Mix the flour.", "How do I bake bread?")], "rouge1", tokens=4)
    assert (found["low"], found["high"], found["n"]) == (None, None, 1)
    assert utility.describe(found).startswith(f"{found['score']:.3f}, n = 1")
    json.dumps(found, allow_nan=False)  # as it is written
