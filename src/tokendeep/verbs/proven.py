"""Whether a check of parity says that two engines answer alike, so that runs on either can be compared. No verb."""

from collections.abc import Sequence

from tokendeep.errors import InputError
from tokendeep.records import Parity
from tokendeep.records.manifest import EngineFacts
from tokendeep.records.parity import NEAR
from tokendeep.report import load

ELSEWHERE = ("vllm", "sglang", "sagemaker")  # engines that a model's name begins with
OURS = "tokendeep"  # what an answer's engine is called where the model was loaded here


def served(engine: EngineFacts | None) -> str | None:
    """The server that a run had its answers from; None for one of our own."""
    return f"{engine.kind} {engine.version}" if engine else None


def engine(run: load.Run) -> str | None:
    """What answered in a run; None where there is no manifest to tell it."""
    if not run.has_manifest:
        return None
    first, _, rest = run.model.partition("/")
    ours = rest.split("/")[0] if first == "inspect" and rest else first if first in ELSEWHERE else OURS
    return served(run.manifest.engine) or ours


def proven(given: str | None, engines: set[str | None], sides: Sequence[Sequence[load.Run]]) -> str | None:
    """What a check of these two engines has found, in words, where it holds for a model of one side; None where none does.

    One side is enough: the run there could as well have been made on the engine of the other.

    Args:
        given: the file of the check, or its folder; None looks beside the runs.
        engines: those of the runs.

    Raises:
        InputError: the file that is given is of other engines or of another model, or the engines do not answer alike.
    """
    if given is None:
        beside = {place for side in sides for run in side for place in (run.folder, run.folder.parent)}
        checks = [Parity.load(place) for place in sorted(beside) if (place / Parity.FILE).is_file()]
        return next((_words(one, sides) for one in checks if one.alike and not _misses(one, engines, sides)), None)
    one = Parity.load(given)
    if what := _misses(one, engines, sides):
        raise InputError(f"{given} is no check of these runs: {what}; call parity on both engines.")
    if not one.alike:
        apart = sum(not row.alike for row in one.rows)
        what = (
            f"{apart} of {len(one.rows)} answers of the two engines part at a token that rounding does not turn round (over "
            f"{NEAR} nats, or not known)"
            if apart
            else f"log-probabilities of the two engines lie up to {one.largest_difference:.2g} nats apart (over {NEAR})"
        )
        raise InputError(f"{given} says that {what}: leave it out, and allow another engine with --allow engine.")
    return _words(one, sides)


def _words(one: Parity, sides: Sequence[Sequence[load.Run]]) -> str:
    first, second = _names(one)
    rest = len(one.rows) - one.same
    near = f", the other {rest} part where two tokens are within {NEAR} nats" if rest else ""
    return f"{first} and {second} gave the same answer to {one.same} of {len(one.rows)} requests{near}{_unknown(one, sides)}"


def _unknown(one: Parity, sides: Sequence[Sequence[load.Run]]) -> str:
    """What check or runs do not tell of the weights that were loaded here, and was taken for the same."""
    here = [run.manifest.model for side in sides for run in side if run.manifest.engine is None]
    told = {
        "number format": [one.dtype, *(facts and facts.dtype for facts in here)],
        "revision": [one.revision, *(facts and facts.revision for facts in here)],
    }
    missing = [name for name, values in told.items() if here and None in values]
    verb = "is" if len(missing) == 1 else "are"
    which = " and the ".join(missing)
    return f"; of the weights that were loaded here the {which} {verb} not known" if missing else ""


def _names(one: Parity) -> list[str]:
    return [served(facts) or OURS for facts in one.servers]


def _misses(one: Parity, engines: set[str | None], sides: Sequence[Sequence[load.Run]]) -> str | None:
    """What the check is not about; None where it fits."""
    if set(_names(one)) != engines:
        return f"it is of {' and '.join(_names(one))}, they are of {' and '.join(map(str, sorted(map(str, engines))))}"
    if not all(_asked(one, run.manifest.engine) for side in sides for run in side):
        return "it is of a server with another model, context or answers to the questions of its handshake"
    here = [run for side in sides for run in side if run.manifest.engine is None]
    loaded = {run.manifest.model.dtype for run in here if run.manifest.model and run.manifest.model.dtype}
    if one.dtype and (others := loaded - {one.dtype}):
        return f"it is of weights that were loaded here in {one.dtype}, they are of some in {', '.join(sorted(others))}"
    if any(_weights(one, run) and not _same_revision(one, run) for run in here):
        return "it is of another revision of the model"
    if not any(side and all(_same(one, run) for run in side) for side in sides):
        return "it is of another model or chat template"
    return None


def _asked(one: Parity, engine: EngineFacts | None) -> bool:
    """Whether a run's server is one that the check asked: only what it said to the same questions tells its weights."""
    if engine is None:
        return True
    known = [facts for facts in one.servers if facts is not None]
    return engine.greedy is not None and any(
        (facts.model, facts.context, facts.greedy) == (engine.model, engine.context, engine.greedy) for facts in known
    )


def _same(one: Parity, run: load.Run) -> bool:
    """Whether the check is of the model and template of this run."""
    return _weights(one, run) and one.template is not None and one.template == run.manifest.given().get("template")


def _weights(one: Parity, run: load.Run) -> bool:
    """Whether it is of the model of this run, which a hub model's name tells, and of others their files."""
    manifest = run.manifest
    return one.identity == manifest.models.get("model") and bool(one.identity or one.model == manifest.config.model)


def _same_revision(one: Parity, run: load.Run) -> bool:
    """Whether both had the same revision, as far as it is known; where it is not, `_unknown` says so."""
    known = {one.revision, run.manifest.model.revision if run.manifest.model else None}
    return len(known - {None}) < 2
