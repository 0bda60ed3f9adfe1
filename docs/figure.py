"""The figure of the README, from the two measurements of a demo: python docs/figure.py demo-out docs/depth.png"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"aligned": "#c44e52", "deepened": "#4c72b0"}


def draw(demo: Path, out: Path) -> None:
    """KL by position on the left, the share of prompts that recover on the right."""
    figure, (kl, recovery) = pyplot.subplots(1, 2, figsize=(8.4, 2.7), layout="constrained")
    for name, colour in COLOURS.items():
        profile = json.loads((demo / name / "measure" / "profile.json").read_text(encoding="utf-8"))
        means = profile["kl"]["mean"]
        kl.plot(range(1, len(means) + 1), means, color=colour, label=name)
        recovery.plot(
            profile["recovery"]["k"], profile["recovery"]["recovered"], "o-", markersize=3, color=colour, label=name
        )
    kl.set(xlabel="answer position", ylabel="KL to the base (nats)", ylim=(0, None))
    recovery.set(xlabel="harmful tokens given in advance (k)", ylabel="prompts that recover", ylim=(-0.03, 1.03))
    recovery.axhline(0.5, color="grey", linewidth=0.6, linestyle=":")
    for axes in (kl, recovery):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(out, dpi=140)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
