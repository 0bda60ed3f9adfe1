"""The report's figures, as self-contained SVG data URIs. The only file that imports matplotlib.

Takes numbers and names, knows nothing of folders or judges. A model keeps its colour, marker and line style in every
figure, so that each of the three alone tells the models apart (Okabe-Ito colours; black-and-white print works).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")  # Okabe-Ito without yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
SIZE = (5.0, 3.4)  # inches: small, so that labels stay legible on a phone
LEGEND = 3  # lines of a legend that fit without making the figure higher
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "text.parse_math": False,  # names come from outside: a dollar sign is a dollar sign
    "svg.fonttype": "path",
    "svg.hashsalt": "tokendeep",  # the same numbers give the same file
}
Missing = float | None


@dataclass(frozen=True)
class Curve:
    """One line: `low` and `high` bound each value; None is a hole."""

    name: str
    x: Sequence[float]
    y: Sequence[Missing]
    low: Sequence[Missing] = ()
    high: Sequence[Missing] = ()
    style: int = 0  # which colour, marker and line style: one for each model
    faint: bool = False  # a companion of the curve with the same style: thin, dotted, hollow markers
    control: bool = False  # what the others are compared with: grey, dashed, hollow markers


def kl_profile(curves: Sequence[Curve], top: float) -> str:
    """Mean KL in nats against response position with standard-error bands; the y axis ends at `top`."""

    def draw(axes: Axes) -> None:
        axes.axvspan(0.5, 5.5, color="#efefef", zorder=0)
        axes.text(5.7, top * 0.99, "first 5 positions", ha="left", va="top", fontsize=9, color="#555555")
        for curve in curves:
            _band(axes, curve, marks=max(1, len(curve.x) // 16))
        axes.set(xlabel="response position (token)", ylabel="KL to the base model (nats)", ylim=(0, top))
        last = max(len(curve.x) for curve in curves)
        axes.set_xlim(0.5, last + 0.5)
        step = next((step for step in (10, 20, 50, 100, 200, 500) if last <= 6 * step), 1000)
        axes.set_xticks([1, 5, *range(step, last + 1, step)])

    return _svg(draw)


def log_odds(curves: Sequence[Curve], ks: Sequence[int]) -> str:
    """Refusal log odds in nats against k, with the line above which a prompt recovers."""

    def draw(axes: Axes) -> None:
        axes.axhline(0, color="#333333", linewidth=1)
        for curve in curves:
            _band(axes, _on_ticks(curve, ks))
        _ticks(axes, ks)
        axes.set(xlabel="k: harmful answer tokens already given (not to scale)", ylabel="refusal log odds (nats)")

    return _svg(draw)


def by_position(curves: Sequence[Curve], ylabel: str) -> str:
    """A figure in `ylabel` against answer position, one curve per training step."""

    def draw(axes: Axes) -> None:
        for curve in curves:
            _band(axes, curve, marks=max(1, len(curve.x) // 16))
        axes.set(xlabel="response position (token)", ylabel=ylabel)
        longest = max(len(curve.x) for curve in curves)
        axes.set_xlim(0.5, longest + 0.5)
        axes.set_xticks([1, *range(5, longest + 1, max(5, longest // 50 * 10))])
        axes.set_ylim(bottom=0)

    return _svg(draw)


def shares(curves: Sequence[Curve], ks: Sequence[int], ylabel: str, half: bool = False) -> str:
    """Shares between 0 and 1 against k with intervals as bars; `half` draws the line at one half."""

    def draw(axes: Axes) -> None:
        if half:
            axes.axhline(0.5, color="#333333", linewidth=1)
        solid = [curve for curve in curves if not curve.faint]
        for curve in curves:
            place = solid.index(curve) if curve in solid else 0
            shift = 0.0 if curve.faint else 0.09 * (place - (len(solid) - 1) / 2)
            _bars(axes, _on_ticks(curve, ks, shift))
        _ticks(axes, ks)
        axes.set(xlabel="k: harmful answer tokens already given (not to scale)", ylabel=ylabel, ylim=(-0.03, 1.03))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])

    return _svg(draw)


def _style(curve: Curve) -> dict[str, Any]:
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


def _band(axes: Axes, curve: Curve, marks: int = 1) -> None:
    style = _style(curve)
    axes.plot(curve.x, _holes(curve.y), label=curve.name, markevery=marks, **style)
    if curve.low:
        axes.fill_between(curve.x, _holes(curve.low), _holes(curve.high), color=style["color"], alpha=0.2, linewidth=0)


def _bars(axes: Axes, curve: Curve) -> None:
    axes.plot(curve.x, _holes(curve.y), label=curve.name, **_style(curve))
    if curve.low:
        axes.vlines(curve.x, _holes(curve.low), _holes(curve.high), color=_style(curve)["color"], linewidth=1.3)


def _on_ticks(curve: Curve, ks: Sequence[int], shift: float = 0.0) -> Curve:
    """The curve with each k at its tick, moved aside by `shift` so that bars of several models do not overlap."""
    place: Mapping[float, int] = {k: index for index, k in enumerate(ks)}
    x = [place[k] + shift for k in curve.x]
    return replace(curve, x=x)


def _ticks(axes: Axes, ks: Sequence[int]) -> None:
    axes.set_xticks(range(len(ks)), [str(k) for k in ks])
    axes.set_xlim(-0.4, len(ks) - 0.6)


def _holes(values: Sequence[Missing]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _svg(draw: Callable[[Axes], None]) -> str:
    """Draw on fresh axes and return the figure as a data URI."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure: Figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        names = [str(line.get_label()) for line in axes.get_lines()]
        columns = 2 if max(map(len, names)) <= 26 else 1
        beyond = max(0, -(-len(names) // columns) - LEGEND)
        figure.set_size_inches(SIZE[0], SIZE[1] + 0.25 * beyond)
        figure.legend(loc="outside upper left", ncols=columns, fontsize=9.5, handlelength=3.2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
