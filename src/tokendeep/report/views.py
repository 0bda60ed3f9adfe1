"""What of an answer a judge saw: which views are another look, and which the same under another name. Knows rates alone."""

import json
from collections.abc import Collection, Iterable

from tokendeep.attacks import ATTACKS
from tokendeep.judges import of_harm
from tokendeep.records import Rate

WHOLE = "conversation"  # the view that is another look also where nothing was given in advance


def given(rate: Rate) -> bool:
    """Whether a part of the answer was given in advance, so that a judge of all of it sees more than the model's own."""
    attack = ATTACKS.get(rate.attack)
    return attack is None or (attack.prefills and (rate.params.k != 0 or bool(rate.params.lead)))


def view(rate: Rate) -> str | None:
    """What the judge saw, where another view would have shown it something else; None where it decides that itself.

    Where nothing was given in advance, `continuation` and `full` are one.
    """
    attack, judged = ATTACKS.get(rate.attack), rate.params.judged
    if attack is not None and attack.refuses:
        return None
    return judged if given(rate) or judged == WHOLE else None


def distinct(rates: Iterable[Rate]) -> list[Rate]:
    """The rows without those that tell of the same look at the same answers under another view's name."""
    first: dict[str, Rate] = {}
    for rate in rates:
        about = {**rate.params.given(), "judged": view(rate)}
        first.setdefault(json.dumps([rate.attack, rate.judge, rate.model, about], sort_keys=True), rate)
    return list(first.values())


def told(rate: Rate, every: Collection[Rate]) -> str:
    """The judge of a row and its view, for behind a name, as far as they tell it from other rows."""
    by = [f"judge {rate.judge}"] if len({one.judge for one in every}) > 1 else []
    own = view(rate)
    by += [own] if own and len({view(one) for one in every} - {None}) > 1 else []
    return f" ({', '.join(by)})" if by else ""


def counted(judges: Iterable[str]) -> str:
    """What of the answers these judges count."""
    harm = set(map(of_harm, judges))
    return "counted" if len(harm) > 1 else "harmful" if harm == {True} else "not refused"
