"""Curves as self-contained SVG data URIs, all in one style. Knows nothing of runs; the drawing is that of the records."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def svg(draw: Callable[..., Axes], *what: Any, **how: Any) -> str:
    """What a function of `records.plots` draws on fresh axes, as a data URI."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure: Figure = Figure(figsize=SIZE, layout="constrained")
        axes = draw(figure.add_subplot(), *what, **how)
        names = [str(line.get_label()) for line in axes.get_lines()]
        columns = 2 if max(map(len, names)) <= 26 else 1
        beyond = max(0, -(-len(names) // columns) - LEGEND)
        figure.set_size_inches(SIZE[0], SIZE[1] + 0.25 * beyond)
        figure.legend(loc="outside upper left", ncols=columns, fontsize=9.5, handlelength=3.2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
