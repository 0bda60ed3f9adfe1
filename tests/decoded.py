"""Tiny random models, requests as a prefill sweep makes them, and what `model.generate` alone answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM

from tokendeep.engines.base import Completion, Request
from tokendeep.types import Decoding, Subject

VOCABULARY, END = 97, 2
TIE = 1e-3


class Words:
    """Stands in for a tokenizer: token 7 is the word "7", the end token is special."""

    eos_token_id: int | None = END
    pad_token_id: int | None = None
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    all_special_ids = (END,)
    all_special_tokens = ("<end>",)

    def __len__(self) -> int:
        return VOCABULARY

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return " ".join(str(i) for i in ids if not (skip_special_tokens and i == END))


def build(config: type, **settings: Any) -> Subject:
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.4,
        "eos_token_id": END,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    implementation = settings.pop("attention", None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config(**{**common, **settings}), **({"attn_implementation": implementation} if implementation else {})
        )
    return Subject(model.eval(), Words(), config.__name__)  # type: ignore[arg-type]


def draw(seed: int, count: int) -> list[int]:
    return [random.Random(seed * 1000 + i).randrange(3, VOCABULARY) for i in range(count)]


def sweep(prompts: int = 4, ks: Sequence[int] = (0, 5, 10, 20, 40), new_tokens: Sequence[int] = (3, 8, 20)) -> list:
    """Requests as a prefill sweep makes them: one template, prompts of unequal length, nested answer prefixes."""
    template, requests = draw(0, 20), []
    for p in range(prompts):
        prompt, answer = template + draw(p + 1, 3 + 2 * p), draw(p + 50, max(ks))
        for i, k in enumerate(ks):
            decoding = Decoding(max_new_tokens=new_tokens[(p + i) % len(new_tokens)])
            requests.append(Request((*prompt, *answer[:k]), decoding))
    return requests


def plain(model: Any, request: Request) -> tuple[tuple[int, ...], list[float]]:
    """What `model.generate` alone writes, and the gap between its two best logits at every step."""
    out: Any = model.generate(
        input_ids=torch.tensor([request.ids]),
        attention_mask=torch.ones(1, len(request.ids), dtype=torch.long),
        max_new_tokens=request.decoding.max_new_tokens,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = out.sequences[0, len(request.ids) :].tolist()
    gaps = [float(best[0] - best[1]) for best in (logits[0].topk(2).values for logits in out.logits)]
    return tuple(ids[: ids.index(END)] if END in ids else ids), gaps


def same_up_to_ties(model: Any, request: Request, completion: Completion) -> bool:
    expected, gaps = plain(model, request)
    if completion.ids == expected:
        return True
    pairs = enumerate(zip(expected, completion.ids, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(completion.ids)))
    return gaps[first] < TIE
