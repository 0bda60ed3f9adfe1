"""No attack: the plain request, the point that every attack is compared with."""

from collections.abc import Iterable
from dataclasses import dataclass

from tokendeep.attacks.base import Attack, Params, Prepared, Rows, Victim
from tokendeep.attacks.prompts import attacked
from tokendeep.types import Prompt


@dataclass(frozen=True, kw_only=True)
class NoneOptions:
    """A plain request has no options."""


def none(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The plain request, with nothing prefilled."""
    return [attacked(prompt, "none", {}) for prompt in prompts]


def prepare(rows: Rows, options: NoneOptions, victim: Victim) -> Prepared:
    return Prepared(none(rows.prompts))


def describe(params: Params) -> str:
    return "plain request"


ATTACK = Attack("none", "asks the plain request", NoneOptions, prepare, describe)
