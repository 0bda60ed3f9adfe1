"""Decoding-parameter exploitation: the plain request, sampled with many settings, of which one may do.

Knows the grid of Huang et al. 2023 (arXiv 2310.06987) as the paper uses it, and how a setting is written. One knob is
turned at a time; the others are off (temperature 1, no top-p, no top-k), where the original leaves them to the model's
own generation settings. Knows nothing of generation or judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tokendeep import runs
from tokendeep.attacks.prompts import attacked
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Prompt

GREEDY_NAME = "greedy"
KNOBS = ("temperature", "top_p", "top_k")
TWENTIETHS = tuple(round(n / 20, 2) for n in range(1, 21))
TOP_KS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


@dataclass(frozen=True)
class Setting:
    """One way to sample: its name, the knob that is turned (None: greedy) and to what."""

    name: str
    knob: str | None
    value: float

    def decoding(self, shared: Decoding) -> Decoding:
        """`shared`, with this setting's own temperature, top_p and top_k."""
        own: dict[str, float] = {"temperature": 0.0 if self.knob is None else 1.0, "top_p": 1.0, "top_k": 0}
        if self.knob is not None:
            own[self.knob] = self.value
        return replace(shared, temperature=own["temperature"], top_p=own["top_p"], top_k=int(own["top_k"]))


def seed_of(setting: str, seed: int) -> int:
    """The seed of one setting's draws: no two settings share them, so each is a trial of its own."""
    return runs.seed(f"{setting}|{seed}")


def paper_grid() -> list[Setting]:
    """Greedy and the 49 sampled settings: temperature and top-p .05 to 1 in steps of .05, and nine top-k.

    Temperature 1 and top-p 1 are the same distribution, drawn from twice, and top-k 1 is greedy again, as in the original.
    """
    values = {"temperature": TWENTIETHS, "top_p": TWENTIETHS, "top_k": TOP_KS}
    return [_setting(GREEDY_NAME), *(_setting(f"{knob}={value:g}") for knob in KNOBS for value in values[knob])]


def parse_grid(names: Iterable[str]) -> list[Setting]:
    """Settings by name: greedy, temperature=T, top_p=P, top_k=K, or paper for all of `paper_grid`; each once.

    Raises:
        InputError: none, an unknown one, or a value out of range.
    """
    found: dict[str, Setting] = {}
    for name in names:
        for setting in paper_grid() if name.strip() == "paper" else [_setting(name.strip())]:
            found.setdefault(setting.name, setting)
    if not found:
        raise InputError("the grid is empty: name settings such as greedy, temperature=0.7, top_p=0.9, or paper")
    return list(found.values())


def decoding(prompts: Sequence[Prompt], grid: Sequence[Setting], shared: Decoding) -> list[Prompt]:
    """Every prompt under every setting, those of one prompt next to each other.

    Args:
        prompts: the plain requests.
        grid: the settings.
        shared: length limit and seed of all of them.
    """
    return [
        replace(
            attacked(prompt, "decoding", {"setting": setting.name}, tag=setting.name), decoding=setting.decoding(shared)
        )
        for prompt in prompts
        for setting in grid
    ]


def _setting(name: str) -> Setting:
    if name == GREEDY_NAME:
        return Setting(name, None, 0.0)
    knob, _, text = name.partition("=")
    if knob not in KNOBS:
        raise InputError(
            f"there is no decoding setting '{name}': write greedy, temperature=T, top_p=P, top_k=K, or paper for all 50"
        )
    try:
        value = float(text)
        whole = value == int(value)
    except (ValueError, OverflowError):
        raise InputError(f"'{text}' in the decoding setting '{name}' is no number") from None
    wrong = {"temperature": not value > 0, "top_p": not 0 < value <= 1, "top_k": not (value >= 1 and whole)}
    if wrong[knob]:
        need = {
            "temperature": "above 0 (0 is greedy)",
            "top_p": "above 0 and at most 1",
            "top_k": "a whole number from 1",
        }
        raise InputError(f"the decoding setting '{name}' needs a value {need[knob]}")
    return Setting(f"{knob}={value:g}", knob, value)
