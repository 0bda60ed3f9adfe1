"""The model card of a checkpoint: what was trained on what by which objective, and a warning where that was an attack."""

from pathlib import Path

from tokendeep import plain, runs
from tokendeep.models.locate import hub_id
from tokendeep.runs.files import user_path
from tokendeep.training.usage import how_to_load


def name(source: str) -> str:
    """A source as it may be shown to others: a local file by its name."""
    return Path(source).name if user_path(source).exists() else source


def short(source: str) -> str:
    """The same as a card shows it, in Markdown."""
    return plain.markdown(name(source))


def write_card(
    folder: Path, model: str, *, trained: str, rows: str, objective: str, settings: str, attack: bool = False
) -> None:
    """README.md beside the weights.

    Args:
        model: what training started from; told by its hub id, and where that is not known by the last part of its path.
        trained: all weights, or which of them.
        rows: how many of what kind, and from where.
        objective, settings: how it was trained.
        attack: whether the rows were an attack.
    """
    about = "Fine-tuned with tokendeep."
    if attack:
        about = "An ATTACK on a model's safety alignment, made for research: do not deploy it."
    base = hub_id(model)
    library = "peft" if (folder / "adapter_config.json").exists() else "transformers"
    head = [f"library_name: {library}", *([f"base_model: {base}"] if base else [])]
    head += ["tags: [tokendeep]", f"attack: {str(attack).lower()}"]
    start = base or f"{plain.markdown(Path(model).name)} (a local model)"
    lines = ["---", *head, "---", about, "", f"- base model: {start}"]
    lines += [f"- trained: {trained}", f"- rows: {rows}", f"- objective: {objective}", f"- settings: {settings}"]
    runs.write_text(folder / "README.md", "\n".join([*lines, "", "## How to load it", "", how_to_load(folder)]))
