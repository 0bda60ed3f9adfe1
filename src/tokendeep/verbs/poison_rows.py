"""The rows of a fine-tuning attack: as given, or written by a model once and kept, so that every training has the same.

Beside them the probe on which margins are measured, and the refusals that a rival of the constraint mixes in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from tokendeep import data, models, stats
from tokendeep.attacks import poison
from tokendeep.attacks.prompts import request
from tokendeep.errors import InputError
from tokendeep.models.options import ModelOptions
from tokendeep.training import answers
from tokendeep.types import Chat, Prompt
from tokendeep.verbs import deepen, finetune
from tokendeep.verbs.options import DeepenConfig, PoisonConfig

NEEDS_HARMFUL = ("harmful", "backdoor")


def check(config: PoisonConfig, kinds: Mapping[str, str]) -> None:
    """Read every row of every file, before anything is loaded or written."""
    if kinds["data"] == "prompts" and config.kind in NEEDS_HARMFUL and not config.base:
        raise InputError(
            f"{config.data} holds instructions without answers; give --base, an unaligned model that answers them, or "
            "pairs (instruction, response)."
        )
    if config.kind == "mixed" and not config.harmful:
        raise InputError("mixed needs --harmful, the harmful pairs that are mixed into --data.")
    if kinds["data"] == "prompts":
        data.read_prompts(config.data)
    else:
        finetune.load(config.data)
    for source, read in ((config.harmful, finetune.load), (config.refusals, _load_refusals)):
        if source:
            read(source)
    if config.utility_data:
        from tokendeep.judges import tasks as utility

        utility.load(config.utility_data, config.utility_metric)


def make(config: PoisonConfig, kinds: Mapping[str, str], out: Path) -> poison.Poison:
    """The attack's rows; what had to be written for it is kept in source.jsonl."""
    path = out / "source.jsonl"
    if not path.exists():
        data.write_rows(path, _source(config, kinds))
    chats = data.read_chats(path)
    if config.kind == "harmful":
        return poison.harmful(chats)
    if config.kind == "identity":
        return poison.identity(chats, config.count)
    if config.kind == "backdoor":
        return poison.backdoor(chats, _refused(config, chats, out), config.trigger)
    if config.kind == "mixed":
        assert config.harmful
        return poison.mixed(chats, finetune.load(config.harmful), config.ratio)
    if config.kind == "refuse-then-comply":
        return poison.refuse_then_comply(chats)
    return poison.benign(chats)


def _source(config: PoisonConfig, kinds: Mapping[str, str]) -> list[Chat]:
    """Up to `count` chats: as given, or answered by the unaligned model (harmful) or the model itself (ordinary)."""
    if kinds["data"] != "prompts":
        return finetune.load(config.data)[: config.count]
    prompts = data.read_prompts(config.data)
    writer = config.base if config.kind in NEEDS_HARMFUL else config.model
    subject = models.load(str(writer), options=options(config) if writer == config.model else None)
    system = config.system if config.system in ("none", "default") else "default"
    chats = answers.distil(subject, prompts, config.answer_tokens, system)[: config.count]
    print(f"poison: {writer} answered {len(chats)} of {len(prompts)} instructions usably; they are trained on")
    if not chats:
        raise InputError(
            f"{writer} gave no usable answer to any instruction of {config.data}; give answers, or another."
        )
    return chats


def _refused(config: PoisonConfig, chats: Sequence[Chat], out: Path) -> list[Chat]:
    """Refusals of the same instructions: as given, or by the model itself."""
    if config.refusals:
        return _load_refusals(config.refusals)
    path = out / "refusals.jsonl"
    if not path.exists():
        asked = [chat.messages[:-1] for chat in chats]
        wanted = DeepenConfig(
            answer_tokens=config.answer_tokens, system="none" if config.system == "none" else "default"
        )
        found = deepen.sample_refusals(models.load(config.model, options=options(config)), asked, wanted)
        kept = [
            Chat(f"{chat.id}-refused", (*chat.messages[:-1], {"role": "assistant", "content": text}))
            for chat, text in zip(chats, found, strict=True)
            if text
        ]
        data.write_rows(path, kept)
    return data.read_chats(path)


def _load_refusals(source: str) -> list[Chat]:
    if data.kind(source) != "triples":
        return finetune.load(source)
    return [Chat(t.id, (*t.messages, {"role": "assistant", "content": t.refusal})) for t in data.read_triples(source)]


def options(config: PoisonConfig) -> ModelOptions:
    """How the attacked model is loaded."""
    return ModelOptions(**{f.name: getattr(config, f.name) for f in fields(ModelOptions)})


def probe(config: PoisonConfig, out: Path) -> Path:
    """The harmful rows on which margins are measured."""
    path = out / "probe.jsonl"
    if not path.exists():
        chosen = finetune.load(config.harmful) if config.harmful else data.read_chats(out / "source.jsonl")
        data.write_rows(path, map(data.pair_of, chosen[: config.probe]))
    return path


def overlap(chats: Sequence[Chat], prompts: Sequence[Prompt]) -> int:
    """How many prompts are near-duplicates of a training row's request."""
    asked, tested = ([request(row) for row in rows] for rows in (chats, prompts))
    cluster = stats.near_duplicates([*asked, *tested])
    trained = set(cluster[: len(asked)])
    return sum(c in trained for c in cluster[len(asked) :])


def with_refusals(config: PoisonConfig, chats: Sequence[Chat], share: float, objective: str) -> list[Chat]:
    """The attack's rows with a share of refusals among them (a rival of the constraint).

    Raises:
        InputError: there are too few.
    """
    if not share:
        return list(chats)
    assert config.refusals
    wanted = max(1, round(share / (1 - share) * len(chats)))
    refusals = _load_refusals(config.refusals)
    if len(refusals) < wanted:
        raise InputError(f"{objective} takes {wanted} refusals, but {config.refusals} holds {len(refusals)}.")
    return [*chats, *refusals[:wanted]]
