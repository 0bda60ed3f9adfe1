"""The prefixes of a rank-assisted attack: searched once with the victim, kept on disk as they are found.

The one attack whose prompts depend on the victim's own logits, so it needs the weights before its task can be built.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from tokendeep import chat, models, runs
from tokendeep.errors import InputError, check_least
from tokendeep.runs import parts
from tokendeep.types import Prompt, Subject
from tokendeep.verbs.options import AttackConfig


def check(config: AttackConfig) -> None:
    """Raises InputError for a setting out of range or an unaligned model that cannot be there."""
    check_least(config, dict.fromkeys(("rank_top", "rank_length", "rank_budget", "rank_base_top"), 1))
    if config.rank_base:
        models.check_spec(config.rank_base, config, needs_template=False)


def attacked(
    prompts: Sequence[Prompt], subject: Subject, config: AttackConfig, state: runs.Run
) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts with their prefixes, and what finding them has cost.

    Raises:
        InputError: the unaligned model has another vocabulary.
    """
    from tokendeep.attacks import rank_prefill as ranks

    scorer: ranks.Scorer = ranks.NotRefusing(subject.tokenizer)
    if config.rank_base:
        base = models.load(config.rank_base, options=replace(config, chat_template=None), needs_template=False)
        models.check_same_vocabulary(subject, base)
        scorer = ranks.Likely(base, config.rank_base_top)
    settings = ranks.Settings(config.rank_top, config.rank_length, config.rank_budget)
    kept = parts.Parts(parts.folder(state) / "walks.jsonl")
    walks, seconds = [], 0.0
    for number, prompt in enumerate(tqdm(prompts, desc="rank-prefill", unit="prompt")):
        if number not in kept.done:
            start = time.perf_counter()
            try:
                found = ranks.walk(subject, chat.prompt_ids(subject.tokenizer, list(prompt.messages)), scorer, settings)
            except InputError as error:
                raise InputError(f"row {prompt.id}: {error}") from error
            took = time.perf_counter() - start
            kept.add({number: [took, found.passes, found.backtracks, found.found, *found.ids]})
        took, passes, backtracks, whole, *ids = kept.done[number]
        walks.append(ranks.Walk(tuple(map(int, ids)), int(passes), int(backtracks), bool(whole)))
        seconds += took
    cost = {
        "passes": sum(w.passes for w in walks), "backtracks": sum(w.backtracks for w in walks),
        "tokens": sum(len(w.ids) for w in walks), "whole": sum(w.found for w in walks), "prompts": len(walks),
        "scorer": "base" if config.rank_base else "judge", "seconds": round(seconds, 3),
    }  # fmt: skip
    return [ranks.attacked(p, w, subject.tokenizer) for p, w in zip(prompts, walks, strict=True)], cost
