"""Token ids for classifiers that get their prompt as it stands: its wording with request and answer, cut as its authors do.

There is exactly one BOS in front where the tokenizer has one, whoever would have written it. Words by which chat templates
begin a turn are taken out of request and answer. Knows nothing of models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokendeep.chat.ids import text_ids
from tokendeep.data.known import BEHIND_CONTEXT
from tokendeep.errors import InputError
from tokendeep.judges.grades import one_turn, placed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokendeep.judges.base import Rubric, Seen

MARKS = ("", "▁", "Ġ")  # before a word that is a token, by kind of tokenizer


@dataclass(frozen=True)
class Exact:
    """What a classifier is given; `choices` are the tokens whose chances are asked for, `first` of them of the first word."""

    ids: list[int]
    choices: list[int]
    first: int
    clipped: bool | None


def exact(rubric: Rubric, seen: Seen, tokenizer: PreTrainedTokenizerBase) -> Exact:
    """The ids of the prompt, of a rubric with a wording; of its contextual prompt where the request is about a document."""
    assert rubric.wording is not None
    answer, cut = _clipped(one_turn(seen.answer), rubric.clip, tokenizer)
    text, request, context = rubric.text, seen.request, seen.context
    if context is not None and rubric.wording.contextual:
        text, request = rubric.contextual, request.replace(before(context), "", 1)
    values = {rubric.wording.request: request, "context": context or ""}
    values = {name: one_turn(value) for name, value in values.items()} | {rubric.wording.answer: answer}
    ids, longer = _from_the_end(text_ids(tokenizer, placed(text, values)), rubric.longest, tokenizer)
    words = [_spelled(word, tokenizer) if rubric.soft else [_id(word, tokenizer)] for word in rubric.choices]
    choices = [token for tokens in words for token in tokens] if rubric.soft or rubric.weigh else []
    return Exact(
        ids, choices, len(words[0]) if choices else 0, (cut or longer) if rubric.clip or rubric.longest else None
    )


def before(context: str) -> str:
    """What stands before a request that is about a document."""
    return BEHIND_CONTEXT.format(context=context, instruction="")


def check_words(rubric: Rubric, tokenizer: PreTrainedTokenizerBase, judge: str, spec: str) -> None:
    """Raises InputError for a grader whose tokenizer or chat template is not that of the judge's own model."""
    words = [word for word in rubric.choices if all(_known(mark + word, tokenizer) is None for mark in MARKS)]
    if words:
        raise InputError(
            f"The judge {judge} answers with {' or '.join(rubric.choices)} as one token, but the tokenizer of {spec} has no such "
            f"token as {words[0]}: name the judge's own model with --grader."
        )
    if pieces := [word for word in rubric.marks if _known(word, tokenizer) is None]:
        raise InputError(
            f"The prompt of {judge} has {pieces[0]} as one token, and the tokenizer of {spec} does not: name the judge's own "
            "model with --grader."
        )
    template = json.dumps(tokenizer.chat_template or "") if rubric.asks else ""  # several, by name, or one
    if missing := [word for word in rubric.asks if word not in template]:
        raise InputError(
            f"The judge {judge} leaves its question to the grader's own chat template, and that of {spec} does not ask it "
            f"({missing[0]!r} is not in it): name the judge's own model with --grader."
        )


def _id(word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """A word's own token, as it stands behind a blank: without a mark where there is one."""
    return next(token for mark in MARKS if (token := _known(mark + word, tokenizer)) is not None)


def _spelled(word: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that are a word: with and without a mark, with a capital and without."""
    found = [_known(mark + form, tokenizer) for form in dict.fromkeys((word, word.lower())) for mark in MARKS]
    return list(dict.fromkeys(token for token in found if token is not None))


def _known(token: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    found = tokenizer.convert_tokens_to_ids(token)  # of an unknown one that of <unk>
    return found if isinstance(found, int) and found != tokenizer.unk_token_id else None


def _clipped(answer: str, longest: int | None, tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """The beginning of an answer, in tokens of the classifier with its BOS, and whether more stood there."""
    if longest is None:
        return answer, False
    ids = _one_bos(text_ids(tokenizer, answer), tokenizer)
    if len(ids) <= longest:
        return answer, False
    text = tokenizer.decode(ids[:longest], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text), True


def _from_the_end(ids: list[int], longest: int | None, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], bool]:
    """The end of a prompt with one BOS before it, and whether more stood between them."""
    whole = _one_bos(ids, tokenizer)
    if longest is None or len(whole) <= longest:
        return whole, False
    head = [one for one in whole[:1] if one == tokenizer.bos_token_id]
    return [*head, *whole[len(whole) - longest + len(head) :]], True


def _one_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
