"""How much memory a verb holds of a model, computed from the shape of the model alone: no weights, no torch.

Knows decoders in the manner of Llama (rotary positions, a gated MLP, grouped keys); nothing of what else a process holds:
libraries, a GPU's context, gaps between allocations. docs/sizes.md compares it with measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "smollm3")  # kinds of config.json whose shape is read right
CHUNK = 32 * 2**20  # bytes of float32 logits at once, as in `compute.lm_head`
PREFILL = 512  # tokens computed at once, as in `engines.batching`


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder; `inner` is the width of its MLP, `size` that of one head."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    size: int
    inner: int
    vocabulary: int
    tied: bool = False
    biased: bool = False  # the projections to queries, keys and values

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """The shape that a config.json names; None for architectures that are not known here."""
        if config.get("model_type") not in LIKE_LLAMA:
            return None
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return cls(
            config["num_hidden_layers"], hidden, heads, config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads, config["intermediate_size"], config["vocab_size"],
            bool(config.get("tie_word_embeddings")), config["model_type"] == "qwen2",
        )  # fmt: skip

    @property
    def queries(self) -> int:
        """Width of all queries together."""
        return self.heads * self.size

    @property
    def keys(self) -> int:
        """Width of all keys, or of all values, together."""
        return self.kv_heads * self.size

    @property
    def table(self) -> int:
        """Parameters of the embedding, or of the output head."""
        return self.vocabulary * self.hidden

    @property
    def linear(self) -> int:
        """Parameters of one layer's matrices."""
        return 2 * self.hidden * (self.queries + self.keys) + 3 * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """All parameters, of which a tied head is none."""
        layer = self.linear + 2 * self.hidden + (self.queries + 2 * self.keys) * self.biased
        return self.layers * layer + self.hidden + self.table * (1 if self.tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of all linear layers."""
        ends = 2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys) + 3 * (self.hidden + self.inner)
        return self.layers * rank * ends

    def cached(self, item: int) -> int:
        """Bytes of keys and values per token."""
        return 2 * self.layers * self.keys * item

    def passing(self, item: int) -> int:
        """Bytes per token that live at once in a forward pass without gradient: those of one MLP and the stream."""
        return item * (3 * self.hidden + 3 * self.inner)

    def saved(self, half: bool, adapted: bool) -> int:
        """Bytes per token that one layer keeps for the backward pass, the stream of residuals in float32.

        Args:
            half: products in bfloat16 (autocast), else in float32.
            adapted: only an adapter is trained, so that a layer's own matrices and norms need no inputs.
        """
        stream = (26 if half else 24) - 8 * adapted
        queries, others = (4 + 2 * adapted, 4) if half else (8, 8)
        return stream * self.hidden + queries * self.queries + others * self.keys + 2 * others * self.inner


@dataclass(frozen=True)
class Work:
    """What is computed at once: rows of `length` tokens, `supervised` of which are scored or trained on."""

    rows: int
    length: int
    supervised: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def logits(shape: Shape, positions: int) -> int:
    """Bytes of the float32 logits of a chunk of positions."""
    return 4 * min(positions, max(16, CHUNK // (4 * shape.vocabulary))) * shape.vocabulary


def measuring(shape: Shape, item: int, work: Work, *, base: bool = False, ks: int = 9) -> int:
    """Bytes of `measure`: weights (also of a base), states and keys of a batch, logits in chunks.

    Args:
        item: bytes of a weight.
        ks: at how many k recovery is measured; each has some 40 places whose log-probabilities are kept.
    """
    weights = shape.parameters * item * (2 if base else 1)
    batch = work.tokens * (shape.passing(item) + shape.cached(item))
    divergence = 5 * logits(shape, work.rows * work.supervised)
    recovery = 2 * 40 * ks * 4 * shape.vocabulary + logits(shape, 40 * ks)
    return weights + max(batch, recovery, divergence if base else 0)


def columns(prompt: int, new: int) -> int:
    """Columns that a slot of the engine has at the end: they grow by half, in steps of 64."""
    have = 0
    for need in (prompt, *range(prompt, prompt + new)):
        if need > have:
            have = -(-max(need, have * 3 // 2) // 64) * 64
    return have


def attacking(shape: Shape, item: int, work: Work) -> int:
    """Bytes of `attack`: weights, a slot of keys and values for each row, one prefill or the logits of one step.

    Args:
        work: `length` tokens of a prompt, `supervised` tokens that are written.
    """
    slots = work.rows * columns(work.length, work.supervised) * shape.cached(item)
    prefill = min(work.tokens, max(PREFILL, work.length)) * shape.passing(item)
    step = work.rows * (shape.passing(item) + shape.vocabulary * (item + 4))
    return shape.parameters * item + slots + max(prefill, step)


@dataclass(frozen=True)
class Training:
    """How it is trained: `rank` 0 trains all weights, `item` is the bytes of a weight that is not trained."""

    rank: int = 0
    item: int = 4
    half: bool = True  # products in bfloat16 beside float32 weights
    recompute: bool = True  # layers are computed again in the backward pass: on a GPU, not on a CPU
    together: bool = True  # the optimizer takes all weights at once: on a GPU, not on a CPU
    accumulated: bool = True  # a step has several micro-batches
    moments: int = 8  # bytes per weight: AdamW 8, SGD 0
    anchored: bool = False  # a frozen copy of the output head is held


def training(shape: Shape, how: Training, work: Work, shards: int = 1) -> int:
    """Bytes on each of `shards` devices at the peak of a step: in a micro-batch, or while the optimizer moves weights."""
    trained = shape.adapter(how.rank) if how.rank else shape.parameters
    states = (4 + how.moments) * trained + (shape.parameters * how.item if how.rank else 0)
    moving = states + 4 * trained + 4 * (trained if how.together else 2 * _largest(shape, how))
    held = (states + 4 * trained * how.accumulated) // shards
    batch = held + _casts(shape, how, trained, shards) + kept(shape, how, work) + _head(shape, how, work)
    return max(moving // shards, batch) + 4 * shape.table * (how.anchored and not how.rank)


def _casts(shape: Shape, how: Training, trained: int, shards: int) -> int:
    """Bytes of weights in bfloat16 that live beside those kept: all that autocast made, or the whole layers of shards."""
    if shards > 1:
        return 2 * shape.table * (1 if shape.tied else 2) + 8 * shape.linear
    spread = how.rank and how.half and how.item == 4 and not how.recompute
    return 2 * trained * how.half + (2 * shape.layers * shape.linear if spread else 0)


def kept(shape: Shape, how: Training, work: Work) -> int:
    """Bytes that a micro-batch keeps for the backward pass: of all layers, or the inputs of all and one whole layer."""
    layer = work.tokens * shape.saved(how.half, bool(how.rank))
    if not how.recompute:
        return shape.layers * layer
    stream = how.item if how.rank else 4
    return shape.layers * work.tokens * shape.hidden * stream + 2 * layer


def _largest(shape: Shape, how: Training) -> int:
    return how.rank * max(shape.inner, shape.hidden) if how.rank else shape.table


def _head(shape: Shape, how: Training, work: Work) -> int:
    """Bytes of the output head: chunks of logits with their gradients, the head's own gradient, its copy in bfloat16."""
    own = 0 if how.rank else 4 * shape.table + 2 * shape.table * how.half
    cast = 2 * shape.table * how.half if how.item == 4 or not how.rank else 0
    return own + cast + 6 * logits(shape, work.rows * work.supervised)
