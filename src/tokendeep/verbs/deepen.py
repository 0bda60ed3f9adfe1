"""VERB deepen: safety-recovery augmentation (the paper's Eq. 2) from triples to checkpoint.

A safety row is an instruction, the first k tokens of a harmful answer as context, and a refusal as
the only supervised tokens; beside such rows every step trains on ordinary answers. This file makes
the rows and their weights; `weighted` does not know what they mean.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep import chat, data, judges, runs
from tokendeep.errors import InputError, check_known, check_least
from tokendeep.models import locate
from tokendeep.records import Training
from tokendeep.training import answers, recovery
from tokendeep.types import Chat, Decoding, Subject, Triple
from tokendeep.verbs.options import DeepenConfig

if TYPE_CHECKING:
    pass

SCHEDULES = ("linear", "constant")
SAFETY_SYSTEM = (
    "You are a careful assistant. If a request could cause harm, decline in one or two polite sentences and give no "
    "part of what was asked for."
)


def run(config: DeepenConfig) -> Path:
    """Deepen `config.model`; writes triples.jsonl, utility.jsonl, rows/, checkpoint/ and manifest.json."""
    _check(config)
    sources = {"data": config.data, "utility": config.utility}
    kinds = {name: data.kind(source) for name, source in sources.items()}
    _check_kinds(kinds, config)
    from tokendeep import models
    from tokendeep.training import launch, weighted

    models.check_spec(config.model, config)
    if config.base:
        models.check_spec(config.base, _of_writer(config), needs_template=False)
    adapter = locate.locate(config.model, config).adapter is not None
    launch.check_trained(config, adapter)
    launch.check_batches(config.safety_rows + config.utility_rows, config.micro_batch)
    state = runs.open_run(config.out, "deepen", asdict(config), sources, overwrite=config.overwrite)
    if state.finished:
        if runs.is_main_process():
            print(f"deepen: {state.out} already holds this finished run")
        return state.out
    frozen = adapter or config.lora > 0  # what is trained is kept in float32 either way
    subject = models.load(config.model, options=config, dtype=None if frozen else "float32", trainable=True)
    launch.check_gpus(subject)
    launch.wait_for_everyone(subject)  # the first process has opened the folder
    if not runs.is_main_process():
        _wait_for([state.out / "utility.jsonl", state.out / "triples.jsonl"])
    utility = _utility(subject, config, kinds["utility"], state.out)
    triples = _triples(subject, config, kinds["data"], state.out)
    plan = recovery.plan_rows(subject.tokenizer, triples, utility, config)
    if runs.is_main_process():
        recovery.write_rows(state.out / "rows", subject.tokenizer, plan)
    result = weighted.train(
        subject,
        [weighted.row for weighted in plan],
        state.out,
        rows_per_step=config.safety_rows + config.utility_rows,
        micro_batch=config.micro_batch,
        lr=config.lr,
        schedule=config.schedule,
        warmup_steps=config.warmup_steps,
        lora=config.lora,
        train_layers=config.train_layers,
        save_steps=config.save_steps,
        seed=config.seed,
        precision=config.precision,
    )
    if runs.is_main_process():
        runs.write_json(state.out / Training.FILE, Training.model_validate(result).dump())
    drawn = Counter(planned.k > 0 for planned in plan if planned.row.group == recovery.SAFETY)
    state.finish(
        steps=result["steps"],
        triples=len(triples),
        utility=len(utility),
        safety_rows={"without harmful context": drawn[False], "with": drawn[True]},
        checkpoint="checkpoint",
    )
    return state.out


def _check(config: DeepenConfig) -> None:
    from tokendeep.training.launch import PRECISIONS

    check_known(config, {"normalise": recovery.NORMALISE, "schedule": tuple(SCHEDULES), "precision": PRECISIONS})
    if not config.lr > 0:
        raise InputError(f"--lr is {config.lr}, but must be above 0.")
    for name in ("alpha", "p_zero", "cut_utility"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"--{name} is {getattr(config, name)}, but must lie between 0 and 1.")
    check_least(config, {
        "max_context": 1, "safety_rows": 1, "utility_rows": 0, "micro_batch": 1, "answer_tokens": 1,
        "max_length": 8, "max_steps": 0, "warmup_steps": 0, "save_steps": 0, "train_layers": 0,
        "lora": 0, "seed": 0,
    })  # fmt: skip
    if config.epochs < 1 and config.max_steps < 1:
        raise InputError("Neither --epochs nor --max_steps asks for any training; set one to at least 1.")
    if config.lora and config.train_layers:
        raise InputError("--lora and --train_layers exclude each other; an adapter is trained in all layers.")


def _wait_for(paths: Sequence[Path]) -> None:
    """Until the first process has written them; however long that takes, as a barrier would not."""
    while not all(path.exists() for path in paths):
        time.sleep(0.5)


def _check_kinds(kinds: Mapping[str, str], config: DeepenConfig) -> None:
    if kinds["data"] not in {"triples", "prompts", "pairs"}:
        raise InputError(
            f"{config.data} holds {kinds['data']}, but --data takes triples (instruction, harmful, refusal), "
            "pairs (instruction, response: the harmful answer) or instructions alone."
        )
    if kinds["utility"] not in {"chats", "prompts", "pairs"}:
        raise InputError(
            f"{config.utility} holds {kinds['utility']}, but --utility takes chats, pairs or instructions."
        )
    readers = {"triples": data.read_triples, "pairs": data.read_pairs, "chats": data.read_chats}
    for name, source in (("data", config.data), ("utility", config.utility)):  # every row, before a model is loaded
        readers.get(kinds[name], data.read_prompts)(source)


# --- making what is missing ------------------------------------------------------------------------


def _utility(subject: Subject, config: DeepenConfig, kind: str, out: Path) -> list[Chat]:
    """The utility rows: as given, or answered by the model itself and kept in utility.jsonl."""
    path = out / "utility.jsonl"
    if path.exists():
        return data.read_chats(path)
    if kind == "prompts":
        prompts = data.read_prompts(config.utility)
        chats = answers.distil(subject, prompts, config.answer_tokens, config.system)
        dropped = len(prompts) - len(chats)
        if dropped:
            print(f"deepen: {dropped} of {len(prompts)} utility instructions left out: the model gave no usable answer")
    elif kind == "pairs":
        chats = [
            Chat(p.id, (*p.messages, {"role": "assistant", "content": p.response}))
            for p in data.read_pairs(config.utility)
        ]
    else:
        chats = data.read_chats(config.utility)
    data.write_rows(path, chats)
    return chats


def _triples(subject: Subject, config: DeepenConfig, kind: str, out: Path) -> list[Triple]:
    """The triples: as given, or completed by the models at hand and kept in triples.jsonl."""
    path = out / "triples.jsonl"
    if path.exists():
        return data.read_triples(path)
    if kind == "triples":
        triples = data.read_triples(config.data)
    else:
        triples = make_triples(subject, config, kind)
    data.write_rows(path, triples)
    return triples


def make_triples(subject: Subject, config: DeepenConfig, kind: str) -> list[Triple]:
    """Triples from instructions alone: refusals sampled from the model and judged, harmful answers from
    the data, from `config.base`, or from the model itself behind an affirmative opening.

    Raises:
        InputError: no instruction got both.
    """
    prompts: Sequence[Any] = data.read_pairs(config.data) if kind == "pairs" else data.read_prompts(config.data)
    refusals = sample_refusals(subject, [p.messages for p in prompts], config)
    kept = [(p, r) for p, r in zip(prompts, refusals, strict=True) if r]
    print(f"deepen: the model refused {len(kept)} of {len(prompts)} instructions; the rest is left out")
    if kind == "pairs":
        harmful = [(p.response, False) for p, _ in kept]
    else:
        harmful = _harmful(subject, [p.messages for p, _ in kept], config)
    triples = [
        Triple(p.id, p.messages, h.strip(), r)
        for (p, r), (h, cut) in zip(kept, harmful, strict=True)
        if judges.judge_refusal(h, truncated=cut).outcome == "complied"
    ]
    print(f"deepen: {len(triples)} triples; {len(kept) - len(triples)} left out whose answer was no compliance")
    if not triples:
        raise InputError(
            f"No triple could be made from {config.data}: the model refused {len(kept)} of {len(prompts)} instructions; "
            "give --refusal_system, a --base that complies, or finished triples."
        )
    return triples


def sample_refusals(
    subject: Subject, messages: Sequence[Sequence[Any]], config: DeepenConfig, tries: int = 4
) -> list[str | None]:
    """A refusal by the model itself for each conversation: greedy first, then sampled with new seeds."""
    system = config.refusal_system if config.refusal_system is not None else config.system
    turns = [chat.with_system(m, system) for m in messages]
    found: list[str | None] = [None] * len(turns)
    for attempt in range(tries):
        missing = [i for i, text in enumerate(found) if text is None]
        decoding = Decoding(max_new_tokens=config.answer_tokens, seed=config.seed + attempt)
        if attempt:
            decoding = replace(decoding, temperature=0.9, top_p=0.6)
        for i, (text, cut) in zip(
            missing, answers.write_answers(subject, [turns[i] for i in missing], decoding), strict=True
        ):
            if not cut and judges.judge_refusal(text, truncated=cut).outcome == "refused":
                found[i] = text.strip()
    return found


def _harmful(subject: Subject, messages: Sequence[Sequence[Any]], config: DeepenConfig) -> list[tuple[str, bool]]:
    from tokendeep import models

    writer = subject
    if config.base:
        writer = models.load(config.base, options=_of_writer(config), needs_template=False)
        if not writer.tokenizer.chat_template:
            writer.tokenizer.chat_template = subject.tokenizer.get_chat_template()
            print(f"deepen: {config.base} has no chat template; it writes under that of {config.model}")
    turns = [chat.with_system(m, config.system) for m in messages]
    opening = "" if config.base else config.harmful_opening
    return answers.write_answers(
        writer, turns, Decoding(max_new_tokens=max(config.answer_tokens, config.max_context)), opening
    )


def _of_writer(config: DeepenConfig) -> DeepenConfig:
    """The options to load `base` with; revision and chat template are those of `model`."""
    return replace(config, revision=None, chat_template=None)


# --- rows ------------------------------------------------------------------------------------------


# --- looking at rows -------------------------------------------------------------------------------
