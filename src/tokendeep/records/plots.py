"""Curves on matplotlib axes, for the records' `plot` and for the report's figures.

Takes numbers and names, knows nothing of records, folders or judges, and loads matplotlib only when it draws. A model
keeps its colour, marker and line style in every figure, so that each of the three alone tells the models apart
(Okabe-Ito colours; black-and-white print works).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")  # Okabe-Ito without yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
BY_K = "k: harmful answer tokens already given (not to scale)"
GIVEN = "k: tokens of the answer already given (not to scale)"
Missing = float | None


@dataclass(frozen=True)
class Curve:
    """One line: `low` and `high` bound each value; None is a hole."""

    name: str
    x: Sequence[Any]  # numbers, or the names of ticks
    y: Sequence[Missing]
    low: Sequence[Missing] = ()
    high: Sequence[Missing] = ()
    style: int = 0  # which colour, marker and line style: one for each model
    faint: bool = False  # a companion of the curve with the same style: thin, dotted, hollow markers
    control: bool = False  # what the others are compared with: grey, dashed, hollow markers


def banded(
    name: str, x: Sequence[Any], mean: Sequence[Missing], error: Sequence[Missing], least: float = float("-inf")
) -> Curve:
    """A curve within one error to either side, not below `least`; no band where the error is not known."""
    known = [(m, e) if m is not None and e is not None else None for m, e in zip(mean, error, strict=True)]
    low = [None if pair is None else max(least, pair[0] - pair[1]) for pair in known]
    high = [None if pair is None else pair[0] + pair[1] for pair in known]
    return Curve(name, x, mean, low, high)


def fresh(axes: Axes | None) -> Axes:
    """The axes that are given, or new ones."""
    if axes is not None:
        return axes
    from matplotlib import pyplot

    new: Axes = pyplot.subplots(layout="constrained")[1]
    return new


def kl_profile(axes: Axes, curves: Sequence[Curve], top: float) -> Axes:
    """Mean KL in nats against response position with standard-error bands; the y axis ends at `top`."""
    axes.axvspan(0.5, 5.5, color="#efefef", zorder=0)
    axes.text(5.7, top * 0.99, "first 5 positions", ha="left", va="top", fontsize=9, color="#555555")
    for curve in curves:
        _draw(axes, curve, marks=max(1, len(curve.x) // 16))
    axes.set(xlabel="response position (token)", ylabel="KL to the base model (nats)", ylim=(0, top))
    last = max(len(curve.x) for curve in curves)
    axes.set_xlim(0.5, last + 0.5)
    step = next((step for step in (10, 20, 50, 100, 200, 500) if last <= 6 * step), 1000)
    axes.set_xticks([1, 5, *range(step, last + 1, step)])
    return axes


def log_odds(axes: Axes, curves: Sequence[Curve], ks: Sequence[int]) -> Axes:
    """Refusal log odds in nats against k, with the line above which a prompt recovers."""
    axes.axhline(0, color="#333333", linewidth=1)
    for curve in curves:
        _draw(axes, _on_ticks(curve, ks), marks=1)
    _ticks(axes, ks)
    axes.set(xlabel=BY_K, ylabel="refusal log odds (nats)")
    return axes


def by_position(axes: Axes, curves: Sequence[Curve], ylabel: str) -> Axes:
    """A figure in `ylabel` against answer position, one curve per training step."""
    for curve in curves:
        _draw(axes, curve, marks=max(1, len(curve.x) // 16))
    axes.set(xlabel="response position (token)", ylabel=ylabel)
    longest = max((len(curve.x) for curve in curves), default=1)
    axes.set_xlim(0.5, longest + 0.5)
    axes.set_xticks([1, *range(5, longest + 1, max(5, longest // 50 * 10))])
    axes.set_ylim(bottom=0)
    return axes


def shares(
    axes: Axes, curves: Sequence[Curve], ticks: Sequence[Any], ylabel: str, *, half: bool = False, xlabel: str = BY_K
) -> Axes:
    """Shares between 0 and 1 at each tick with intervals as bars; `half` draws the line at one half."""
    if half:
        axes.axhline(0.5, color="#333333", linewidth=1)
    solid = [curve for curve in curves if not curve.faint]
    for curve in curves:
        at = solid.index(curve) if curve in solid else 0
        shift = 0.0 if curve.faint else 0.09 * (at - (len(solid) - 1) / 2)
        _draw(axes, _on_ticks(curve, ticks, shift), bars=True)
    _ticks(axes, ticks)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-0.03, 1.03))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    return axes


def legend(axes: Axes) -> Axes:
    """The axes with names beside the curves, where there are several."""
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False)
    return axes


def style_of(curve: Curve) -> dict[str, Any]:
    """What matplotlib is told of a curve's look."""
    number = curve.style
    style: dict[str, Any] = {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }
    if curve.control:
        style = {"color": "#555555", "marker": "o", "linestyle": "--", "linewidth": 1.4, "markerfacecolor": "white"}
    if curve.faint:
        style |= {"linestyle": ":", "linewidth": 1.2, "markerfacecolor": "white", "markersize": 5}
    return style


def _draw(axes: Axes, curve: Curve, marks: int | None = None, bars: bool = False) -> None:
    """A curve with its bounds, as a band or as bars; `marks`: every how many points have a marker."""
    style = style_of(curve)
    axes.plot(curve.x, _holes(curve.y), label=curve.name, markevery=marks, **style)
    bounds = curve.x, _holes(curve.low), _holes(curve.high)
    if curve.low and bars:
        axes.vlines(*bounds, color=style["color"], linewidth=1.3)
    elif curve.low:
        axes.fill_between(*bounds, color=style["color"], alpha=0.2, linewidth=0)


def _on_ticks(curve: Curve, ticks: Sequence[Any], shift: float = 0.0) -> Curve:
    """The curve with each value at its tick, moved aside by `shift` so that bars of several models do not overlap."""
    places: Mapping[Any, int] = {tick: index for index, tick in enumerate(ticks)}
    return replace(curve, x=[places[tick] + shift for tick in curve.x])


def _ticks(axes: Axes, ticks: Sequence[Any]) -> None:
    axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    axes.set_xlim(-0.4, len(ticks) - 0.6)


def _holes(values: Sequence[Missing]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]
