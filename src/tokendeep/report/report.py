"""What a report is about: the runs, what they measured and the series of their rates, looked at once.

Sections build on it. Knows nothing of words or files.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokendeep.judges import of_harm
from tokendeep.records import Calibration, Profile
from tokendeep.report import lineage, load
from tokendeep.report.load import Run
from tokendeep.report.series import Series, series


@dataclass(frozen=True)
class Measured:
    """A measurement under its model's name."""

    name: str
    run: Run
    profile: Profile


@dataclass(frozen=True)
class Report:
    """Runs that are compared; `foreign` are folders that were passed over, `calibrations` those of their judges."""

    runs: Sequence[Run]
    series: Sequence[Series]
    foreign: Sequence[Path] = ()
    calibrations: Sequence[Calibration] = ()

    @cached_property
    def models(self) -> list[str]:
        """The short names of all models."""
        return list(dict.fromkeys(run.label for run in self.runs))

    @cached_property
    def measured(self) -> list[Measured]:
        """The measurements, told apart by folder where a model was measured twice."""
        runs = [(run, run.profile) for run in self.runs if run.profile is not None]
        counts = Counter(run.label for run, _ in runs)
        return [
            Measured(run.label if counts[run.label] == 1 else f"{run.label} ({run.folder})", run, profile)
            for run, profile in runs
        ]

    @cached_property
    def harmful(self) -> list[Series]:
        return [one for one in self.series if one.role == "harmful"]

    @cached_property
    def harmless(self) -> list[Series]:
        return [one for one in self.series if one.role != "harmful" and not of_harm(one.judge)]

    @cached_property
    def origins(self) -> dict[str, set[str]]:
        """Label -> its model and all that this is known to come from."""
        return lineage.origins(self.runs)

    def pair(self, before: Series, after: Series) -> bool:
        """Whether one model was made from the other, or both from the same."""
        return bool(self.origins[before.label] & self.origins[after.label])

    @cached_property
    def styles(self) -> dict[str, int]:
        """Model or series -> the number of its look in figures."""
        styles = {label: number for number, label in enumerate(self.models)}
        return styles | {s.name: styles.get(s.label, len(styles) + n) for n, s in enumerate(self.series)}


def read(
    dirs: Sequence[str | Path], reader: load.Reader | None = None, calibrations: Sequence[str | Path] = ()
) -> Report:
    """See `load.runs`; `calibrations` are files that `calibrate` wrote, or their folders."""
    runs = load.runs(dirs, reader)
    return Report(runs, series(runs), load.foreign(dirs), [Calibration.load(path) for path in calibrations])
