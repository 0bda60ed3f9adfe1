"""GCG: a suffix behind the request, found by gradient and trial, that makes the model begin as it should not.

Zou et al. 2023 (arXiv 2307.15043): the gradient with respect to the suffix's one-hot tokens names promising swaps, a
random sample of them is scored exactly, and the best becomes the new suffix. For one request or many, for one model or
several with one tokenizer. No candidate is scored twice in a step. Knows nothing of files, generation or judges.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokendeep import chat, runs
from tokendeep.attacks.gcg.behaviours import Behaviour, Row
from tokendeep.attacks.gcg.candidates import Candidates, Swap, swapped
from tokendeep.attacks.gcg.losses import Batch, Losses
from tokendeep.attacks.gcg.settings import Settings, State
from tokendeep.compute import lm_head, trees
from tokendeep.errors import InputError, check_budget, enough_memory
from tokendeep.models import context_length
from tokendeep.types import Subject

__all__ = ["Search", "Settings", "State"]


class Search:
    """A search over one or more models with the same tokenizer.

    `say` is told in one sentence what the user should know.

    Raises:
        InputError: no behaviour, a budget of zero, models with different vocabularies, a suffix that does not survive
            retokenisation.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        behaviours: Sequence[Behaviour],
        settings: Settings,
        say: Callable[[str], None] = print,
    ) -> None:
        check_budget(settings, ("steps", "width", "top", "batch"))
        if not behaviours or not subjects:
            raise InputError("A suffix needs at least one request to be found on, and one model.")
        for other in subjects[1:]:
            _check_alike(other, subjects[0])
        self.subjects, self.behaviours, self.settings = list(subjects), list(behaviours), settings
        self._check_trees()
        batch = Batch(settings.batch, say)
        self.models = [Losses(subject, batch) for subject in subjects]
        self.candidates = Candidates(subjects[0], settings.ascii_only)
        self._batch = batch

    @property
    def batch(self) -> int:
        """How many candidates the memory holds together, as far as is known."""
        return self._batch.size

    def text(self, suffix: Sequence[int]) -> str:
        """The suffix as it is typed, its leading space included."""
        return self.candidates.text(suffix)

    def begin(self, suffix: Sequence[int]) -> State:
        """The state before the first step. Raises InputError where the suffix is not itself once it is a text."""
        wrong = [b.name for b in self.behaviours if not self.candidates.survive(b, [tuple(suffix)])[0]]
        if wrong:
            raise InputError(
                f"The suffix does not survive retokenisation behind {wrong[0]}: as text it reads back as other tokens; "
                "begin with another suffix."
            )
        longest = max(len(Row(b, suffix).tree.tokens) for b in self.behaviours)
        for subject in self.subjects:
            if longest > (room := context_length(lm_head.causal_lm(subject.model))):
                raise InputError(
                    f"Request, suffix and target take {longest} tokens, more than the context of {subject.name} ({room}): "
                    "shorten one of them."
                )
        return State(tuple(suffix), active=1 if self.settings.one_by_one else len(self.behaviours))

    def steps(self, state: State) -> Iterator[State]:
        """The states after every further step, until the budget is spent or (`stop`) the search succeeds."""
        while state.step < self.settings.steps and not (state.success and self.settings.stop):
            state = self.step(state)
            yield state

    def step(self, state: State) -> State:
        """One step: gradient, candidates, the best of them.

        Raises:
            InputError: no candidate survives retokenisation, values that are not finite, or a device whose memory holds
                not even one row.
        """
        with enough_memory(
            "The memory of the device does not hold the gradient of one request: shorten requests or targets, or load "
            "the model in half precision."
        ):
            return self._step(state)

    def _step(self, state: State) -> State:
        active = self.behaviours[: state.active]
        swaps = self.draw(self.gradient(state.suffix, active), state, active[0])
        losses = self.losses(state.suffix, swaps, active)
        suffix, loss = self.best(state.suffix, swaps, losses)
        hit = self.succeeds(suffix, active)
        better = (hit, -loss) > (state.success, -state.loss)
        now = replace(
            state, suffix=suffix, step=state.step + 1, candidates=state.candidates + len(swaps),
            success=hit or state.success,
            best=suffix if better else state.best, loss=loss if better else state.loss, losses=(*state.losses, loss),
        )  # fmt: skip
        if hit and state.active < len(self.behaviours):  # the next behaviour joins, and is what counts now
            now = replace(now, active=state.active + 1, success=False, loss=float("inf"))
        return now

    def draw(self, gradient: Tensor, state: State, first: Behaviour) -> list[Swap]:
        """The swaps to try in this step; a draw of its own, so that a search which was cut off goes on the same."""
        generator = torch.Generator().manual_seed(runs.seed(f"{self.settings.seed}|{state.step}"))  # it reads 32 bits
        return self.candidates.draw(gradient, state.suffix, first, generator, self.settings.top, self.settings.width)

    def best(self, suffix: tuple[int, ...], swaps: Sequence[Swap], losses: Tensor) -> tuple[tuple[int, ...], float]:
        """The candidate of least loss that survives retokenisation behind every request, those that join later too."""
        for i in losses.argsort().tolist():
            candidate = swapped(suffix, swaps[i])
            if all(self.candidates.survive(b, [candidate])[0] for b in self.behaviours[1:]):
                return candidate, float(losses[i])
        raise InputError("No candidate survives retokenisation behind every request: begin with another suffix.")

    # --- means over behaviours and models --------------------------------------------------------------

    @torch.inference_mode()
    def loss(self, suffix: Sequence[int], behaviours: Sequence[Behaviour] | None = None) -> float:
        """Mean loss of a suffix, without any cache."""
        wanted = self.behaviours if behaviours is None else behaviours
        return float(torch.stack([model.exact(b, suffix) for model in self.models for b in wanted]).mean())

    @torch.inference_mode()
    def succeeds(self, suffix: Sequence[int], behaviours: Sequence[Behaviour]) -> bool:
        """Whether every model would begin every answer as is wanted."""
        return all(model.succeeds(b, suffix) for model in self.models for b in behaviours)

    def gradient(self, suffix: Sequence[int], behaviours: Sequence[Behaviour]) -> Tensor:
        """d loss / d one-hot (n, V); with several behaviours or models the mean of each one's, scaled to length 1 at every
        token as in the original. V is what all models have: one may have its embeddings padded further than another."""
        several = len(self.models) * len(behaviours) > 1
        common = min(model.lm.get_input_embeddings().weight.shape[0] for model in self.models)
        total: Any = 0.0
        for model in self.models:
            for b in behaviours:
                one = model.gradient(b, suffix)[:, :common]
                total = total + (one / one.norm(dim=-1, keepdim=True).clamp(min=1e-12) if several else one)
        return total / (len(self.models) * len(behaviours))

    def losses(self, suffix: tuple[int, ...], swaps: Sequence[Swap], behaviours: Sequence[Behaviour]) -> Tensor:
        """Mean loss (W,) of the suffix with each of the swaps."""
        total = torch.zeros(len(swaps), dtype=torch.float64)
        for model in self.models:
            for b in behaviours:
                total += model.of_swaps(b, suffix, swaps)
        return total / (len(self.models) * len(behaviours))

    def _check_trees(self) -> None:
        longest = max(len(Row(b, range(100)).tree.tokens) for b in self.behaviours)
        if any(b.unwanted for b in self.behaviours) and not all(trees.fits(s.model, longest) for s in self.subjects):
            raise InputError(
                "This architecture takes no tree of answers, so its refusal log-odds have no gradient here: drive it to an "
                "opening instead."
            )


def _check_alike(other: Subject, first: Subject) -> None:
    """Raises InputError where a suffix, or a request, would be other tokens to one of two models."""
    tokenizers: tuple[Any, Any] = other.tokenizer, first.tokenizer
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        raise InputError(
            f"{other.name} and {first.name} have different tokenizers, so no suffix is the same to both; "
            "search on one of them and try the suffix on the other."
        )
    asks = [(chat.template_hash(one), chat.check(one).bos) for one in tokenizers]  # how a request becomes tokens
    if asks[0] != asks[1]:
        raise InputError(
            f"{other.name} and {first.name} have different chat templates, so the same request is other tokens "
            "to each; give one --chat-template for both, or search on one of them."
        )
