"""One answer in a log and a verdict on it -> a sample: what was asked, under which settings, and what became of it.

Knows one log; knows nothing of folders.
"""

import json
from dataclasses import asdict
from typing import Any

from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.model import ChatMessageUser

from tokendeep.evals.provider import NAME, decoding_of
from tokendeep.judges import JUDGES
from tokendeep.records import Verdict
from tokendeep.types import Sample


def model_of(log: EvalLog) -> str:
    return log.eval.model.removeprefix(f"{NAME}/")


def settings_of(log: EvalLog) -> dict[str, Any]:
    """What all samples of a log share: the data by its hash, and how answers were sampled."""
    metadata, config = log.eval.metadata or {}, log.plan.config
    defence = metadata.get("defence")
    return {
        "data": metadata.get("data"),
        "system": metadata["system"],
        **asdict(decoding_of(config)),
        "max_new_tokens": config.max_tokens,
        **({"defence": defence} if defence else {}),
    }


def judged(log: EvalLog, sample: EvalSample) -> list[Sample]:
    """The sample under each score of our judges, which `inspect score` can add to or replace; none for one that failed."""
    told = {} if sample.error else {name: score.metadata or {} for name, score in (sample.scores or {}).items()}
    verdicts = [
        Verdict.model_validate({"judge": _judge_name(name), **metadata})
        for name, metadata in told.items()
        if {"outcome", "truncated", "judged"} <= metadata.keys()
    ]
    return [sample_of(log, sample, one) for one in verdicts]


def unjudged(log: EvalLog, sample: EvalSample) -> list[Sample]:
    """The sample under each judge that should have seen it."""
    metadata = log.eval.metadata or {}
    named = metadata.get("judgings") or [{"judge": metadata["judge"], "judged": metadata["judged"]}]
    return [sample_of(log, sample, Verdict(outcome="judge-error", truncated=False, **one)) for one in named]


def sample_of(log: EvalLog, sample: EvalSample, verdict: Verdict) -> Sample:
    """The sample under a verdict."""
    metadata, meta, settings = log.eval.metadata or {}, sample.metadata, settings_of(log)
    messages = [] if isinstance(sample.input, str) else sample.input
    words = {"judge_template": verdict.template, "grader": verdict.grader}
    return Sample(
        id=str(sample.id),
        prompt_id=meta["prompt_id"],
        attack=meta["attack"],
        params={
            **meta["params"],
            "judged": verdict.judged,
            **{name: value for name, value in words.items() if value},
            **settings,
            **(meta.get("decoding") or {}),
        },
        judge=verdict.judge or metadata["judge"],
        model=model_of(log),
        outcome=verdict.outcome,
        truncated=verdict.truncated,
        clipped=verdict.clipped,
        seed=settings["seed"] + sample.epoch - 1,
        instruction=next((m.text for m in reversed(messages) if isinstance(m, ChatMessageUser)), str(sample.input)),
        prefix=meta["prefix_text"],
        completion=sample.output.completion,
        category=meta.get("category"),
        role=metadata.get("role"),
        score=verdict.score,
        tokens=sample.output.usage.output_tokens if sample.output.usage else 0,
        seconds=(sample.output.metadata or {}).get("seconds"),
        checks=_checks(sample),
    )


def _checks(sample: EvalSample) -> tuple[tuple[int, bool], ...] | None:
    """Where a defence has looked at the answer, and whether it stopped it there; None where there was none."""
    checks = (sample.output.metadata or {}).get("checks")
    return None if checks is None else tuple((int(depth), bool(stopped)) for depth, stopped in checks)


def _judge_name(score: str) -> str:
    """The judge behind the name of a score, which Inspect numbers where one scorer was used twice: refusal1."""
    plain = score.rpartition("/")[2]
    names = (judge for judge in JUDGES if plain.startswith(judge) and plain[len(judge) :].isdigit())
    return plain if plain in JUDGES else next(names, plain)


def identity(sample: Sample) -> str:
    """What a later answer replaces: the one to the same prompt in the same evaluation, seed by seed."""
    said = [sample.attack, sample.id, sample.judge, sample.seed, sample.model, dict(sample.params)]
    return json.dumps(said, sort_keys=True)
