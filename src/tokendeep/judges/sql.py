"""Whether two SQL queries are the same: as text, and by what they give in sqlite on made-up data.

Knows rows only as strings of queries and CREATE TABLE statements; knows nothing of models.
"""

import re
import sqlite3
from typing import Any

import numpy as np

MADE_UP_ROWS = 24  # rows per table on which two queries are compared
DATABASES = 3  # sets of made-up rows
ROWS_READ = 10_000
STEPS_ALLOWED = 2_000_000  # of sqlite's virtual machine; a query that takes more is stopped

Row = tuple[Any, ...]  # what sqlite gives


def statement(answer: str) -> str:
    """The query in an answer: without a code fence, on one line, to its first semicolon outside quotes."""
    fenced = re.search(r"```(?:sql)?\s*(.*?)(?:```|$)", answer, re.S | re.I)
    text = " ".join((fenced[1] if fenced else answer).split())
    query = re.match(r"(?:[^;'\"]|'[^']*'|\"[^\"]*\")*", text)
    return query[0].strip() if query else text


def normal(query: str) -> str:
    """A query without differences that mean nothing: blank space, case outside quotes, final semicolon.

    A value may stand in either kind of quotes, as in the public rows; which of two is a column's name is not looked at.
    """
    parts = re.split(r"(\"[^\"]*\"|'[^']*')", query.strip().rstrip(";").strip())
    text = "".join(f"'{p[1:-1]}'" if p[:1] in ("'", '"') else re.sub(r"\s+", " ", p).lower() for p in parts)
    return re.sub(r"\s*([(),=<>])\s*", r"\1", text)


def tables(text: str) -> list[str]:
    """The CREATE TABLE statements in a text, each to its closing parenthesis."""
    statements = []
    for start in re.finditer(r"create table\s+[^()]+\(", text, re.I):
        depth, end = 1, start.end()
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        statements.append(text[start.start() : end])
    return statements


def same_result(schema: list[str], wanted: str, given: str) -> bool | None:
    """Whether two queries give the same rows on made-up data, in the same order where the right one orders them.

    None where the right one does not run, or gives nothing on any of the data: then nothing is told by an empty result.
    """
    ordered = re.search(r"\border\s+by\b", wanted, re.I) is not None
    telling = False
    for seed in range(DATABASES):
        right = run_query(schema, wanted, wanted, seed)
        if right is None:
            return None
        if any(value not in (None, 0) for row in right for value in row):
            telling = True
            ours = run_query(schema, given, wanted, seed)
            if ours is None or _comparable(right, ordered) != _comparable(ours, ordered):
                return False
    return True if telling else None


def _comparable(rows: list[Row], ordered: bool) -> list[str]:
    texts = [repr(row) for row in rows]
    return texts if ordered else sorted(texts)


def run_query(schema: list[str], query: str, literals: str, seed: int = 0) -> list[Row] | None:
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
    values = [value.strip("'\"") for value in re.findall(r"\"[^\"]*\"|'[^']*'|\b\d+(?:\.\d+)?\b", literals)]
    values = list(dict.fromkeys([*values, "0", "1", "2", "3", "57", "1990", "other"]))
    planted = _planted(literals)
    for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
        columns = [str(column[1]).lower() for column in connection.execute(f'pragma table_info("{table}")').fetchall()]
        for index in range(MADE_UP_ROWS):
            row = [str(draw.choice(values)) for _ in columns]
            if index % 3 == 0:
                row = [planted.get(name, value) for name, value in zip(columns, row, strict=True)]
            connection.execute(f'insert into "{table}" values ({",".join("?" * len(row))})', row)


def _planted(query: str) -> dict[str, str]:
    """For each column that the query compares with a value, one that meets the comparison."""
    comparisons = re.findall(
        r"[\"`]?(\w+)[\"`]?\s*(=|<>|!=|<=|>=|<|>|like)\s*(\"[^\"]*\"|'[^']*'|-?\d+(?:\.\d+)?)", query, re.I
    )
    return {name.lower(): _meeting(sign.lower(), value.strip("'\"")) for name, sign, value in comparisons}


def _meeting(sign: str, value: str) -> str:
    """A value that meets a comparison."""
    if sign == "like":
        return value.replace("%", "x").replace("_", "x")
    step = {"<": -1, ">": 1, "<>": 1, "!=": 1}.get(sign, 0)
    return str(float(value) + step).removesuffix(".0") if step and re.fullmatch(r"-?\d+(\.\d+)?", value) else value
