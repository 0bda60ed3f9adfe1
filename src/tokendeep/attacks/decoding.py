"""Decoding-parameter exploitation: the plain request, sampled with many settings, of which one may do.

Knows the grid of Huang et al. 2023 (arXiv 2310.06987) as the paper uses it, and how a setting is written. One knob is
turned at a time; the others are off (temperature 1, no top-p, no top-k), where the original leaves them to the model's
own generation settings. Knows nothing of generation or judges.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from tokendeep.attacks.base import Attack, Params, Prepared, Rows, Victim, option
from tokendeep.attacks.prompts import attacked
from tokendeep.errors import InputError
from tokendeep.models.options import Names
from tokendeep.types import Decoding, Prompt

NAME = "decoding"
GREEDY_NAME = "greedy"
KNOBS = ("temperature", "top_p", "top_k")
TWENTIETHS = tuple(round(n / 20, 2) for n in range(1, 21))
TOP_KS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """Which settings are tried."""

    grid: Annotated[
        Names,
        option(
            help="Settings that decoding tries: greedy, temperature=T, top_p=P, top_k=K, or paper for its 50. The request as "
            "the original asked it, without a chat template, is --chat-template plain."
        ),
    ] = field(default_factory=lambda: ["paper"])


@dataclass(frozen=True)
class Setting:
    """One way to sample: its name, the knob that is turned (None: greedy) and to what."""

    name: str
    knob: str | None
    value: float

    def decoding(self, shared: Decoding) -> Decoding:
        """`shared`, with this setting's own temperature, top_p and top_k."""
        knobs: dict[str, float] = {"temperature": 0.0 if self.knob is None else 1.0, "top_p": 1.0, "top_k": 0}
        if self.knob is not None:
            knobs[self.knob] = self.value
        return replace(shared, temperature=knobs["temperature"], top_p=knobs["top_p"], top_k=int(knobs["top_k"]))


def paper_grid() -> list[Setting]:
    """Greedy and the 49 sampled settings: temperature and top-p .05 to 1 in steps of .05, and nine top-k.

    Temperature 1 and top-p 1 are the same distribution, drawn from twice, and top-k 1 is greedy again, as in the original.
    """
    values = {"temperature": TWENTIETHS, "top_p": TWENTIETHS, "top_k": TOP_KS}
    return [_setting(GREEDY_NAME), *(_setting(f"{knob}={value:g}") for knob in KNOBS for value in values[knob])]


def parse_grid(names: str | Iterable[str]) -> list[Setting]:
    """Settings by name, comma-separated where they are one text: greedy, temperature=T, top_p=P, top_k=K, or paper for
    all of `paper_grid`; each once.

    Raises:
        InputError: none, an unknown one, or a value out of range.
    """
    grid: dict[str, Setting] = {}
    for name in names.split(",") if isinstance(names, str) else names:
        for setting in paper_grid() if name.strip() == "paper" else [_setting(name.strip())]:
            grid.setdefault(setting.name, setting)
    if not grid:
        raise InputError("The grid is empty: name settings such as greedy, temperature=0.7, top_p=0.9, or paper.")
    return list(grid.values())


def decoding(prompts: Sequence[Prompt], grid: Sequence[Setting], shared: Decoding) -> list[Prompt]:
    """Every prompt under every setting, those of one prompt next to each other; length and seed are the `shared` ones."""
    return [
        replace(attacked(prompt, NAME, {"setting": setting.name}, tag=setting.name), decoding=setting.decoding(shared))
        for prompt in prompts
        for setting in grid
    ]


def _setting(name: str) -> Setting:
    if name == GREEDY_NAME:
        return Setting(name, None, 0.0)
    knob, _, text = name.partition("=")
    if knob not in KNOBS:
        raise InputError(
            f"There is no decoding setting '{name}': write greedy, temperature=T, top_p=P, top_k=K, or paper for all 50."
        )
    try:
        value = float(text)
        whole = value == int(value)
    except (ValueError, OverflowError):
        raise InputError(f"'{text}' in the decoding setting '{name}' is no number.") from None
    right, need = {
        "temperature": (value > 0, "above 0 (0 is greedy)"),
        "top_p": (0 < value <= 1, "above 0 and at most 1"),
        "top_k": (value >= 1 and whole, "a whole number from 1"),
    }[knob]
    if not right:
        raise InputError(f"The decoding setting '{name}' needs a value {need}.")
    return Setting(f"{knob}={value:g}", knob, value)


def check(options: DecodingOptions) -> None:
    parse_grid(options.grid)


def prepare(rows: Rows, options: DecodingOptions, victim: Victim) -> Prepared:
    return Prepared(decoding(rows.prompts, parse_grid(options.grid), victim.decoding))


def describe(params: Params) -> str:
    if "any_of" in params:
        which = "" if params["any_of"] == "all" else f" of {params['any_of']}"
        return f"{NAME}, any of {params['settings']} settings{which}"
    return f"{NAME}, {params['setting']}"


ATTACK = Attack(
    NAME, "samples the plain request with many settings", DecodingOptions, prepare, describe, check=check,
    tells=("setting",), sets=KNOBS, together=True,
)  # fmt: skip
