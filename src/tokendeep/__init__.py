"""tokendeep: how many tokens deep does a chat model's safety go, and how to make it go deeper.

Importing the package loads nothing heavy; the names below are resolved on first use.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(["Chat", "Decoding", "Encoded", "Message", "Pair", "Prompt", "Subject", "Triple"], "types"),
    "InputError": "errors",
    **dict.fromkeys(["read_chats", "read_pairs", "read_prompts", "read_triples"], "data"),
    **dict.fromkeys(["token_kl", "token_logps"], "compute.scoring"),
    **dict.fromkeys(
        [
            "attack",
            "audit",
            "calibrate",
            "compare",
            "deepen",
            "finetune",
            "judge",
            "load",
            "measure",
            "mend",
            "overlap",
            "pairs",
            "parity",
            "poison",
        ],
        "verbs.functions",
    ),
    "judge_refusal": "judges",
    **dict.fromkeys(["BetaSchedule", "constrained_nll", "constraint_weights", "response_positions"], "training.eq3"),
    "ConstrainedSFTConfig": "training.settings",
    "ResponseSFTTrainer": "training.sft",
    "ConstrainedSFTTrainer": "training.trainer",
    "ReferencedSFTTrainer": "training.referenced",
    "SafetyAnchor": "training.safety",
}
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tokendeep' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tokendeep.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
