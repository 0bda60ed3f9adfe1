"""The key-value cache of all rows that are decoded together, and the forward pass on top of it.

Every row lives in a *slot* of one preallocated cache, left-aligned: column c of a slot holds the token at position c, so
nothing is ever shifted and a row can start from the columns that any other slot already holds. Knows which tokens a slot
holds; knows nothing of requests.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from tokendeep.compute.lm_head import decoder
from tokendeep.engines.linears import lent, narrow_linears


class Slots:
    """The key-value cache of all slots and which tokens each holds; runs the model on top of it."""

    def __init__(self, lm: Any, count: int) -> None:
        self.lm = lm
        self.held: list[list[int]] = [[] for _ in range(count)]  # held[s][c] is the token whose keys are in column c
        self.cache = SlotCache(count, len(DynamicCache(config=lm.config).layers))
        self.device = lm.get_input_embeddings().weight.device
        self.linears = narrow_linears(lm)
        self.boolean = lm.config.get_text_config()._attn_implementation == "sdpa"  # eager adds its mask to the scores

    def copy(self, to: int, source: int, length: int) -> None:
        """Let slot `to` hold the first `length` tokens of `source`."""
        if to != source:
            self.cache.copy(to, source, length)
        self.held[to] = self.held[source][:length]

    def clear(self, slot: int) -> None:
        self.cache.zero(slot)
        self.held[slot] = []

    def forward(self, slots: Sequence[int], tokens: list[list[int]], *, logits: bool) -> Tensor:
        """Feed each of `slots` its `tokens` (any number each) behind what it holds.

        With `logits`, exactly one token each is fed to slots 0..n-1; returns (n, V). Without, returns nothing useful.
        """
        length = max(len(new) for new in tokens)
        starts = torch.tensor([len(self.held[slot]) for slot in slots])  # (n,)
        ids = torch.tensor([new + [0] * (length - len(new)) for new in tokens])  # (n, Q), padded on the right
        ends = starts + torch.tensor([len(new) for new in tokens])  # (n,)
        columns = starts[:, None] + torch.arange(length)  # (n, Q); padding lands behind the end, where nobody looks
        width = int(ends.max())
        seen = (torch.arange(width) <= columns[..., None])[:, None]  # (n, 1, Q, width)
        mask = seen if self.boolean else torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(self.lm.dtype).min)
        self.cache.plan(None if logits else list(slots), columns, width)
        inputs = {
            "input_ids": ids.to(self.device),
            "position_ids": torch.minimum(columns, ends[:, None] - 1).to(self.device),
            "attention_mask": mask.to(self.device, torch.bool if self.boolean else self.lm.dtype),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        with lent(self.linears):
            if logits:
                out = self.lm(**inputs, logits_to_keep=1).logits[:, -1]
            else:
                out = decoder(self.lm)(**inputs).last_hidden_state
        for slot, new in zip(slots, tokens, strict=True):
            self.held[slot] += new
        return out


class SlotCache(Cache):
    """One `_SlotLayer` per layer of the model; `plan` says where the next forward pass writes and reads."""

    def __init__(self, count: int, layers: int) -> None:
        self.own = [_SlotLayer(count) for _ in range(layers)]
        super().__init__(layers=list(self.own))

    def plan(self, slots: list[int] | None, columns: Tensor, width: int) -> None:
        """`slots` None: the first n. `columns` (n, Q): where keys go. `width`: columns that are read."""
        where = _Where(
            torch.arange(len(columns)) if slots is None else torch.tensor(slots), columns, slots is None, width
        )
        for layer in self.own:
            layer.where = where

    def copy(self, to: int, source: int, length: int) -> None:
        for layer in self.own:
            layer.keys[to, :, :length] = layer.keys[source, :, :length]
            layer.values[to, :, :length] = layer.values[source, :, :length]

    def zero(self, slot: int) -> None:
        for layer in self.own:
            layer.keys[slot] = 0
            layer.values[slot] = 0


class _Where:
    """Where one forward pass writes and reads, the same for every layer."""

    def __init__(self, slots: Tensor, columns: Tensor, first: bool, width: int) -> None:
        self.slots, self.columns, self.first, self.width = slots, columns, first, width  # (n,), (n, Q)
        self.need = int(columns.max()) + 1
        self._lines: dict[tuple[torch.device, int, int], Tensor] = {}

    def lines(self, device: torch.device, heads: int, capacity: int) -> Tensor:
        """Numbers (n x heads x Q,) of the written lines of a (slots x heads x capacity, head size) matrix."""
        key = (device, heads, capacity)
        if key not in self._lines:
            blocks = self.slots[:, None] * heads + torch.arange(heads)  # (n, heads)
            self._lines[key] = (blocks[..., None] * capacity + self.columns[:, None]).flatten().to(device)
        return self._lines[key]


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (slots, heads, columns, head size), written in place.

    A step that reads the first slots gets a view: nothing is copied, whereas a DynamicCache copies all it holds for
    every token. The columns grow by half when they run out. Never holds uninitialised memory: attention multiplies
    masked columns by zero, which NaN survives.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor
    where: _Where

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.keys, self.values = torch.empty(0, 0, 0, 0), torch.empty(0, 0, 0, 0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, or grow, for the columns that are needed."""
        have = self.keys.shape[2]
        columns = -(-max(self.where.need, have * 3 // 2) // 64) * 64
        keys = key_states.new_zeros(self.count, key_states.shape[1], columns, key_states.shape[3])
        values = value_states.new_zeros(self.count, value_states.shape[1], columns, value_states.shape[3])
        if have:
            keys[:, :, :have], values[:, :, :have] = self.keys, self.values
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store states (n, heads, Q, size) and return all that is read, (n, heads, width, size)."""
        if self.keys.shape[2] < self.where.need:
            self.lazy_initialization(key_states, value_states)
        return self._store(self.keys, key_states), self._store(self.values, value_states)

    def _store(self, kept: Tensor, new: Tensor) -> Tensor:
        _, heads, columns, size = kept.shape
        lines = self.where.lines(kept.device, heads, columns)
        kept.view(-1, size).index_copy_(0, lines, new.reshape(-1, size))  # an indexed assignment would start threads
        if self.where.first:
            return kept[: len(new), :, : self.where.width]
        return kept[self.where.slots.to(kept.device), :, : self.where.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.where.width, 0

    def get_seq_length(self) -> int:
        return self.where.width - self.where.columns.shape[1]

    def get_max_length(self) -> int:
        return -1
