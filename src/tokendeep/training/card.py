"""The model card of a checkpoint: what it was trained on and how, and a warning where that was an attack."""

from __future__ import annotations

from pathlib import Path

from tokendeep import runs


def write_card(folder: Path, model: str, how: str, *, attack: bool) -> None:
    """README.md beside the weights.

    Args:
        model: what training started from; only the last part of a path is told.
        how: objective, rows and settings in words.
        attack: whether the rows were an attack.
    """
    about = "Fine-tuned with tokendeep."
    if attack:
        about = "An ATTACK on a model's safety alignment, made for research: do not deploy it."
    name = Path(model).name
    library = "peft" if (folder / "adapter_config.json").exists() else "transformers"
    runs.write_text(
        folder / "README.md",
        f"---\nlibrary_name: {library}\nbase_model: {name}\ntags: [tokendeep]\nattack: {str(attack).lower()}\n---\n"
        f"{about}\n\nStarted from {name}; {how}.\n",
    )
