"""VERB mend: a fine-tuned model that has lost safety -> a few more steps that hold it to its aligned model's answers.

The rows of the task stand in for its utility, and a safety anchor beside them for what the aligned model refuses. It is
`finetune` with another start: what is held is what the model said before it was fine-tuned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from tokendeep import data
from tokendeep.errors import InputError
from tokendeep.models import locate
from tokendeep.records import Manifest, Training
from tokendeep.training.objectives import OBJECTIVES
from tokendeep.training.options import Warmup, training
from tokendeep.types import Subject
from tokendeep.verbs import finetune
from tokendeep.verbs.common import heading
from tokendeep.verbs.finetune import FinetuneOptions, FinetunePlan

what = heading("What to mend")
SHARE = 3  # it takes one step for so many that the fine-tuning took


@dataclass(frozen=True, kw_only=True)
class MendOptions(FinetuneOptions):
    """Bring back safety that fine-tuning has undone, by holding a model to what its aligned model says."""

    model: Annotated[str, what(help="The fine-tuned model; an adapter goes on being trained.")]
    aligned: Annotated[
        str | None,
        what(help="The model before it was fine-tuned, whose answers are held; a new adapter's is its base."),
    ] = None
    data: Annotated[str, what(help="Rows of the task, so that it is not unlearnt: chats or pairs.")]
    objective: Annotated[
        str, what(help="; ".join(f"{name}: {one.summary}" for name, one in OBJECTIVES.items()) + ".")
    ] = "safety-anchor"
    epochs: Annotated[
        int, training(help="Passes over the rows, instead of a third of the steps of the fine-tuning.")
    ] = 0
    warmup_steps: Warmup = 0


# Inherited options are written in names that are not known in this file.
MendOptions.__init__.__annotations__ = get_type_hints(MendOptions, include_extras=True)


def plan(options: MendOptions, subject: Subject | None = None, *, rows: data.Source | None = None) -> FinetunePlan:
    """Read and check everything; loads no weights and writes nothing. See `finetune.plan`.

    Raises:
        InputError: as `finetune.plan`; nobody knows how many steps to take; the aligned model is not there.
    """
    if not options.safety_weight:
        raise InputError("--safety-weight is 0, with which nothing is mended; give a number above 0.")
    attacked = options.attack or _attacked(options)
    chosen = replace(options, max_steps=options.max_steps or _steps(options), attack=attacked)
    made = finetune.plan(chosen, subject, rows=rows)
    if made.safety is None:
        raise InputError(f"mend holds refusals, but --objective {options.objective} has none; give --safety.")
    _check_aligned(options, made.adapter)
    if options.aligned:
        from tokendeep import models

        models.check_spec(options.aligned, locate.plain(options))
    return replace(made, verb="mend", start=options.aligned or "base")


def _check_aligned(options: MendOptions, adapter: bool) -> None:
    """Raise InputError where `aligned` is missing, or is not what the model was before it was fine-tuned."""
    if not adapter:
        if not options.aligned:
            raise InputError(
                f"{options.model} does not say what it was before it was fine-tuned; give --aligned, that model."
            )
    elif options.aligned and not locate.is_adapter(options.aligned):
        raise InputError(f"{options.model} is an adapter, and is held to what its base says; leave --aligned out.")
    elif not options.aligned and (before := _adapter_before(options)):
        raise InputError(
            f"{options.model} is an adapter that was one already before it was fine-tuned; give it as --aligned (its folder "
            f"says {before})."
        )


def _adapter_before(options: MendOptions) -> str | None:
    """The adapter that the fine-tuning went on from, where its folder says so."""
    told = Path(options.model).parent
    before = Manifest.load(told).config.model if (told / Manifest.FILE).is_file() else None
    return before if before and locate.is_adapter(before) else None


def _attacked(options: MendOptions) -> bool:
    """Whether the fine-tuning was an attack; what comes of it is marked as one too."""
    told = Path(options.model).parent
    return (told / Manifest.FILE).is_file() and bool(Manifest.load(told).attack)


def _steps(options: MendOptions) -> int:
    """A third of the rows that the fine-tuning took, in steps, where its folder says how many."""
    told = Path(options.model).parent / Training.FILE
    if options.epochs:
        return 0
    if not told.is_file():
        raise InputError(
            f"{told} is not there, which would say how many steps the fine-tuning took; give --max-steps, about a third of "
            "them, or --epochs."
        )
    rows = Manifest.load(told.parent).config.batch_size or options.batch_size
    return max(1, Training.load(told).steps * rows // (SHARE * options.batch_size))


def run(plan: FinetunePlan, *, callbacks: Sequence[Any] = (), show: bool = True, part: bool = False) -> Path:
    """Mend the model; writes what `finetune` does. Returns the folder."""
    return finetune.run(plan, callbacks=callbacks, show=show, part=part)
