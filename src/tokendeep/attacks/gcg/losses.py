"""The loss of a suffix on one model: exactly, as a gradient, and of many swaps at once.

What makes it fast: the keys and values of all that stands before the first changed token are computed once a step (the
request before it once a search), candidates that change the same place share them, and only rows that predict a target
token go through the output head. Knows nothing of searching.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokendeep.attacks.gcg.behaviours import Behaviour, Row, combine
from tokendeep.attacks.gcg.candidates import Swap, swapped
from tokendeep.compute import gradients, lm_head, scoring, trees
from tokendeep.errors import InputError, memory_full
from tokendeep.types import Subject

ENOUGH = 16  # candidates in a forward pass; fewer of one place are joined by those of the next


class Batch:
    """How many candidates go through a model together: halved where the memory does not hold them."""

    def __init__(self, size: int, say: Callable[[str], None]) -> None:
        self.size, self.say = size, say

    def halve(self) -> None:
        """Raises InputError where there is one candidate already."""
        if self.size == 1:
            raise InputError("The memory of the device does not hold one candidate; use shorter requests or targets.")
        self.size //= 2
        self.say(f"The memory does not hold {self.size * 2} candidates together; going on with {self.size}.")


class Losses:
    """The losses of behaviours on one model."""

    def __init__(self, subject: Subject, batch: Batch) -> None:
        gradients.check_differentiable(subject.model)
        self.subject, self.batch = subject, batch
        self.lm = lm_head.causal_lm(subject.model)
        self._prefixes: dict[Behaviour, Any] = {}

    @property
    def device(self) -> torch.device:
        return self.lm.get_input_embeddings().weight.device

    def exact(self, b: Behaviour, suffix: Sequence[int]) -> Tensor:
        """The loss without any cache: what every faster way must equal."""
        prompt = [*b.before, *suffix, *b.after]
        branches = [(len(prompt), target) for target in (b.wanted, *b.unwanted)]
        return combine(b, trees.branch_logps(self.subject, prompt, branches).double())

    def succeeds(self, b: Behaviour, suffix: Sequence[int]) -> bool:
        """Whether the model would begin its answer with the wanted tokens (or: has no refusal before it)."""
        if b.unwanted:
            return float(self.exact(b, suffix)) < 0
        ids = torch.tensor([[*b.before, *suffix, *b.after, *b.wanted]], device=self.device)
        states = lm_head.hidden_states(self.subject.model, ids)
        logits = lm_head.project(self.subject.model, states[0, -len(b.wanted) - 1 : -1])
        return logits.argmax(-1).tolist() == list(b.wanted)

    def gradient(self, b: Behaviour, suffix: Sequence[int]) -> Tensor:
        """d loss / d one-hot (n, V) at the suffix's n tokens."""
        embed = self.lm.get_input_embeddings()
        with torch.no_grad():
            table = embed(torch.arange(embed.weight.shape[0], device=self.device))  # (V, H), scaled as the model does
        cache = self.prefix(b)
        row = Row(b, suffix)
        skipped = len(b.before) if cache is not None else 0
        with torch.enable_grad():
            places = table[list(suffix)].clone().requires_grad_(True)
            parts = [table[list(b.before[skipped:])], places, table[row.rest]]
            states = _decode(self.lm, cache, skipped, row, inputs_embeds=torch.cat(parts)[None])
            logps = lm_head.label_logps(self.subject.model, states[0, row.parents(skipped)], row.targets(self.device))
            (slope,) = torch.autograd.grad(combine(b, row.sums(logps)), places)
        return (slope.float() @ table.T.float()).cpu()

    @torch.inference_mode()
    def of_swaps(self, b: Behaviour, suffix: tuple[int, ...], swaps: Sequence[Swap]) -> Tensor:
        """The losses (W,) of the suffix with each of the swaps."""
        row, known = Row(b, suffix), self._known(b, suffix)
        losses = torch.zeros(len(swaps), dtype=torch.float64)
        order = sorted(range(len(swaps)), key=lambda i: swaps[i][0])  # neighbours share most of what is known
        while order:
            place = swaps[order[0]][0]
            same = sum(swaps[i][0] == place for i in order)
            part = order[: min(self.batch.size, max(same, ENOUGH))]
            tokens = [[*swapped(suffix, swaps[i])[place:], *row.rest] for i in part]
            try:
                losses[part] = self.score(known, row, place, suffix, torch.tensor(tokens, device=self.device))
            except RuntimeError as error:
                if not memory_full(error):
                    raise
                self.batch.halve()
                continue
            order = order[len(part) :]
        return losses

    def score(self, known: Any, row: Row, place: int, suffix: tuple[int, ...], tokens: Tensor) -> Tensor:
        """Loss (B,) of rows that differ from the place on; `tokens` (B, T) are what follows it."""
        b = row.b
        cache, skipped = None, 0
        if known is None:
            first = torch.tensor([[*b.before, *suffix[:place]]], device=tokens.device)
            tokens = torch.cat([first.expand(len(tokens), -1), tokens], 1)
        else:
            cache, skipped = copy.deepcopy(known), len(b.before) + place
            cache.crop(place - len(suffix))  # so many tokens fewer
            cache.batch_repeat_interleave(len(tokens))
        states = _decode(self.lm, cache, skipped, row, input_ids=tokens)[:, row.parents(skipped)]  # (B, T, H)
        labels = row.targets(tokens.device).repeat(len(tokens))
        logps = lm_head.label_logps(self.subject.model, states.flatten(0, 1), labels).view(len(tokens), -1)
        scoring.check_finite(logps, f"on {b.name}")
        return torch.stack([combine(b, row.sums(one)) for one in logps.double().cpu()])

    def prefix(self, b: Behaviour) -> Any:
        """A cache that holds the request up to the suffix; None where the architecture keeps no plain one."""
        if not scoring.plain_cache(self.lm, len(b.before) + 1):
            return None
        if b not in self._prefixes:
            with torch.inference_mode(False), torch.no_grad():  # the gradient needs them as well
                ids = torch.tensor([b.before], device=self.device)
                self._prefixes[b] = lm_head.decoder(self.lm)(input_ids=ids, use_cache=True).past_key_values
        return copy.deepcopy(self._prefixes[b])

    def _known(self, b: Behaviour, suffix: tuple[int, ...]) -> Any:
        """Keys and values of the request and of the suffix as it is; None as for `prefix`."""
        if not scoring.plain_cache(self.lm, len(Row(b, suffix).tree.tokens)):
            return None
        ids = torch.tensor([suffix], device=self.device)
        return lm_head.decoder(self.lm)(input_ids=ids, past_key_values=self.prefix(b), use_cache=True).past_key_values


def _decode(lm: Any, cache: Any, skipped: int, row: Row, **inputs: Tensor) -> Tensor:
    """Final states of the tokens behind the first `skipped`, which the cache holds."""
    more: dict[str, Any] = {}
    if (mask := row.mask(lm.dtype)) is not None:
        given = next(iter(inputs.values()))
        more = {
            "attention_mask": mask[..., skipped:, :].to(given.device).expand(len(given), -1, -1, -1),
            "position_ids": torch.tensor([row.tree.positions[skipped:]], device=given.device),
        }
    states: Tensor = lm_head.decoder(lm)(
        past_key_values=cache, use_cache=cache is not None, **inputs, **more
    ).last_hidden_state
    return states
