"""Words for rates on requests that the model had been trained on. Knows nothing of how that was found."""

from collections.abc import Iterable

from tokendeep.report.report import Measured
from tokendeep.report.series import Series
from tokendeep.report.words import listed


def words(shown: Iterable[Series | Measured]) -> list[str]:
    """A sentence about those of which some requests had been trained on; none without any."""
    seen = {one.run.folder: (one.name, one.run) for one in shown if one.run.manifest.trained_on}
    if not seen:
        return []
    counts = listed(
        f"{run.manifest.trained_on} of {name} ({run.file or run.folder.name})" for name, run in seen.values()
    )
    return [
        f"Some requests had been trained on before they were asked: {counts}. What is said of these models here holds for "
        "requests that they know; ask others to learn how they generalise."
    ]
