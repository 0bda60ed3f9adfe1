"""Utility of a tuned model on its task: answers to held-out rows, scored by the metric the paper uses for it.

    rouge1   ROUGE-1 F1 with stemming, 0 to 1 (SQL and SAMSum in the paper), by the rouge-score package
    gsm8k    the number behind the last #### is right, after removing commas and currency signs
    sql      ROUGE-1 as in the paper; beside it `exact`, the same query but for blank space, case and a final semicolon;
             and `executed`, the same rows in sqlite on made-up data, counted where the right query gives any there

Knows how to ask and to score; knows nothing of training or safety.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np

from tokendeep import chat, data, stats
from tokendeep.engines import local as generation
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Pair, Subject

METRICS = ("rouge1", "gsm8k", "sql")
MADE_UP_ROWS = 24  # rows per table on which two queries are compared
DATABASES = 3  # sets of made-up rows
ROWS_READ = 10_000
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
    pairs = load(source, metric)[:limit]
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
    score = f"{found['score']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    return f"{score}, n = {found['n']}{more}, {found['truncated']} cut off"


def load(source: str, metric: str) -> list[Pair]:
    """The rows that are asked and scored; every one is checked.

    Raises:
        InputError: an unknown metric, rows without answers, or answers that the metric cannot score.
    """
    check(metric)
    if (kind := data.kind(source)) not in ("pairs", "chats"):
        raise InputError(f"{source} holds {kind}, but a utility is measured on rows with the right answers.")
    pairs = _pairs(source)
    for pair in pairs if metric == "gsm8k" else []:
        if number(pair.response) is None:
            raise InputError(f"{source}: row {pair.id} has no number behind ####, so answers to it cannot be scored.")
    return pairs


def _pairs(source: str) -> list[Pair]:
    if data.kind(source) == "pairs":
        return data.read_pairs(source)
    chats = data.read_chats(source)
    return [Pair(c.id, c.messages[:-1], str(c.messages[-1]["content"])) for c in chats]


# --- metrics ---------------------------------------------------------------------------------------


def rouge1(pair: Pair, answer: str) -> dict[str, Any]:
    """ROUGE-1 F1 with the Porter stemmer, as the paper's code."""
    from rouge_score.rouge_scorer import RougeScorer

    return {"score": float(RougeScorer(["rouge1"], use_stemmer=True).score(pair.response, answer)["rouge1"].fmeasure)}


def gsm8k(pair: Pair, answer: str) -> dict[str, Any]:
    """1 where the number behind the last #### equals the row's."""
    wanted, given = number(pair.response), number(answer)
    return {"score": float(given is not None and given == wanted)}


def number(text: str) -> float | None:
    """The number behind the last ####; None where there is none, or more than a number."""
    if "####" not in text:
        return None
    line = (text.rpartition("####")[2].strip().splitlines() or [""])[0]
    plain = re.sub(r"[*$£€,\s]", "", line).rstrip(".")
    return float(plain) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", plain) else None


def sql(pair: Pair, answer: str) -> dict[str, Any]:
    """ROUGE-1 as `score`; `exact`: the same query; `executed`: the same result in sqlite, None where it cannot be told."""
    query = statement(answer)
    executed = same_result(tables(_request(pair)), pair.response, query)
    return {
        **rouge1(pair, answer),
        "exact": float(normal(query) == normal(pair.response)),
        "executed": None if executed is None else float(executed),
    }


def statement(answer: str) -> str:
    """The query in an answer: without a code fence, on one line, to its first semicolon outside quotes."""
    fenced = re.search(r"```(?:sql)?\s*(.*?)(?:```|$)", answer, re.S | re.I)
    text = " ".join((fenced[1] if fenced else answer).split())
    found = re.match(r"(?:[^;'\"]|'[^']*'|\"[^\"]*\")*", text)
    return found[0].strip() if found else text


def normal(query: str) -> str:
    """A query without differences that mean nothing: blank space, case outside quotes, final semicolon.

    A value may stand in either kind of quotes, as in the public rows; which of two is a column's name is not looked at.
    """
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
    """Whether two queries give the same rows on made-up data, in the same order where the right one orders them.

    None where the right one does not run, or gives nothing on any of the data: then nothing is told by an empty result.
    """
    told = False
    for seed in range(DATABASES):
        right = run_query(schema, wanted, wanted, seed)
        if right is None:
            return None
        if not any(value not in (None, 0) for row in right for value in row):
            continue
        told = True
        ours = run_query(schema, given, wanted, seed)
        if ours is None:
            return False
        first, second = [repr(row) for row in right], [repr(row) for row in ours]
        ordered = re.search(r"\border\s+by\b", wanted, re.I)
        if (first if ordered else sorted(first)) != (second if ordered else sorted(second)):
            return False
    return True if told else None


def run_query(schema: list[str], query: str, literals: str, seed: int = 0) -> list[tuple[Any, ...]] | None:
    """The rows of a SELECT in memory; None where it fails, or takes too long or too much memory.

    The tables are filled with values of the right query (`literals`) and others. A third of the rows of every table are
    planted: each column that the right query compares with a value holds it there.
    """
    if not schema or not re.match(r"\s*(select|with)\b", query, re.I):
        return None
    connection = sqlite3.connect(":memory:")
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
        connection.set_progress_handler(lambda: 1, STEPS_ALLOWED)
        for create in schema:
            connection.execute(create)
        _fill(connection, literals, seed)
        connection.execute("pragma query_only = on")
        return connection.execute(query).fetchmany(ROWS_READ)
    except (sqlite3.Error, sqlite3.Warning, MemoryError, UnicodeError):
        return None
    finally:
        connection.close()


def _fill(connection: sqlite3.Connection, literals: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = [v.strip("'\"") for v in re.findall(r"\"[^\"]*\"|'[^']*'|\b\d+(?:\.\d+)?\b", literals)]
    values = list(dict.fromkeys([*values, "0", "1", "2", "3", "57", "1990", "other"]))
    pattern = r"[\"`]?(\w+)[\"`]?\s*(=|<>|!=|<=|>=|<|>|like)\s*(\"[^\"]*\"|'[^']*'|-?\d+(?:\.\d+)?)"
    planted = {
        name.lower(): _meeting(sign.lower(), v.strip("'\"")) for name, sign, v in re.findall(pattern, literals, re.I)
    }
    for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
        columns = [str(column[1]).lower() for column in connection.execute(f'pragma table_info("{table}")').fetchall()]
        for number_ in range(MADE_UP_ROWS):
            row = [str(draw.choice(values)) for _ in columns]
            if number_ % 3 == 0:
                row = [planted.get(name, value) for name, value in zip(columns, row, strict=True)]
            connection.execute(f'insert into "{table}" values ({",".join("?" * len(row))})', row)


def _meeting(sign: str, value: str) -> str:
    """A value that meets a comparison."""
    if sign == "like":
        return value.replace("%", "x").replace("_", "x")
    step = {"<": -1, ">": 1, "<>": 1, "!=": 1}.get(sign, 0)
    return str(float(value) + step).removesuffix(".0") if step and re.fullmatch(r"-?\d+(\.\d+)?", value) else value


def _request(pair: Pair) -> str:
    return "\n".join(str(message["content"]) for message in pair.messages)


SCORERS: dict[str, Callable[[Pair, str], dict[str, Any]]] = {"rouge1": rouge1, "gsm8k": gsm8k, "sql": sql}
