"""What lies on disk, typed and versioned, with one loader each: `Profile.load(path)`, `Rate.load_all(path)`, ...

    MANIFEST    manifest.json     Manifest        what was run
    PROFILE     profile.json      Profile         how deep
    ASR         asr.json          Rates of Rate   how often not refused
                outcomes.jsonl    Outcomes of Outcome   what became of each answer, by hashes
    TRAINING    training.json     Training        the log of a training
    DYNAMICS    dynamics.json     Dynamics        what happened per token
    CELL        cell.json         PoisonCell      one training of it
    TABLE       table.json        PoisonTable     a fine-tuning attack
                validation.json   Validated       one training of it, on rows that no test asks
                strengths.json    Strengths       how strength was chosen by these
    CALIBRATION calibration.json  Calibration     how far a judge agrees with people
                compare.json      Compared        two sides on the same prompts
                overlap.json      Overlap         requests that two data files share
                audit.json        Audit           which rows push on refusals
                parity.json       Parity          how far two engines give the same answers
                gate.json         Gated           whether a change is within its limits
    in *.eval                     Verdict         on one answer
    VERDICTS    verdicts.jsonl    StoredVerdict   the same of a later look

A path is a file or the folder that holds it. Older files are read; a damaged one is an InputError that names file and
row. Every record has `dump()` (the JSON that is written) and, where it is a result, `to_frame()` (pandas) and `plot()`
(matplotlib axes). `python -m tokendeep.records` prints the JSON Schemas. Knows nothing of models, logs or reports.
"""

from tokendeep.records.audit import Audit, AuditRow, AuditScore, Detection
from tokendeep.records.base import SCHEMA, File, Known, Object, Record, Row, read_json
from tokendeep.records.calibration import Agreement, Calibration, Estimate
from tokendeep.records.compare import Check, Compared, ComparedRow, Gated
from tokendeep.records.manifest import Cost, HeldRows, Manifest, Margin, ModelFacts, SafetyRows, Settings
from tokendeep.records.outcomes import Outcome, Outcomes
from tokendeep.records.overlap import Overlap, Shared, Side
from tokendeep.records.parity import Parity, ParityRow
from tokendeep.records.poison import (
    ASK_HARMLESS,
    ASKS,
    HARMLESS,
    PREFILL,
    UNPREFIXED,
    UTILITY,
    VALIDATION,
    VALIDATION_HARMLESS,
    AskRate,
    Change,
    PoisonCell,
    PoisonLine,
    PoisonTable,
    Seconds,
    Utility,
)
from tokendeep.records.profile import (
    Bounded,
    Depth,
    Kl,
    Perplexity,
    PerPrompt,
    Profile,
    ProfileMeta,
    Quantiles,
    Recovery,
)
from tokendeep.records.rates import VALUES, Params, Rate, Rates, Share, StoredVerdict, Verdict
from tokendeep.records.strengths import Strength, Strengths, UtilityChange, Validated
from tokendeep.records.training import (
    CURVES,
    ByPosition,
    Dynamics,
    DynamicsMeta,
    DynamicsStep,
    LogEntry,
    LogOdds,
    Training,
)

MANIFEST, PROFILE, ASR = Manifest.FILE, Profile.FILE, Rates.FILE
CALIBRATION, VERDICTS = Calibration.FILE, StoredVerdict.FILE
TRAINING, DYNAMICS, TABLE, CELL = Training.FILE, Dynamics.FILE, PoisonTable.FILE, PoisonCell.FILE

__all__ = [
    "ASKS", "ASK_HARMLESS",
    "ASR", "CALIBRATION", "CELL", "CURVES", "DYNAMICS", "HARMLESS", "MANIFEST", "PREFILL", "PROFILE", "SCHEMA",
    "TABLE", "TRAINING", "UNPREFIXED", "UTILITY", "VALIDATION", "VALIDATION_HARMLESS",
    "VALUES", "VERDICTS", "Agreement", "AskRate", "Audit", "AuditRow", "AuditScore",
    "Bounded", "ByPosition", "Calibration", "Change", "Check", "Compared", "ComparedRow", "Cost", "Depth", "Detection",
    "Dynamics", "DynamicsMeta", "DynamicsStep", "Estimate", "Gated", "HeldRows", "Kl", "Known", "LogEntry", "LogOdds", "Manifest",
    "Margin", "ModelFacts", "Object", "Outcome", "Outcomes", "Overlap", "Params", "PerPrompt", "Perplexity",
    "PoisonCell", "PoisonLine", "PoisonTable", "Profile", "ProfileMeta", "Quantiles", "Rate", "Rates", "Record",
    "Recovery", "SafetyRows", "Seconds", "Settings", "Share", "Shared", "Side", "StoredVerdict", "Strength",
    "Strengths", "Training", "Utility", "UtilityChange", "Validated", "Verdict", "read_json", "schemas",
]  # fmt: skip


def schemas() -> dict[str, Object]:
    """File -> its JSON Schema; the verdict's stands under its own name."""
    files: tuple[type[File], ...] = (
        Manifest,
        Profile,
        Training,
        Dynamics,
        PoisonCell,
        Validated,
        Strengths,
        Calibration,
        Compared,
        Overlap,
        Audit,
        Gated,
    )
    rows: dict[str, type[Row]] = {ASR: Rate, TABLE: PoisonLine, VERDICTS: StoredVerdict, Outcomes.FILE: Outcome}
    return {
        **{kind.FILE: kind.model_json_schema() for kind in files},
        **{name: {"type": "array", "items": kind.model_json_schema()} for name, kind in rows.items()},
        "verdict": Verdict.model_json_schema(),
    }
