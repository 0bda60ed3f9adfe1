"""Judged samples -> outcomes.jsonl, which holds the hashes of requests and no text.

A request is hashed as the data holds it, whatever an attack made of it: the file of an earlier look says it again.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tokendeep import runs
from tokendeep.records import VALUES, Outcome, Outcomes
from tokendeep.types import Message, Prompt, Sample


def keys(prompts: Iterable[Prompt]) -> dict[str, str]:
    """Id of a prompt -> the hash of its request."""
    return {prompt.meta.get("prompt_id", prompt.id): key(_last(prompt.messages)) for prompt in prompts}


def key(request: str) -> str:
    """A request by its hash, as others make it: without spaces at its ends."""
    return runs.sha256_text(request.strip())


def _last(messages: Iterable[Message]) -> str:
    asked = [str(message["content"]) for message in messages if message["role"] == "user"]
    return asked[-1] if asked else ""


def write(folder: Path, samples: Iterable[Sample], known: Mapping[str, str]) -> None:
    """Write the file; `known` are the hashes by the ids of prompts."""
    rows = (_row(one, known.get(one.prompt_id) or key(one.instruction)) for one in samples)
    runs.write_jsonl(folder / Outcomes.FILE, (row.dump() for row in rows))


def again(folder: Path, samples: Iterable[Sample]) -> None:
    """Write it anew with what further judges have found. A run of an older version has none, and gets none."""
    if (folder / Outcomes.FILE).is_file():
        write(folder, samples, {row.id: row.prompt for row in Outcomes.load(folder)})


def _row(one: Sample, prompt: str) -> Outcome:
    return Outcome.model_validate(
        {
            "prompt": prompt, "id": one.prompt_id, "category": one.category, "attack": one.attack, "params": one.params,
            "seed": one.seed, "model": one.model, "judge": one.judge, "outcome": one.outcome,
            "value": VALUES.get(one.outcome), "score": one.score, "truncated": one.truncated,
        }
    )  # fmt: skip
