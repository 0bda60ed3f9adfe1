"""GCG: a suffix behind the request, found by gradient and trial, that makes the model begin as it should not.

Zou et al. 2023 (arXiv 2307.15043): the gradient with respect to the suffix's one-hot tokens names promising swaps, a
random sample of them is scored exactly, and the best becomes the new suffix. For one request or many, for one model or
several with one tokenizer.

What makes it fast: the keys and values of all that stands before the first changed token are computed once a step (the
request before it once a search), candidates that change the same place share them, no candidate is scored twice in a
step, and only rows that predict a target token go through the output head. Knows nothing of files, generation or judges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokendeep import chat, runs
from tokendeep.attacks.gcg.behaviours import Behaviour, Row, combine
from tokendeep.compute import lm_head, scoring, trees
from tokendeep.errors import InputError, memory_full
from tokendeep.models import context_length
from tokendeep.types import Subject

ENOUGH = 16  # candidates in a forward pass; fewer of one place are joined by those of the next
ROUNDS = 8  # times that new candidates are drawn when too few survive retokenisation


@dataclass(frozen=True)
class Settings:
    """How to search.

    Args:
        steps: optimizer steps at most.
        width: candidates scored a step.
        top: swaps considered at every place of the suffix, those of steepest gradient.
        batch: candidates in one forward pass; halved where memory runs out.
        ascii_only: whether the suffix is of printable ASCII.
        seed: of the draws; each step has its own, so that a search which was cut off goes on as it would have.
        stop: end at success: every wanted token is the likeliest, or every refusal log-odds is below 0.
        one_by_one: begin with the first behaviour and add the next when all so far succeed.
    """

    steps: int = 500
    width: int = 512
    top: int = 256
    batch: int = 64
    ascii_only: bool = True
    seed: int = 0
    stop: bool = True
    one_by_one: bool = True


@dataclass(frozen=True)
class State:
    """Where a search stands after `step` steps: a JSON-able record of it goes on as if nothing had happened.

    `losses` has the loss of the suffix after every step, over the behaviours active then. `best` is the best suffix for
    all behaviours active last, `loss` its loss, and `success` whether it succeeds; one that does comes before all others.
    """

    suffix: tuple[int, ...]
    step: int = 0
    active: int = 1
    candidates: int = 0
    best: tuple[int, ...] = ()
    loss: float = float("inf")
    losses: tuple[float, ...] = ()
    success: bool = False


class Search:
    """A search over one or more models with the same tokenizer.

    Args:
        subjects: the models.
        behaviours: at least one.
        settings: how.
        say: told in one sentence what the user should know.

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
        check(settings)
        if not behaviours or not subjects:
            raise InputError("a suffix needs at least one request to be found on, and one model")
        tokenizer: Any = subjects[0].tokenizer
        for other in subjects[1:]:
            if other.tokenizer.get_vocab() != tokenizer.get_vocab():
                raise InputError(
                    f"{other.name} and {subjects[0].name} have different tokenizers, so no suffix is the same to both; "
                    "search on one of them and try the suffix on the other"
                )
            if _asks(other) != _asks(subjects[0]):
                raise InputError(
                    f"{other.name} and {subjects[0].name} have different chat templates, so the same request is other tokens "
                    "to each; give one --chat-template for both, or search on one of them"
                )
        self.subjects, self.behaviours, self.settings, self.say = list(subjects), list(behaviours), settings, say
        self.tokenizer = tokenizer
        self.batch = settings.batch
        self.allowed = _allowed(subjects[0], settings.ascii_only)
        self.anchor = chat.continuation_ids(tokenizer, "x")
        longest = max(len(Row(b, range(100)).tree.tokens) for b in behaviours)
        if any(b.unwanted for b in behaviours) and not all(trees.fits(s.model, longest) for s in subjects):
            raise InputError(
                "this architecture takes no tree of answers, so its refusal log-odds have no gradient here: drive it to an "
                "opening instead"
            )
        self._prefixes: dict[tuple[int, int], Any] = {}

    def begin(self, suffix: Sequence[int]) -> State:
        """The state before the first step. Raises InputError where the suffix is not itself once it is a text."""
        wrong = [b.name for b in self.behaviours if not self._survives(b, [tuple(suffix)])[0]]
        if wrong:
            raise InputError(
                f"the suffix does not survive retokenisation behind {wrong[0]}: as text it reads back as other tokens; "
                "begin with another suffix"
            )
        longest = max(len(Row(b, suffix).tree.tokens) for b in self.behaviours)
        for subject in self.subjects:
            if longest > (room := context_length(lm_head.causal_lm(subject.model))):
                raise InputError(
                    f"request, suffix and target take {longest} tokens, more than the context of {subject.name} ({room}): "
                    "shorten one of them"
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
        try:
            return self._step(state)
        except RuntimeError as error:
            if not memory_full(error):
                raise
            raise InputError(
                "the memory of the device does not hold the gradient of one request: shorten requests or targets, or load "
                "the model in half precision"
            ) from error

    def _step(self, state: State) -> State:
        active = self.behaviours[: state.active]
        gradient = self.gradient(state.suffix, active)
        draw = torch.Generator().manual_seed(runs.seed(f"{self.settings.seed}|{state.step}"))  # it reads 32 bits
        swaps = self.draw(gradient, state.suffix, active[0], draw)
        losses = self.losses(state.suffix, swaps, active)
        suffix, loss = self._best(state.suffix, swaps, losses)
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

    # --- the loss ------------------------------------------------------------------------------------

    def loss(self, suffix: Sequence[int], behaviours: Sequence[Behaviour] | None = None) -> float:
        """Mean loss of a suffix over behaviours and models, without any cache: what every faster way must equal."""
        wanted = self.behaviours if behaviours is None else behaviours
        found = []
        with torch.inference_mode():
            for subject in self.subjects:
                found += [_loss(subject, b, suffix) for b in wanted]
        return float(torch.stack(found).mean())

    def gradient(self, suffix: Sequence[int], behaviours: Sequence[Behaviour]) -> Tensor:
        """d loss / d one-hot (n, V) at the suffix's n tokens; with several behaviours or models the mean of each
        one's, scaled to length 1 at every token as in the original."""
        several = len(self.subjects) * len(behaviours) > 1
        total: Any = 0.0
        for number, subject in enumerate(self.subjects):
            for b in behaviours:
                one = self._gradient(number, subject, b, suffix)
                total = total + (one / one.norm(dim=-1, keepdim=True).clamp(min=1e-12) if several else one)
        return total / (len(self.subjects) * len(behaviours))

    def _gradient(self, number: int, subject: Subject, b: Behaviour, suffix: Sequence[int]) -> Tensor:
        lm = lm_head.causal_lm(subject.model)
        embed = lm.get_input_embeddings()
        device = embed.weight.device
        with torch.no_grad():
            table = embed(torch.arange(embed.weight.shape[0], device=device))  # (V, H), scaled as the model scales it
        cache = self._prefix(number, subject, b)
        row = Row(b, suffix)
        skipped = len(b.before) if cache is not None else 0
        with torch.enable_grad():
            own = table[list(suffix)].clone().requires_grad_(True)
            parts = [table[list(b.before[skipped:])], own, table[row.rest]]
            states = _decode(lm, cache, skipped, row, inputs_embeds=torch.cat(parts)[None])
            logps = lm_head.label_logps(subject.model, states[0, row.parents(skipped)], row.targets(device))
            (slope,) = torch.autograd.grad(combine(b, row.sums(logps)), own)
        return (slope.float() @ table.T.float()).cpu()

    def losses(
        self, suffix: tuple[int, ...], swaps: Sequence[tuple[int, int]], behaviours: Sequence[Behaviour]
    ) -> Tensor:
        """Mean loss (W,) of the suffix with each of the swaps (place, token), over behaviours and models."""
        total = torch.zeros(len(swaps), dtype=torch.float64)
        for number, subject in enumerate(self.subjects):
            for b in behaviours:
                total += self._losses(number, subject, b, suffix, swaps)
        return total / (len(self.subjects) * len(behaviours))

    @torch.inference_mode()
    def _losses(
        self, number: int, subject: Subject, b: Behaviour, suffix: tuple[int, ...], swaps: Sequence[tuple[int, int]]
    ) -> Tensor:
        lm = lm_head.causal_lm(subject.model)
        row, start = Row(b, suffix), len(b.before)
        device = lm.get_input_embeddings().weight.device
        known = None
        if scoring.plain_cache(
            lm, start + len(suffix) + len(row.rest)
        ):  # keys and values of the request and of the suffix as it is
            known = lm.base_model(
                input_ids=torch.tensor([suffix], device=device),
                past_key_values=self._prefix(number, subject, b),
                use_cache=True,
            ).past_key_values
        found = torch.zeros(len(swaps), dtype=torch.float64)
        order = sorted(range(len(swaps)), key=lambda i: swaps[i][0])  # neighbours share most of what is known
        while order:
            place = swaps[order[0]][0]
            same = sum(swaps[i][0] == place for i in order)
            part = order[: min(self.batch, max(same, ENOUGH))]
            tokens = [[*_swapped(suffix, swaps[i])[place:], *row.rest] for i in part]
            try:
                found[part] = self._score(subject, known, row, place, suffix, torch.tensor(tokens, device=device))
            except RuntimeError as error:
                if not memory_full(error):
                    raise
                self._halve()
                continue
            order = order[len(part) :]
        return found

    def _score(
        self, subject: Subject, known: Any, row: Row, place: int, suffix: tuple[int, ...], tokens: Tensor
    ) -> Tensor:
        """Loss (B,) of rows that differ from the place on; `tokens` (B, T) are what follows it."""
        b, lm = row.b, lm_head.causal_lm(subject.model)
        cache, skipped = None, 0
        if known is None:
            first = torch.tensor([[*b.before, *suffix[:place]]], device=tokens.device)
            tokens = torch.cat([first.expand(len(tokens), -1), tokens], 1)
        else:
            cache, skipped = copy.deepcopy(known), len(b.before) + place
            cache.crop(place - len(suffix))  # so many tokens fewer
            cache.batch_repeat_interleave(len(tokens))
        states = _decode(lm, cache, skipped, row, input_ids=tokens)[:, row.parents(skipped)]  # (B, T, H)
        labels = row.targets(tokens.device).repeat(len(tokens))
        logps = lm_head.label_logps(subject.model, states.flatten(0, 1), labels).view(len(tokens), -1)
        if not torch.isfinite(logps).all():
            raise InputError(
                f"the model gave NaN or infinite values on {b.name}; load it in float32 (--dtype float32) or check its "
                "weights"
            )
        return torch.stack([combine(b, row.sums(one)) for one in logps.double().cpu()])

    def _halve(self) -> None:
        if self.batch == 1:
            raise InputError("the memory of the device does not hold one candidate; use shorter requests or targets")
        self.batch //= 2
        self.say(f"The memory does not hold {self.batch * 2} candidates together; going on with {self.batch}.")

    def succeeds(self, suffix: Sequence[int], behaviours: Sequence[Behaviour]) -> bool:
        """Whether every model would begin every answer with the wanted tokens (or: has no refusal before it)."""
        with torch.inference_mode():
            for subject in self.subjects:
                lm = lm_head.causal_lm(subject.model)
                device = lm.get_input_embeddings().weight.device
                for b in behaviours:
                    if b.unwanted:
                        if _loss(subject, b, suffix) >= 0:
                            return False
                        continue
                    ids = [*b.before, *suffix, *b.after, *b.wanted]
                    states = lm_head.hidden_states(subject.model, torch.tensor([ids], device=device))
                    logits = lm_head.project(subject.model, states[0, -len(b.wanted) - 1 : -1])
                    if logits.argmax(-1).tolist() != list(b.wanted):
                        return False
        return True

    def _prefix(self, number: int, subject: Subject, b: Behaviour) -> Any:
        """A cache that holds the request up to the suffix; None where the architecture keeps no plain one."""
        lm = lm_head.causal_lm(subject.model)
        if not scoring.plain_cache(lm, len(b.before) + 1):
            return None
        key = (number, self.behaviours.index(b))
        if key not in self._prefixes:
            with torch.inference_mode(False), torch.no_grad():  # the gradient needs them as well
                ids = torch.tensor([b.before], device=lm.get_input_embeddings().weight.device)
                self._prefixes[key] = lm.base_model(input_ids=ids, use_cache=True).past_key_values
        return copy.deepcopy(self._prefixes[key])

    # --- candidates ------------------------------------------------------------------------------------

    def draw(
        self, gradient: Tensor, suffix: tuple[int, ...], first: Behaviour, generator: torch.Generator
    ) -> list[tuple[int, int]]:
        """Up to `width` different swaps (place, token) that survive retokenisation behind the first behaviour.

        Raises:
            InputError: none survives.
        """
        slopes = gradient.clone()
        slopes[:, ~self.allowed] = float("inf")
        slopes[torch.arange(len(suffix)), list(suffix)] = float("inf")  # the token that is there is no swap
        count = min(self.settings.top, int(torch.isfinite(slopes).sum(-1).min()))
        tokens = slopes.topk(count, largest=False).indices  # (n, top)
        order = torch.randperm(tokens.numel(), generator=generator)
        kept: list[tuple[int, int]] = []
        for start in range(0, min(len(order), ROUNDS * self.settings.width), self.settings.width):
            drawn = order[start : start + self.settings.width].tolist()
            swaps = [(i // count, int(tokens[i // count, i % count])) for i in drawn]
            sound = self._survives(first, [_swapped(suffix, swap) for swap in swaps])
            kept += [swap for swap, good in zip(swaps, sound, strict=True) if good]
            if len(kept) >= self.settings.width:
                break
        if not kept:
            raise InputError("no candidate survives retokenisation: begin with another suffix, or allow other tokens")
        return kept[: self.settings.width]

    def _best(
        self, suffix: tuple[int, ...], swaps: Sequence[tuple[int, int]], losses: Tensor
    ) -> tuple[tuple[int, ...], float]:
        """The candidate of least loss that survives retokenisation behind every request, those that join later too."""
        for i in losses.argsort().tolist():
            candidate = _swapped(suffix, swaps[i])
            if all(self._survives(b, [candidate])[0] for b in self.behaviours[1:]):
                return candidate, float(losses[i])
        raise InputError("no candidate survives retokenisation behind every request: begin with another suffix")

    def _survives(self, b: Behaviour, suffixes: Sequence[tuple[int, ...]]) -> list[bool]:
        """Whether each suffix, decoded and tokenised again behind the request, gives the same ids."""
        texts = [self.text(suffix) for suffix in suffixes]
        read = b.spell(texts)
        return [
            text == text.rstrip() and ids == [*b.before, *suffix, *b.after]
            for text, ids, suffix in zip(texts, read, suffixes, strict=True)
        ]

    def text(self, suffix: Sequence[int]) -> str:
        """The suffix as it is typed, its leading space included."""
        behind = [*self.anchor, *suffix]  # some tokenizers drop a space that begins a text
        read = [self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (behind, self.anchor)]
        return str(read[0][len(read[1]) :])


def _decode(lm: Any, cache: Any, skipped: int, row: Row, **inputs: Tensor) -> Tensor:
    """Final states of the tokens behind the first `skipped`, which the cache holds."""
    more: dict[str, Any] = {}
    if (mask := row.mask(lm.dtype)) is not None:
        given = next(iter(inputs.values()))
        more = {
            "attention_mask": mask[..., skipped:, :].to(given.device).expand(len(given), -1, -1, -1),
            "position_ids": torch.tensor([row.tree.positions[skipped:]], device=given.device),
        }
    found: Tensor = lm.base_model(
        past_key_values=cache, use_cache=cache is not None, **inputs, **more
    ).last_hidden_state
    return found


def _loss(subject: Subject, b: Behaviour, suffix: Sequence[int]) -> Tensor:
    """The loss of one behaviour on one model, without any cache."""
    prompt = [*b.before, *suffix, *b.after]
    branches = [(len(prompt), target) for target in (b.wanted, *b.unwanted)]
    return combine(b, trees.branch_logps(subject, prompt, branches).double())


def _asks(subject: Subject) -> tuple[str, str]:
    """What tells how a request becomes tokens, beside the vocabulary."""
    return chat.template_hash(subject.tokenizer), chat.check(subject.tokenizer).bos


def _swapped(suffix: tuple[int, ...], swap: tuple[int, int]) -> tuple[int, ...]:
    place, token = swap
    return (*suffix[:place], token, *suffix[place + 1 :])


def _allowed(subject: Subject, ascii_only: bool) -> Tensor:
    """Which tokens (V,) may stand in a suffix: no control tokens, none that decode to nothing or to broken text."""
    tokenizer: Any = subject.tokenizer
    size = lm_head.causal_lm(subject.model).get_input_embeddings().weight.shape[0]
    allowed = torch.zeros(size, dtype=torch.bool)
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    for i, text in enumerate(texts[:size]):
        sound = bool(text) and text.isprintable() and "\ufffd" not in text
        allowed[i] = sound and (text.isascii() or not ascii_only)
    allowed[[i for i in chat.control_ids(tokenizer) if i < size]] = False
    return allowed


def check(settings: Settings) -> None:
    """Raises InputError for a budget of zero."""
    for name in ("steps", "width", "top", "batch"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}, a budget of nothing; give at least 1")
