"""The sections of a report, by name in `SECTIONS`, in the order in which they stand.

To add one: `build(report) -> Section` in a file of its own here, which computes its findings, text, figures, tables and
CSV rows in one pass, and one entry below. A section with nothing to show is left out.
"""

from collections.abc import Callable

from tokendeep.report.report import Report
from tokendeep.report.section import Section
from tokendeep.report.sections import (
    audit,
    battery,
    categories,
    corrected,
    decoding,
    dynamics,
    finetune,
    kl,
    outcomes,
    overrefusal,
    paired,
    paper,
    poison,
    rates,
    recovery,
    runs,
    suffix,
    utility,
)

SECTIONS: dict[str, Callable[[Report], Section]] = {
    "runs": runs.build,
    "kl": kl.build,
    "recovery": recovery.build,
    "rates": rates.build,
    "corrected": corrected.build,
    "paired": paired.build,
    "overrefusal": overrefusal.build,
    "utility": utility.build,
    "categories": categories.build,
    "outcomes": outcomes.build,
    "decoding": decoding.build,
    "suffix": suffix.build,
    "battery": battery.build,
    "audit": audit.build,
    "finetune": finetune.build,
    "poison": poison.build,
    "dynamics": dynamics.build,
    "paper": paper.build,
}
FOUND_LAST = ("recovery",)  # at the top of the report, what models did stands before how deep they are
