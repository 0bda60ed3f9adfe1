"""The rows of decoding and suffix attacks, which are many for one attack: which of them counts, and what it is called."""

import math
from collections.abc import Sequence

from tokendeep.records import Rate
from tokendeep.report import names
from tokendeep.report.load import Run


def label(run: Run, rate: Rate) -> str:
    """The model, and what defended it while it answered."""
    return names.defended(run.labels[rate.model], rate.params.defence)


def named(run: Run, rates: Sequence[Rate], template: bool = True) -> str:
    """The model as it answered, what it was asked, and in which chat template where that is not its own."""
    return label(run, rates[0]) + where(run, template)


def where(run: Run, template: bool = True) -> str:
    """The data and the chat template, for behind a model's name."""
    own = f" (chat template {run.template})" if run.template and template else ""
    return (f" on {run.file}" if run.file else "") + own


def best_of(rates: Sequence[Rate]) -> Rate | None:
    """The row of the highest rate, the first of several; None where nothing was scored."""
    return max((rate for rate in rates if rate.n), key=lambda rate: rate.rate or 0.0, default=None)


def single(rates: Sequence[Rate]) -> dict[str, Rate]:
    """The rows of one decoding setting each, by its name."""
    return {rate.params.setting: rate for rate in rates if rate.params.setting is not None}


def any_of(rates: Sequence[Rate], knob: str) -> Rate | None:
    """The row over all settings of a knob, or over all (`all`)."""
    return next((rate for rate in rates if rate.params.any_of == knob), None)


def suffix_search(run: Run) -> tuple[str, float, str] | None:
    """Target, tokens of it (infinite: all) and model of the search; None for suffixes that come from elsewhere."""
    cost = run.cost("suffix")
    return None if cost.target is None else (cost.target, cost.target_tokens or math.inf, str(cost.found_on))


def suffix_words(run: Run) -> str:
    """What the suffixes were searched for, and on which model where it is another one."""
    search = suffix_search(run)
    if search is None:
        return "suffix"
    target, tokens, origin = search
    words = "suffix away from refusals" if target == "refusal" else "suffix towards an opening"
    words += f" of {tokens} tokens" if target != "refusal" and tokens < math.inf else ""
    elsewhere = origin != run.config.model
    return words + (f", found on {run.cost('suffix').label or 'another model'}" if elsewhere else "")
