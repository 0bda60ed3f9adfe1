"""VERB mend: a fine-tuned model that has lost safety -> a few more steps that hold it to its aligned model's answers.

The rows of the task stand in for its utility, and a safety anchor beside them for what the aligned model refuses. It is
`finetune` with another start: what is held is what the model said before it was fine-tuned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from tokendeep import data
from tokendeep.errors import InputError
from tokendeep.models import locate
from tokendeep.models.options import ModelOptions
from tokendeep.records import Manifest, Training
from tokendeep.runs.files import user_path
from tokendeep.training.objectives import OBJECTIVES
from tokendeep.training.options import Warmup, training
from tokendeep.types import Subject
from tokendeep.verbs import finetune
from tokendeep.verbs.common import advanced, heading
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
    safety: Annotated[
        str | None,
        training(
            help="Harmful instructions at which the aligned model's refusals are brought back, or stock, the default: those of "
            "tokendeep; with harmful answers, also what it says behind their first tokens."
        ),
    ] = None
    harmless: Annotated[
        str | None,
        training(help="Harmless instructions at which the aligned model's answers are held beside them; or stock."),
    ] = None
    safety_loss: Annotated[
        Literal["kl", "ce"],
        advanced(
            help="kl: divergence from the aligned model, over the full vocabulary; ce: cross-entropy on its answers."
        ),
    ] = "kl"
    epochs: Annotated[
        int, training(help="Passes over the rows, instead of a third of the steps of the fine-tuning.")
    ] = 0
    max_steps: Annotated[int, training(help="Steps to train; 0 means a third of those of the fine-tuning.")] = 0
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
    for spec, how in ((options.aligned, locate.plain(options)), (None if subject else options.model, options)):
        if spec:
            _check_there(spec, how, options.base)
    attacked = options.attack or _attacked(options)
    chosen = replace(options, max_steps=options.max_steps or _steps(options), attack=attacked)
    made = finetune.plan(chosen, subject, rows=rows)
    if made.safety is None:
        raise InputError(f"mend holds refusals, but --objective {options.objective} has none; give --safety.")
    _check_aligned(options, made.adapter)
    return replace(made, verb="mend", start=options.aligned or "base")


def _check_there(spec: str, how: ModelOptions, base: str | None) -> None:
    """Raise InputError where a model, or the base of an adapter, is not there."""
    from tokendeep import models

    base = base if locate.is_adapter(spec) else None
    models.check_spec(spec, how, base=base)
    place = locate.locate(spec, how)
    if place.adapter:
        locate.base_of(place, base, how)


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
    told = _told(options)
    before = Manifest.load(told).config.model if told else None
    return before if before and locate.is_adapter(before) else None


def _attacked(options: MendOptions) -> bool:
    """Whether the fine-tuning was an attack; what comes of it is marked as one too."""
    told = _told(options)
    return told is not None and bool(Manifest.load(told).attack)


def _told(options: MendOptions) -> Path | None:
    """The folder of the fine-tuning whose checkpoint the model is; None where it is none."""
    folder = user_path(options.model)
    return folder.parent if folder.is_dir() and (folder.parent / Manifest.FILE).is_file() else None


def _steps(options: MendOptions) -> int:
    """A third of the rows that the fine-tuning took, in steps, where its folder says how many."""
    if options.epochs:
        return 0
    told = _told(options)
    if told is None or not (told / Training.FILE).is_file():
        raise InputError(
            f"{options.model} does not lie in the folder of a fine-tuning, whose {Training.FILE} would say how many steps it "
            "took; give --max-steps, about a third of them, or --epochs."
        )
    rows = Manifest.load(told).config.batch_size or options.batch_size
    return max(1, Training.load(told / Training.FILE).steps * rows // (SHARE * options.batch_size))


def run(plan: FinetunePlan, *, callbacks: Sequence[Any] = (), show: bool = True, part: bool = False) -> Path:
    """Mend the model; writes what `finetune` does. Returns the folder."""
    return finetune.run(plan, callbacks=callbacks, show=show, part=part)
