"""Which defence answers, and its options: shared by whatever puts requests to a model. Loads nothing heavy."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from tokendeep.defences import DEFENCES
from tokendeep.errors import InputError, did_you_mean, flag
from tokendeep.models.options import advanced


@dataclass(frozen=True, kw_only=True)
class DefenceOptions(*(DEFENCES[name].options for name in reversed(DEFENCES))):  # type: ignore[misc]
    """What stands between requests and answers."""

    defence: Annotated[
        str | None,
        advanced(help=f"Defend the model while it answers: {', '.join(DEFENCES)}. Its weights stay as they are."),
    ] = None

    def check_defence(self) -> None:
        """Raises InputError for an unknown defence, its options out of range, and those of one that is not chosen."""
        if self.defence is not None and self.defence not in DEFENCES:
            raise InputError(f"Unknown defence '{self.defence}'; {did_you_mean(self.defence, DEFENCES)}.")
        for name, one in DEFENCES.items():
            own = one.of(self)
            if name == self.defence:
                one.check(own)
            elif own != one.options():
                changed = next(f.name for f in fields(own) if getattr(own, f.name) != f.default)
                raise InputError(f"{flag(changed)} is for --defence {name}: name it too, or leave it out.")

    def defended(self) -> dict[str, Any]:
        """The defence with its options, as arguments of a model in Inspect; empty where there is none."""
        if self.defence is None:
            return {}
        own = DEFENCES[self.defence].of(self)
        return {"defence": self.defence, **{field.name: getattr(own, field.name) for field in fields(own)}}

    def defence_name(self) -> str | None:
        """What results call it."""
        return DEFENCES[self.defence].describe(DEFENCES[self.defence].of(self)) if self.defence else None
