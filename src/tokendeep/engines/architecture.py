"""What an architecture and its tokenizer allow: whether rows can share a cache of slots, and which tokens end an answer."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokendeep import chat
from tokendeep.engines.slots import Slots
from tokendeep.errors import InputError, memory_full


def window(lm: Any) -> tuple[int, str | None]:
    """Longest row that can be decoded continuously, and why none can (None when some can)."""
    config = lm.config.get_text_config()
    layers = DynamicCache(config=lm.config).layers
    other = sorted({type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"})
    if is_recurrent(lm) or other or not layers:
        return 0, f"its cache is not plain attention ({', '.join(other) or 'recurrent state'})"
    if config._attn_implementation not in ("sdpa", "eager"):
        return 0, f"its attention implementation, {config._attn_implementation}, takes no four-dimensional mask"
    if reason := probe(lm):
        return 0, reason
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=2**62), None


def is_recurrent(lm: Any) -> bool:
    """Does the model carry a state through its tokens, where padding would leave a trace?"""
    attention = (DynamicLayer, DynamicSlidingWindowLayer)
    return bool(lm._is_stateful) or not all(type(la) in attention for la in DynamicCache(config=lm.config).layers)


@torch.no_grad()
def probe(lm: Any) -> str | None:
    """Compare two short rows of unequal length with the plain forward pass: what differs, or None.

    Architectures may build positions from a two-dimensional mask (ALiBi), ignore `position_ids` or have no way to
    project one position only. Trying is surer than a list of names, and costs four tiny forward passes.
    """
    vocabulary = lm.get_input_embeddings().weight.shape[0]
    rows = [[(7 * i + 3) % vocabulary for i in range(6)], [(5 * i + 1) % vocabulary for i in range(3)]]
    try:
        slots = Slots(lm, 2)
        slots.forward([1, 0], [rows[1][:-1], rows[0][:-1]], logits=False)
        ours = slots.forward([0, 1], [row[-1:] for row in rows], logits=True).float()
        ids = [torch.tensor([row], device=slots.device) for row in rows]
        plain = torch.cat([lm(input_ids=row, use_cache=False).logits[:, -1] for row in ids]).float()
    except Exception as error:
        if memory_full(error):
            raise
        return f"its forward pass does not take a cache of slots ({type(error).__name__})"
    if not plain.isfinite().all():
        return None  # the first real step says so, with the request's name
    scale = float(plain.max() - plain.min())
    tolerance = (1e-3 if lm.dtype in (torch.float32, torch.float64) else 5e-2) * scale
    if float((ours - plain).abs().max()) > tolerance:
        return "its forward pass gives other logits on a cache of slots"
    return None


def end_tokens(lm: Any, tokenizer: Any) -> frozenset[int]:
    own = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    return ends_of([own] if isinstance(own, int) else own or (), tokenizer)


def ends_of(own: Iterable[int], tokenizer: Any) -> frozenset[int]:
    """What ends an answer: the model's own end tokens, the tokenizer's, and that of a turn in the chat template."""
    return frozenset(int(end) for end in [*own, tokenizer.eos_token_id, *_ends_of_turn(tokenizer)] if end is not None)


def _ends_of_turn(tokenizer: Any) -> Iterable[int | None]:
    """The control token that closes an answer in the chat template, or begins the next turn; base models often name another."""
    if not getattr(tokenizer, "chat_template", None):
        return ()
    try:
        facts = chat.check(tokenizer)
    except InputError:  # whoever renders a conversation with this template is told
        return ()
    return chat.control_ids(tokenizer).intersection((facts.end_ids[-1], facts.next_turn))
