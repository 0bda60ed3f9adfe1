"""Every name that the trainers use although TRL or transformers call it private, with the reason: none of it may move unseen.

All else that they override or call is documented there. A test looks each of these up in the versions that are installed.
"""

from __future__ import annotations

import importlib

PRIVATE = {
    "trl.SFTTrainer._prepare_dataset": "by which rows that are evaluated later are cut and packed as those of the constructor",
    "trl.SFTTrainer._name": "by which the model card names the method; TRL has no other way",
    "trl.SFTTrainer._tag_names": "by which the model card is tagged; TRL has no other way",
    "trl.SFTTrainer._paper": "by which the model card names the paper; TRL has no other way",
    "trl.SFTTrainer._set_signature_columns_if_needed": "which takes `_signature_columns`, the columns that reach the collator, "
    "as they were set",
}


def check(name: str, reason: str | None = None) -> None:
    """Look a name up. Raises LookupError where it is gone, with what it was used for."""
    library, *path = name.split(".")
    module = importlib.import_module(library)
    found: object = module
    for part in path:
        if not hasattr(found, part):
            why = PRIVATE.get(name) or reason
            raise LookupError(
                f"{library} {module.__version__} has no {name} any more, {why}: look for what replaced it."
            )
        found = getattr(found, part)
