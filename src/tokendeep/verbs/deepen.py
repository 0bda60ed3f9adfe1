"""VERB deepen: safety-recovery augmentation (the paper's Eq. 2) from triples to checkpoint.

A safety row is an instruction, the first k tokens of a harmful answer as context, and a refusal as
the only supervised tokens; beside such rows every step trains on ordinary answers. This file makes
the rows and their weights; `weighted` does not know what they mean.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokendeep import chat, data, runs
from tokendeep.errors import InputError, check_known, check_least
from tokendeep.judges import refusal
from tokendeep.models import locate
from tokendeep.training.rows import show
from tokendeep.types import IGNORE, Chat, Decoding, Encoded, Prompt, Subject, Triple
from tokendeep.verbs.options import DeepenConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokendeep.engines.local import Completion, Request
    from tokendeep.training.weighted import WeightedRow

SAFETY, UTILITY = "safety", "utility"
NORMALISE = ("tokens", "rows", "batch")
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
    plan = plan_rows(subject.tokenizer, triples, utility, config)
    if runs.is_main_process():
        write_rows(state.out / "rows", subject.tokenizer, plan)
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
    )
    if runs.is_main_process():
        runs.write_json(state.out / "training.json", result)
    drawn = Counter(planned.k > 0 for planned in plan if planned.row.group == SAFETY)
    state.finish(
        steps=result["steps"],
        triples=len(triples),
        utility=len(utility),
        safety_rows={"without harmful context": drawn[False], "with": drawn[True]},
        checkpoint="checkpoint",
    )
    return state.out


def _check(config: DeepenConfig) -> None:
    check_known(config, {"normalise": NORMALISE, "schedule": tuple(SCHEDULES)})
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


def _answers(
    subject: Subject,
    messages: Sequence[Sequence[Any]],
    decoding: Decoding,
    opening: str = "",
    batch_size: int = 96,
) -> list[tuple[str, bool]]:
    """What the model answers to each conversation (behind `opening`), and whether it was cut off."""
    from tokendeep.engines import local as generation

    openings, requests = [], []
    for turns in messages:
        ids = chat.response_ids(subject.tokenizer, turns, opening, end=False) if opening else []
        openings.append(ids)
        requests.append(generation.Request((*chat.prompt_ids(subject.tokenizer, turns), *ids), decoding))
    done = _completed(subject, requests, batch_size)
    return [
        (opening + _behind(subject.tokenizer, ids, completion.ids), completion.truncated)
        for ids, completion in zip(openings, done, strict=True)
    ]


def _behind(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` where they stand behind `before`: alone, many tokenizers take their first space away."""
    whole = str(tokenizer.decode([*before, *ids], skip_special_tokens=True))
    return whole[len(str(tokenizer.decode(list(before), skip_special_tokens=True))) :] if before else whole


def _completed(subject: Subject, requests: Sequence[Request], batch_size: int) -> list[Completion]:
    """All completions; where the memory does not hold `batch_size` rows at once, those left with half as many."""
    from tqdm import tqdm

    from tokendeep.engines import local as generation

    done: dict[int, Completion] = {}
    with tqdm(total=len(requests), desc="answers", unit="answer", disable=len(requests) < 8) as bar:
        while len(done) < len(requests):
            left = [i for i in range(len(requests)) if i not in done]

            def keep(index: int, completion: Completion, left: list[int] = left) -> None:
                done[left[index]] = completion
                bar.update()

            try:
                generation.generate(subject, [requests[i] for i in left], batch_size=batch_size, on_done=keep)
            except InputError as error:
                if batch_size == 1 or error.__cause__ is None or not runs.memory_full(error.__cause__):
                    raise
                batch_size //= 2
    return [done[i] for i in range(len(requests))]


def _utility(subject: Subject, config: DeepenConfig, kind: str, out: Path) -> list[Chat]:
    """The utility rows: as given, or answered by the model itself and kept in utility.jsonl."""
    path = out / "utility.jsonl"
    if path.exists():
        return data.read_chats(path)
    if kind == "prompts":
        prompts = data.read_prompts(config.utility)
        chats = distil(subject, prompts, config.answer_tokens, config.system)
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
    write_chats(path, chats)
    return chats


def write_chats(path: Path, chats: Sequence[Chat]) -> None:
    """Chats as `data.read_chats` reads them, for the owner alone."""
    runs.write_jsonl(
        path,
        [{"id": c.id, "messages": list(c.messages), "meta": {"truncated": c.truncated}} for c in chats],
        private=True,
    )


