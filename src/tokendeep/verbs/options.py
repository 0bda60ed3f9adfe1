"""The settings of each verb: one dataclass each, read by the command line and by YAML files.

Light on purpose: importing it loads nothing heavy, so that `tokendeep --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

Needed = Annotated[str, Parameter(required=True)]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Tell the paper's story live on the packaged real model: shallow, attacked, deepened, attacked again.

    Args:
        out: folder for everything the demo writes, the report included.
        fresh: train again even where trained models are in the cache.
        seed: seed of everything.
    """

    out: str = "demo-out"
    fresh: bool = False
    seed: int = 0
