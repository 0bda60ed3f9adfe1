"""Answers that a model writes for training rows: ordinary ones, refusals, harmful ones.

One place for all that train on generated answers. Knows how an answer is asked for, judged and kept; nothing of losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokendeep import chat, judges
from tokendeep.engines.base import Completion, Request
from tokendeep.errors import InputError, memory_full
from tokendeep.types import Chat, Decoding, Prompt, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_answers(
    subject: Subject,
    messages: Sequence[Sequence[Any]],
    decoding: Decoding,
    opening: str = "",
    batch_size: int = 96,
) -> list[tuple[str, bool]]:
    """What the model answers to each conversation (behind `opening`), and whether it was cut off."""
    openings, requests = [], []
    for turns in messages:
        ids = chat.response_ids(subject.tokenizer, turns, opening, end=False) if opening else []
        openings.append(ids)
        requests.append(Request((*chat.prompt_ids(subject.tokenizer, turns), *ids), decoding))
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
                if batch_size == 1 or error.__cause__ is None or not memory_full(error.__cause__):
                    raise
                batch_size //= 2
    return [done[i] for i in range(len(requests))]


def distil(subject: Subject, prompts: Sequence[Prompt], tokens: int, system: str = "default") -> list[Chat]:
    """Ordinary answers of the model itself (greedy); empty, degenerate and refusing ones are left out."""
    messages = [chat.with_system(p.messages, system) for p in prompts]
    answers = write_answers(subject, messages, Decoding(max_new_tokens=tokens))
    return [
        Chat(prompt.id, (*prompt.messages, {"role": "assistant", "content": text.strip()}), truncated)
        for prompt, (text, truncated) in zip(prompts, answers, strict=True)
        if judges.judge_refusal(text, truncated=truncated).outcome == "complied"
    ]


def sample_refusals(
    subject: Subject,
    messages: Sequence[Sequence[Any]],
    *,
    tokens: int,
    system: str = "default",
    seed: int = 0,
    tries: int = 4,
) -> list[str | None]:
    """A refusal by the model itself for each conversation: greedy first, then sampled with new seeds; None: it gave none.

    Args:
        tokens: longest answer; one that is cut off counts as none.
        system: system prompt under which they are sampled.
    """
    turns = [chat.with_system(m, system) for m in messages]
    refusals: list[str | None] = [None] * len(turns)
    for attempt in range(tries):
        missing = [i for i, text in enumerate(refusals) if text is None]
        decoding = Decoding(max_new_tokens=tokens, seed=seed + attempt)
        if attempt:
            decoding = replace(decoding, temperature=0.9, top_p=0.6)
        texts = write_answers(subject, [turns[i] for i in missing], decoding)
        for i, (text, cut) in zip(missing, texts, strict=True):
            if not cut and judges.judge_refusal(text, truncated=cut).outcome == "refused":
                refusals[i] = text.strip()
    return refusals