def distil(subject: Subject, prompts: Sequence[Prompt], tokens: int, system: str = "default") -> list[Chat]:
    """Ordinary answers of the model itself (greedy); empty, degenerate and refusing ones are left out."""
    messages = [chat.with_system(p.messages, system) for p in prompts]
    answers = _answers(subject, messages, Decoding(max_new_tokens=tokens))
    return [
        Chat(prompt.id, (*prompt.messages, {"role": "assistant", "content": text.strip()}), truncated)
        for prompt, (text, truncated) in zip(prompts, answers, strict=True)
        if refusal.judge(text, truncated=truncated).outcome == "complied"
    ]


def _triples(subject: Subject, config: DeepenConfig, kind: str, out: Path) -> list[Triple]:
    """The triples: as given, or completed by the models at hand and kept in triples.jsonl."""
    path = out / "triples.jsonl"
    if path.exists():
        return data.read_triples(path)
    if kind == "triples":
        triples = data.read_triples(config.data)
    else:
        triples = make_triples(subject, config, kind)
    write_triples(path, triples)
    return triples


def write_triples(path: Path, triples: Sequence[Triple]) -> None:
    """Triples as `data.read_triples` reads them, for the owner alone."""
    rows = [{"id": t.id, "messages": list(t.messages), "harmful": t.harmful, "refusal": t.refusal} for t in triples]
    runs.write_jsonl(path, rows, private=True)


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
        if refusal.judge(h, truncated=cut).outcome == "complied"
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
        for i, (text, cut) in zip(missing, _answers(subject, [turns[i] for i in missing], decoding), strict=True):
            if not cut and refusal.judge(text, truncated=cut).outcome == "refused":
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
    return _answers(writer, turns, Decoding(max_new_tokens=max(config.answer_tokens, config.max_context)), opening)


def _of_writer(config: DeepenConfig) -> DeepenConfig:
    """The options to load `base` with; revision and chat template are those of `model`."""
    return replace(config, revision=None, chat_template=None)


# --- rows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A training row and where it came from: optimizer step, source row and harmful tokens kept."""

    step: int
    source: str
    k: int
    row: WeightedRow


def draw_context(seed: int, epoch: int, row: int, longest: int, p_zero: float, max_context: int) -> int:
    """k of the paper's Eq. 2: 0 with probability `p_zero`, else uniform on 1 .. min(max_context, longest).

    Keyed by (seed, epoch, row), so that neither the order of rows nor the number of processes changes it.
    """
    rng = np.random.default_rng([seed, epoch, row])
    if rng.random() < p_zero or longest < 1:
        return 0
    return int(rng.integers(1, min(max_context, longest), endpoint=True))


def recovery_row(
    tokenizer: PreTrainedTokenizerBase,
    triple: Triple,
    k: int,
    *,
    system: str = "default",
    max_length: int | None = None,
) -> Encoded:
    """Prompt and the first k harmful tokens as context, the refusal with its end of turn as labels."""
    messages = chat.with_system(triple.messages, system)
    context = harmful_ids(tokenizer, triple, system)[:k]
    return chat.encode(tokenizer, messages, triple.refusal, context_ids=context, max_length=max_length)


def harmful_ids(tokenizer: PreTrainedTokenizerBase, triple: Triple, system: str = "default") -> list[int]:
    """Token ids of the harmful answer without its end of turn."""
    return chat.response_ids(tokenizer, chat.with_system(triple.messages, system), triple.harmful, end=False)


def utility_row(
    tokenizer: PreTrainedTokenizerBase, row: Chat, cut: float, *, system: str = "default", max_length: int | None = None
) -> Encoded:
    """An ordinary answer; `cut` in (0, 1) makes that share of its tokens unsupervised context (0: none)."""
    messages, answer = chat.with_system(row.messages[:-1], system), row.messages[-1]["content"]
    encoded = chat.encode(tokenizer, messages, answer, max_length=max_length, end=not row.truncated)
    start = encoded.start
    skip = int(cut * (len(encoded.labels) - start - 1))
    return Encoded(encoded.input_ids, [IGNORE] * (start + skip) + encoded.labels[start + skip :])


def _stream(count: int, seed: int, tag: int) -> Iterator[tuple[int, int]]:
    """Endless (epoch, row): every epoch a new order of all rows, keyed by (seed, tag, epoch)."""
    epoch = 0
    while True:
        for index in np.random.default_rng([seed, tag, epoch]).permutation(count):
            yield epoch, int(index)
        epoch += 1


