"""Utility of a tuned model on its task: answers to held-out rows, scored by the metric the paper uses for it.

A metric is a line in METRICS. Knows how to ask and to score; knows nothing of training or safety.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokendeep import chat, data, stats
from tokendeep.engines import local
from tokendeep.engines.base import Request
from tokendeep.errors import InputError
from tokendeep.judges import sql as queries
from tokendeep.runs.identity import sha256_text, system_name
from tokendeep.types import Decoding, Pair, Subject

Scores = dict[str, float | None]  # `score` (0 to 1), and further figures; None where one cannot be told


@dataclass(frozen=True)
class Metric:
    """How answers are scored.

    Args:
        score: (row, answer) -> Scores.
        lacks: what a row lacks, so that no answer to it can be scored; None where it lacks nothing.
    """

    score: Callable[[Pair, str], Scores]
    lacks: Callable[[Pair], str | None] = lambda pair: None


def rouge1(pair: Pair, answer: str) -> Scores:
    """ROUGE-1 F1, 0 to 1, with the Porter stemmer, as the paper's code (SQL and SAMSum)."""
    from rouge_score.rouge_scorer import RougeScorer

    return {"score": float(RougeScorer(["rouge1"], use_stemmer=True).score(pair.response, answer)["rouge1"].fmeasure)}


def gsm8k(pair: Pair, answer: str) -> Scores:
    """1 where the number behind the last #### equals the row's, after removing commas and currency signs."""
    wanted, given = number(pair.response), number(answer)
    return {"score": float(given is not None and given == wanted)}


def number(text: str) -> float | None:
    """The number behind the last ####; None where there is none, or more than a number."""
    if "####" not in text:
        return None
    line = (text.rpartition("####")[2].strip().splitlines() or [""])[0]
    plain = re.sub(r"[*$£€,\s]", "", line).rstrip(".")
    return float(plain) if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", plain) else None


def sql(pair: Pair, answer: str) -> Scores:
    """ROUGE-1 as in the paper; beside it `exact` and `executed`.

    `exact`: the same query but for blank space, case and a final semicolon. `executed`: the same rows in sqlite on made-up
    data, None where the right query gives none there.
    """
    query, request = queries.statement(answer), "\n".join(str(message["content"]) for message in pair.messages)
    executed = queries.same_result(queries.tables(request), pair.response, query)
    return {
        **rouge1(pair, answer),
        "exact": float(queries.normal(query) == queries.normal(pair.response)),
        "executed": None if executed is None else float(executed),
    }


METRICS = {
    "rouge1": Metric(rouge1),
    "gsm8k": Metric(gsm8k, lambda pair: "number behind ####" if number(pair.response) is None else None),
    "sql": Metric(sql),
}


def check(metric: str) -> None:
    """Raise InputError for an unknown metric."""
    if metric not in METRICS:
        raise InputError(f"--utility-metric is {metric!r}, but must be one of {', '.join(METRICS)}.")


def measure(
    subject: Subject, pairs: Sequence[Pair], metric: str, *, system: str = "default", tokens: int = 128,
    batch_size: int = 32,
) -> dict[str, Any]:  # fmt: skip
    """Greedy answers to rows of `load`, scored.

    Returns:
        `score` (mean, 0 to 1) with a bootstrap interval `low`, `high` (None where there is one row), `n`, `truncated` answers,
        further means (`exact`, `executed` of sql), the scores of all `rows`, and how they were `asked`, without texts.
    """
    prompts = [chat.prompt_ids(subject.tokenizer, chat.with_system(pair.messages, system)) for pair in pairs]
    requests = [Request(tuple(ids), Decoding(max_new_tokens=tokens)) for ids in prompts]
    answers = local.generate(subject, requests, batch_size=batch_size)
    rows = [METRICS[metric].score(pair, answer.text) for pair, answer in zip(pairs, answers, strict=True)]
    scores = _values(rows, "score")
    low, high = stats.bootstrap(scores) if len(scores) > 1 else (None, None)
    more = {name: _values(rows, name) for name in rows[0] if name != "score"}
    return {
        "metric": metric,
        "score": float(np.mean(scores)),
        "low": low,
        "high": high,
        "n": len(rows),
        "truncated": sum(answer.truncated for answer in answers),
        **{name: float(np.mean(values)) for name, values in more.items() if values},
        "asked": {
            "prompts": sha256_text(json.dumps([[pair.id, pair.messages, pair.response] for pair in pairs])),
            "system": system_name(system),
            "template": chat.template_hash(subject.tokenizer),
            "tokens": tokens,
            "dtype": subject.dtype,
        },
        "rows": [{"id": pair.id, **row} for pair, row in zip(pairs, rows, strict=True)],
    }


def _values(rows: list[Scores], name: str) -> list[float]:
    """The figure of each row that has it."""
    return [value for row in rows if (value := row[name]) is not None]


def describe(measured: dict[str, Any]) -> str:
    """One line: the score with its interval."""
    more = "".join(f", {name} {measured[name]:.2f}" for name in ("exact", "executed") if name in measured)
    ends = "" if measured["low"] is None else f" ({measured['low']:.3f} to {measured['high']:.3f})"
    return f"{measured['score']:.3f}{ends}, n = {measured['n']}{more}, {measured['truncated']} cut off"


def load(source: str, metric: str) -> list[Pair]:
    """The rows that are asked and scored; every one is checked.

    Raises:
        InputError: an unknown metric, rows without answers, or answers that the metric cannot score.
    """
    check(metric)
    if (kind := data.kind(source)) not in ("pairs", "chats"):
        raise InputError(f"{source} holds {kind}, but a utility is measured on rows with the right answers.")
    pairs = data.read_pairs(source) if kind == "pairs" else list(map(data.pair_of, data.read_chats(source)))
    for pair in pairs:
        if missing := METRICS[metric].lacks(pair):
            raise InputError(f"{source}: row {pair.id} has no {missing}, so answers to it cannot be scored.")
    return pairs
