"""Answers that a model writes for training rows: ordinary ones, refusals, harmful ones.

One place for all that train on generated answers. Knows how an answer is asked for, judged and kept; nothing of losses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tokendeep import chat, judges
from tokendeep.engines.base import Completion, Request
from tokendeep.errors import InputError, memory_full
from tokendeep.progress import Bar
from tokendeep.types import Chat, Decoding, Prompt, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokendeep.engines.server.engine import Served


def write_answers(
    subject: Subject | Served,
    messages: Sequence[Sequence[Any]],
    decoding: Decoding,
    opening: str | Sequence[str] = "",
    batch_size: int = 96,
    *,
    title: str = "answers",
    on_done: Callable[[int, str, bool], object] = lambda index, text, truncated: None,
) -> list[tuple[str, bool]]:
    """What the model answers to each conversation (behind `opening`), and whether it was cut off.

    Args:
        opening: how the answers begin: one for all, or one for each.
        title: what is being written, for the bar.
        on_done: called with the number of the conversation and its answer as each is there.
    """
    openings = [opening] * len(messages) if isinstance(opening, str) else opening
    begun = [
        chat.response_ids(subject.tokenizer, turns, first, end=False) if first else []
        for turns, first in zip(messages, openings, strict=True)
    ]
    prompts = [chat.prompt_ids(subject.tokenizer, turns) for turns in messages]
    requests = [Request((*prompt, *ids), decoding) for prompt, ids in zip(prompts, begun, strict=True)]

    def whole(index: int, completion: Completion) -> tuple[str, bool]:
        answer = openings[index] + _behind(subject.tokenizer, begun[index], completion.ids), completion.truncated
        on_done(index, *answer)
        return answer

    return _texts(subject, requests, batch_size, title, whole)


def write_behind(
    subject: Subject,
    messages: Sequence[Sequence[Any]],
    contexts: Sequence[Sequence[int]],
    decoding: Decoding,
    batch_size: int = 96,
    *,
    title: str = "answers",
) -> list[tuple[str, bool]]:
    """What the model goes on with behind exactly these answer tokens, without them, and whether it was cut off."""
    prompts = [chat.prompt_ids(subject.tokenizer, turns) for turns in messages]
    requests = [Request((*prompt, *ids), decoding) for prompt, ids in zip(prompts, contexts, strict=True)]

    def rest(index: int, completion: Completion) -> tuple[str, bool]:
        return _behind(subject.tokenizer, contexts[index], completion.ids), completion.truncated

    return _texts(subject, requests, batch_size, title, rest)


def _texts(
    subject: Subject | Served,
    requests: Sequence[Request],
    batch_size: int,
    title: str,
    read: Callable[[int, Completion], tuple[str, bool]],
) -> list[tuple[str, bool]]:
    """What `read` makes of the completion of each request."""
    written: dict[int, tuple[str, bool]] = {}

    def keep(index: int, completion: Completion) -> None:
        written[index] = read(index, completion)

    _complete(subject, requests, batch_size, title, keep)
    return [written[index] for index in range(len(requests))]


def _behind(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` where they stand behind `before`: alone, many tokenizers take their first space away."""
    whole = str(tokenizer.decode([*before, *ids], skip_special_tokens=True))
    return whole[len(str(tokenizer.decode(list(before), skip_special_tokens=True))) :] if before else whole


def _complete(
    subject: Subject | Served,
    requests: Sequence[Request],
    batch_size: int,
    title: str,
    keep: Callable[[int, Completion], None],
) -> None:
    """Hand over all completions; where the memory does not hold `batch_size` rows at once, those left with half as many.

    The bar counts tokens as parts of answers, for answers that are written together also end together.
    """
    left = list(range(len(requests)))
    with Bar(len(requests), title, "answer", settle=len(requests) / 10, disable=len(requests) < 8) as bar:
        while left:
            try:
                _ask(subject, requests, left, batch_size, bar, keep)
            except InputError as error:
                if batch_size == 1 or error.__cause__ is None or not memory_full(error.__cause__):
                    raise
                batch_size //= 2


def _ask(
    subject: Subject | Served,
    requests: Sequence[Request],
    left: list[int],
    batch_size: int,
    bar: Bar,
    keep: Callable[[int, Completion], None],
) -> None:
    """Complete the requests that are left, each of which is taken off that list when it is handed over."""
    from tokendeep.engines import local as generation

    asked, ended = list(left), Counter[str]()
    longest = max(requests[i].decoding.max_new_tokens for i in asked)

    def done(index: int, completion: Completion) -> None:
        left.remove(asked[index])
        ended["tokens"] += len(completion.ids)
        keep(asked[index], completion)

    def step(tokens: int) -> None:
        bar.reach(len(requests) - len(left) + max(0, tokens - ended["tokens"]) / longest)

    generate = partial(generation.generate, subject) if isinstance(subject, Subject) else subject.generate
    generate([requests[i] for i in asked], batch_size=batch_size, on_done=done, on_step=step)


def distil(
    subject: Subject, prompts: Sequence[Prompt], tokens: int, system: str = "default", title: str = "answers"
) -> list[Chat]:
    """Ordinary answers of the model itself (greedy); empty, degenerate and refusing ones are left out."""
    messages = [chat.with_system(p.messages, system) for p in prompts]
    answers = write_answers(subject, messages, Decoding(max_new_tokens=tokens), title=title)
    return [
        Chat(prompt.id, (*prompt.messages, {"role": "assistant", "content": text.strip()}), truncated)
        for prompt, (text, truncated) in zip(prompts, answers, strict=True)
        if judges.judge_refusal(text, truncated=truncated).outcome == "complied"
    ]


UNLIKE = {  # an answer that is not as wanted, by what the judge says of it
    "complied": "not refused", "refused": "refused", "partial-then-refused": "refused late", "thought": "cut off in its thought",
}  # fmt: skip


def unlike(text: str, cut: bool, wanted: str) -> str | None:
    """Why an answer is not taken as `refused` or `complied`; None where it is so, and a refusal has come to its end."""
    found = judges.judge_refusal(text, truncated=cut).outcome
    if found == wanted:
        return "cut off" if cut and wanted == "refused" else None
    return UNLIKE.get(found, "empty or broken")


def sample_refusals(
    subject: Subject,
    messages: Sequence[Sequence[Any]],
    *,
    tokens: int,
    system: str = "default",
    seed: int = 0,
    tries: int = 4,
    title: str = "refusals",
    why: dict[int, str] | None = None,
) -> list[str | None]:
    """A refusal by the model itself for each conversation: greedy first, then sampled with new seeds; None: it gave none.

    Args:
        tokens: longest answer; one that is cut off counts as none.
        system: system prompt under which they are sampled.
        why: gets the reason, by the number of the conversation, for each that has none.
    """
    turns = [chat.with_system(m, system) for m in messages]
    refusals: list[str | None] = [None] * len(turns)
    for attempt in range(tries):
        missing = [i for i, text in enumerate(refusals) if text is None]
        decoding = Decoding(max_new_tokens=tokens, seed=seed + attempt)
        if attempt:
            decoding = replace(decoding, temperature=0.9, top_p=0.6)
        again = f", try {attempt + 1}" if attempt else ""
        texts = write_answers(subject, [turns[i] for i in missing], decoding, title=title + again)
        for i, (text, cut) in zip(missing, texts, strict=True):
            reason = unlike(text, cut, "refused")
            refusals[i] = None if reason else text.strip()
            if why is not None:
                why.pop(i, None)
                why |= {i: reason} if reason else {}
    return refusals