def plan_rows(
    tokenizer: PreTrainedTokenizerBase, triples: Sequence[Triple], utility: Sequence[Chat], config: DeepenConfig
) -> list[Planned]:
    """Every row of every optimizer step, in training order, each with its weight in the step's loss.

    Raises:
        InputError: no triples, or no utility rows where steps ask for some; a row that cannot be trained on.
    """
    if not triples or (config.utility_rows and not utility):
        raise InputError(
            f"There are {len(triples)} triples and {len(utility)} utility rows to train on; both are needed."
        )
    steps = config.max_steps or max(1, len(triples) * config.epochs // config.safety_rows)
    safety, ordinary = _stream(len(triples), config.seed, 1), _stream(max(len(utility), 1), config.seed, 2)
    longest = [len(harmful_ids(tokenizer, t, config.system)) for t in triples]
    options: dict[str, Any] = {"system": config.system, "max_length": config.max_length}
    _check_rows(tokenizer, triples, longest, utility if config.utility_rows else [], config)
    plan: list[Planned] = []
    for step in range(steps):
        drawn: list[tuple[str, str, int, Encoded]] = []
        for _ in range(config.safety_rows):
            epoch, i = next(safety)
            k = draw_context(config.seed, epoch, i, longest[i], config.p_zero, config.max_context)
            drawn.append((SAFETY, triples[i].id, k, recovery_row(tokenizer, triples[i], k, **options)))
        for _ in range(config.utility_rows):
            epoch, i = next(ordinary)
            rng = np.random.default_rng([config.seed, epoch, i, 3])
            cut = rng.random() if rng.random() < config.cut_utility else 0.0
            drawn.append((UTILITY, utility[i].id, 0, utility_row(tokenizer, utility[i], cut, **options)))
        plan += _weighted(step, drawn, config)
    return plan


def _check_rows(
    tokenizer: PreTrainedTokenizerBase,
    triples: Sequence[Triple],
    longest: Sequence[int],
    utility: Sequence[Chat],
    config: DeepenConfig,
) -> None:
    """Make every row once, with the most harmful tokens it can get: whether one fits must not hang on what is drawn.

    Raises:
        InputError: naming the row and where it comes from.
    """
    options: dict[str, Any] = {"system": config.system, "max_length": config.max_length}
    for triple, length in zip(triples, longest, strict=True):
        k = min(config.max_context, length) if config.p_zero < 1 else 0
        with _named(f"row {triple.id} of {config.data}, with {k} harmful tokens"):
            recovery_row(tokenizer, triple, k, **options)
    for row in utility:
        with _named(f"row {row.id} of {config.utility}"):
            utility_row(tokenizer, row, 0.0, **options)


@contextmanager
def _named(row: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{row}: {error}") from error


def _weighted(step: int, drawn: list[tuple[str, str, int, Encoded]], config: DeepenConfig) -> list[Planned]:
    """One step's rows, shortest first (micro-batches then pad least), with their weights."""
    from tokendeep.training.weighted import WeightedRow

    weights = step_weights([(group, _supervised(row)) for group, _, _, row in drawn], config.alpha, config.normalise)
    planned = [
        Planned(step, source, k, WeightedRow(row.input_ids, row.labels, weight, group))
        for (group, source, k, row), weight in zip(drawn, weights, strict=True)
    ]
    return sorted(planned, key=lambda p: len(p.row.input_ids))


def _supervised(row: Encoded) -> int:
    return sum(label != IGNORE for label in row.labels)


def step_weights(rows: Sequence[tuple[str, int]], alpha: float, normalise: str) -> list[float]:
    """What each supervised token of each row counts in the loss of one optimizer step.

    Args:
        rows: (group, supervised tokens) of all rows of the step, over all ranks and micro-batches.
        normalise: tokens: alpha / safety tokens and (1 - alpha) / utility tokens; rows: the same over
            rows (Eq. 2 literally: a row's NLL is a sum); batch: 1 / all tokens, alpha unused.
    """
    share = {SAFETY: alpha, UTILITY: 1 - alpha}
    if normalise == "batch":
        total = sum(tokens for _, tokens in rows)
        return [1 / total] * len(rows)
    counts: Counter[str] = Counter()
    for group, tokens in rows:
        counts[group] += tokens if normalise == "tokens" else 1
    return [share[group] / counts[group] for group, _ in rows]


# --- looking at rows -------------------------------------------------------------------------------


def write_rows(folder: Path, tokenizer: PreTrainedTokenizerBase, plan: Sequence[Planned], shown: int = 20) -> None:
    """rows/train.jsonl (every row as ids) and rows/preview.txt (the first rows rendered), for the owner alone."""
    runs.private_dir(folder)
    runs.write_jsonl(
        folder / "train.jsonl",
        [{"step": p.step, "source": p.source, "k": p.k, **asdict(p.row)} for p in plan],
        private=True,
    )
    text = [
        f"--- step {p.step}, {p.row.group}, source {p.source}, k {p.k}, weight {p.row.weight:.3g}\n{show(tokenizer, p.row)}\n"
        for p in plan[:shown]
    ]
    runs.write_text(folder / "preview.txt", "\n".join(text), private=True)
