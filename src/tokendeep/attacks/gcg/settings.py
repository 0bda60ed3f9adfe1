"""How a search for a suffix is done, and where it stands: plain values. Knows nothing of models."""

from dataclasses import dataclass


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
