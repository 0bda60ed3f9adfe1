"""Utility of a tuned model on its task: answers to held-out rows, scored by the metric the paper uses for it.

    rouge1   ROUGE-1 F1 with stemming, 0 to 1 (SQL and SAMSum in the paper), by the rouge-score package
    gsm8k    the number behind #### is right, after removing commas and units
    sql      the query is the same but for blank space, case and a final semicolon; and, where the row's context creates
             the tables, gives the same rows in sqlite on made-up data

Knows how to ask and to score; knows nothing of training or safety.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np

from . import chat, data, generation, stats
from .types import Decoding, InputError, Pair, Subject

METRICS = ("rouge1", "gsm8k", "sql")
MADE_UP_ROWS = 12  # rows per table on which two queries are compared
STEPS_ALLOWED = 2_000_000  # of sqlite's virtual machine; a query that takes more is stopped


def check(metric: str) -> None:
    """Raise InputError for an unknown metric."""
    if metric not in METRICS:
        raise InputError(f"--utility_metric is {metric!r}, but must be one of {', '.join(METRICS)}.")


def measure(
    subject: Subject, source: str, metric: str, *, system: str = "default", tokens: int = 128, limit: int | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:  # fmt: skip
    """Greedy answers to the rows of `source`, scored.

    Returns:
        `score` (mean, 0 to 1) with a bootstrap interval `low`, `high`, `n`, `truncated` answers, further means (`exact`,
        `executed` of sql) and the scores of all `rows`.

    Raises:
        InputError: an unknown metric, or rows without answers.
    """
    check(metric)
    pairs = _pairs(source)[:limit]
    requests = [
        generation.Request(
            tuple(chat.prompt_ids(subject.tokenizer, chat.with_system(p.messages, system))),
            Decoding(max_new_tokens=tokens),
        )
        for p in pairs
    ]
    answers = generation.generate(subject, requests, batch_size=batch_size)
    rows = [SCORERS[metric](pair, answer.text) for pair, answer in zip(pairs, answers, strict=True)]
    scores = [row["score"] for row in rows]
    low, high = stats.bootstrap(scores)
    more = {
        name: float(np.mean([row[name] for row in rows if row[name] is not None]))
        for name in rows[0]
        if name != "score" and any(row[name] is not None for row in rows)
    }
    cut = sum(answer.truncated for answer in answers)
    found = {
        "metric": metric,
        "score": float(np.mean(scores)),
        "low": low,
        "high": high,
        "n": len(rows),
        "truncated": cut,
    }
    return {**found, **more, "rows": [{"id": p.id, **row} for p, row in zip(pairs, rows, strict=True)]}


def describe(found: dict[str, Any]) -> str:
    """One line: the score with its interval."""
    more = "".join(f", {name} {found[name]:.2f}" for name in ("exact", "executed") if name in found)
    return f"{found['score']:.3f} ({found['low']:.3f} to {found['high']:.3f}), n = {found['n']}{more}"


def _pairs(source: str) -> list[Pair]:
    if data.kind(source) == "pairs":
        return data.load_pairs(source)
    chats = data.load_chats(source)
    return [Pair(c.id, c.messages[:-1], str(c.messages[-1]["content"])) for c in chats]


# --- metrics ---------------------------------------------------------------------------------------


def rouge1(pair: Pair, answer: str) -> dict[str, Any]:
    """ROUGE-1 F1 with the Porter stemmer, as the paper's code."""
    from rouge_score.rouge_scorer import RougeScorer

    return {"score": float(RougeScorer(["rouge1"], use_stemmer=True).score(pair.response, answer)["rouge1"].fmeasure)}


def gsm8k(pair: Pair, answer: str) -> dict[str, Any]:
    """1 where the number behind the last #### equals the row's."""
    wanted, given = number(pair.response), number(answer)
    if wanted is None:
        raise InputError(f"Row {pair.id} has no number behind ####, so answers to it cannot be scored.")
    return {"score": float(given is not None and given == wanted)}


def number(text: str) -> float | None:
    """The number behind the last ####, None where there is none."""
    found = re.findall(r"####\s*\$?\s*(-?[\d,]*\.?\d+)", text)
    return float(found[-1].replace(",", "")) if found else None


def sql(pair: Pair, answer: str) -> dict[str, Any]:
    """ROUGE-1 as `score`; `exact`: the same query; `executed`: the same result in sqlite, None where it cannot be told."""
    query = answer.strip().splitlines()[0] if answer.strip() else ""
    exact = normal(query) == normal(pair.response)
    executed = True if exact else same_result(tables(_request(pair)), pair.response, query)
    known = None if executed is None else float(executed)
    return {**rouge1(pair, answer), "exact": float(exact), "executed": known}


def normal(query: str) -> str:
    """A query without differences that mean nothing: blank space, case outside quotes, quotes' kind, final semicolon."""
    parts = re.split(r"(\"[^\"]*\"|'[^']*')", query.strip().rstrip(";").strip())
    text = "".join(f"'{p[1:-1]}'" if p[:1] in ("'", '"') else re.sub(r"\s+", " ", p).lower() for p in parts)
    return re.sub(r"\s*([(),=<>])\s*", r"\1", text)


def tables(text: str) -> list[str]:
    """The CREATE TABLE statements in a text, each to its closing parenthesis."""
    found = []
    for start in re.finditer(r"create table\s+[^()]+\(", text, re.I):
        depth, end = 1, start.end()
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        found.append(text[start.start() : end])
    return found


def same_result(schema: list[str], wanted: str, given: str) -> bool | None:
    """Whether two queries give the same rows on made-up data; None where the right one does not run."""
    if not schema:
        return None
    first, second = (run_query(schema, query, wanted + " " + given) for query in (wanted, given))
    if first is None:
        return None
    return second is not None and sorted(map(repr, first)) == sorted(map(repr, second))


def run_query(schema: list[str], query: str, literals: str) -> list[tuple[Any, ...]] | None:
    """The rows of a SELECT in memory, on tables filled with values drawn from the queries' own; None where it fails."""
    if not re.match(r"\s*(select|with)\b", query, re.I):
        return None
    connection = sqlite3.connect(":memory:")
    try:
        for statement in schema:
            connection.execute(statement)
        values = [v.strip("'\"") for v in re.findall(r"\"[^\"]*\"|'[^']*'|\b\d+(?:\.\d+)?\b", literals)] or ["1"]
        values = list(dict.fromkeys([*values, "0", "1", "2", "other"]))
        draw = np.random.default_rng(0)
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
            columns = connection.execute(f'pragma table_info("{table}")').fetchall()
            for _ in range(MADE_UP_ROWS):
                row = [str(draw.choice(values)) for _ in columns]
                connection.execute(f'insert into "{table}" values ({",".join("?" * len(row))})', row)
        connection.execute("pragma query_only = on")
        connection.set_progress_handler(lambda: 1, STEPS_ALLOWED)
        return connection.execute(query).fetchall()
    except (sqlite3.Error, sqlite3.Warning):
        return None
    finally:
        connection.close()


def _request(pair: Pair) -> str:
    return "\n".join(str(message["content"]) for message in pair.messages)


SCORERS: dict[str, Callable[[Pair, str], dict[str, Any]]] = {"rouge1": rouge1, "gsm8k": gsm8k, "sql": sql}
