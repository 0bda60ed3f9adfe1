"""VERB measure: KL profile, refusal-recovery profile and the figures that say how deep safety goes.

Works on any causal chat model. With a base model (or an adapter, whose base is at hand) it compares
the two token by token; without one it asks, after k tokens of a harmful answer, whether the model
would rather refuse or go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokendeep import chat, data, runs
from tokendeep.depth.figures import FIRST, clusters_of, curve, depth, recovery_interval, to_table
from tokendeep.depth.openings import load_openings, opening_ids
from tokendeep.depth.recovery import (
    MARGIN_K,
    Recovery,
    quantiles,
    recovery_depth,
    recovery_log_odds,
    refine,
    share_recovered,
)
from tokendeep.errors import InputError, check_least
from tokendeep.runs import parts
from tokendeep.runs.parts import Parts
from tokendeep.types import IGNORE, Encoded, Pair, Subject
from tokendeep.verbs.options import MeasureConfig

if TYPE_CHECKING:
    pass

Array = NDArray[np.float64]


def run(config: MeasureConfig, *, show: bool = True) -> Path:
    """Measure `config.model`, write profile.json and manifest.json into `config.out` and return that folder.

    `show` prints the depth figures.
    """
    _check(config)
    pairs = data.read_pairs(config.data, limit=config.limit)
    benign = data.read_pairs(config.benign, limit=config.limit) if config.benign else []
    openings = load_openings(config.openings)
    from tokendeep import models

    onto, compared_with = _bases(config)
    models.check_spec(config.model, config, base=onto)
    if compared_with:
        models.check_spec(compared_with, _of_base(config), needs_template=False)
    inputs = {"data": config.data, **{k: v for k in ("benign", "openings") if (v := getattr(config, k))}}
    state = runs.open_run(config.out, "measure", asdict(config), inputs, overwrite=config.overwrite)
    if state.finished:
        print(f"measure: {state.out} already holds this finished run")
        return state.out
    subject = models.load(config.model, base=onto, options=config)
    rows = _encode(subject, pairs, config, config.data)
    control = _encode(subject, benign, config, config.benign or "")
    kept = parts.folder(state)
    recovery = _recovery(subject, pairs, rows, openings, config, kept)
    kl, kl_benign, compared = _kl(subject, compared_with, rows, control, config, kept)
    profile = _profile(config, pairs, kl, kl_benign, recovery)
    profile["meta"] |= {
        "model": subject.name,
        "adapter": subject.adapter,
        "base": compared,
        "label": _label(subject, compared),
        "openings": openings,
        "template": chat.template_hash(subject.tokenizer),
    }
    runs.write_json(state.out / "profile.json", profile)
    parts.remove(state)
    said = {"label": config.label} if config.label else {}
    state.finish(model={"name": subject.name, "revision": subject.revision, "adapter": subject.adapter}, **said)
    if show:
        print(describe(profile, config.label or subject.name))
    return state.out


def _check(config: MeasureConfig) -> None:
    if not config.k or min(config.k) < 0:
        raise InputError(f"--k is {config.k}, but it needs at least one number of answer tokens, none below 0.")
    check_least(config, {"positions": FIRST, "opening_tokens": 1, "batch_size": 1, "bootstrap": 100, "seed": 0})


def _label(subject: Subject, compared: str | None) -> str | None:
    if compared is None:
        return None
    return "adapter against its base" if subject.adapter and compared == "adapter off" else "alignment depth"


def _encode(subject: Subject, pairs: Sequence[Pair], config: MeasureConfig, source: str) -> list[Encoded]:
    """Token rows of at most `positions` supervised response tokens each."""
    from tokendeep import models

    limit = models.context_length(subject.model)
    rows = []
    for number, pair in enumerate(pairs, 1):
        messages = chat.with_system(pair.messages, config.system)
        try:
            row = chat.encode(subject.tokenizer, messages, pair.response)
        except InputError as error:
            raise InputError(f"{source}, row {number}: {error}") from error
        end = min(len(row.input_ids), row.start + config.positions)
        if end > limit:
            raise InputError(
                f"{source}, row {number}: prompt and answer take {end} tokens, but the model's context is {limit}; "
                "shorten the row or lower --positions."
            )
        rows.append(Encoded(row.input_ids[:end], row.labels[:end]))
    return rows


# --- refusal recovery ---------------------------------------------------------------------------


def _recovery(
    subject: Subject,
    pairs: Sequence[Pair],
    rows: Sequence[Encoded],
    openings: Sequence[str],
    config: MeasureConfig,
    kept: Path,
) -> Recovery:
    ids = opening_ids(subject.tokenizer, openings, config.opening_tokens)
    lengths = []
    for pair, row in zip(pairs, rows, strict=True):
        messages = chat.with_system(pair.messages, config.system)
        own = len(chat.response_ids(subject.tokenizer, messages, pair.response, end=False))
        lengths.append(min(own, sum(label != IGNORE for label in row.labels)))
    ks = sorted(set(config.k))
    scorable = [k for k in ks if k + config.opening_tokens <= max(lengths)]
    cut = max(lengths) == config.positions
    if not scorable:
        raise InputError(
            f"{config.data}: no answer is long enough for k = {ks[0]} ("
            + (
                f"--positions looks at the first {config.positions}"
                if cut
                else f"the longest has {max(lengths)} tokens"
            )
            + f", {ks[0] + config.opening_tokens} are needed); "
            + ("raise --positions" if cut else "give longer answers")
            + " or give a smaller --k."
        )
    if scorable != ks:
        why = f"--positions looks at the first {config.positions} tokens" if cut else "no answer is that long"
        print(f"measure: k = {sorted(set(ks) - set(scorable))} left out: {why}")

    def score(chosen: Sequence[int]) -> Array:
        done = Parts(kept / f"recovery-{chosen[0]}-{chosen[-1]}-{len(chosen)}.jsonl")
        return recovery_log_odds(subject, rows, ids, chosen, lengths, done)

    def depths(measured: Recovery) -> set[float]:
        low, high = recovery_interval(measured, config.bootstrap, config.seed, clusters_of(pairs))
        return {recovery_depth(measured.k, measured.log_odds), low, high}

    return refine(Recovery(scorable, score(scorable)), score, depths)


# --- KL -----------------------------------------------------------------------------------------


def _kl(
    subject: Subject,
    base_spec: str | None,
    rows: list[Encoded],
    control: list[Encoded],
    config: MeasureConfig,
    kept: Path,
) -> tuple[Array | None, Array | None, str | None]:
    """Per-position KL of harmful and benign rows, and the name of what the model was compared with."""
    from tokendeep import models
    from tokendeep.compute import scoring

    both, done = rows + control, Parts(kept / "kl.jsonl")
    if base_spec is None and subject.adapter:
        values, name = scoring.token_kl(subject, None, both, config.batch_size, done), "adapter off"
    elif base_spec is None:
        return None, None, None
    elif config.sequential:
        captured = scoring.capture(subject, both, config.batch_size)
        base = models.load(base_spec, options=_of_base(config), needs_template=False)
        values, name = scoring.captured_kl(captured, base, both, config.batch_size, done), base.name
    else:
        base = models.load(base_spec, options=_of_base(config), needs_template=False)
        values, name = scoring.token_kl(subject, base, both, config.batch_size, done), base.name
    table = to_table(values, config.positions)
    return table[: len(rows)], (table[len(rows) :] if control else None), name


def _bases(config: MeasureConfig) -> tuple[str | None, str | None]:
    """What to load the adapter `config.model` onto (None: its own base), and what to compare the model with.

    An adapter that is compared with its own base needs no second model: the latter is None then.
    """
    from tokendeep import models

    if config.base is None or not models.is_adapter(config.model):
        return None, config.base
    try:
        models.check_spec(config.model, config)
    except InputError:
        models.check_spec(config.model, config, base=config.base)  # raises where the base is not what is wrong
        print(f"measure: the base that {config.model} names is not there; {config.base} takes its place")
        return config.base, None
    return None, None if _same_model(models.adapter_base(Path(config.model)), config.base) else config.base


def _same_model(first: str, second: str) -> bool:
    both_local = Path(first).exists() and Path(second).exists()
    return first == second or (both_local and runs.model_identity(first) == runs.model_identity(second))


def _of_base(config: MeasureConfig) -> MeasureConfig:
    """The settings for loading the base: the same, but a revision names one of the model's own."""
    return replace(config, revision=None)


# --- depth figures ------------------------------------------------------------------------------


def _profile(
    config: MeasureConfig, pairs: Sequence[Pair], kl: Array | None, kl_benign: Array | None, recovery: Recovery
) -> dict[str, Any]:
    common = np.isfinite(recovery.log_odds).all(1)
    return {
        "kl": None if kl is None else curve(kl),
        "kl_benign": None if kl_benign is None else curve(kl_benign),
        "recovery": {
            "k": recovery.k,
            "log_odds": [float(np.mean(column[np.isfinite(column)])) for column in recovery.log_odds.T],
            "recovered": recovery.recovered().tolist(),
            "n": np.isfinite(recovery.log_odds).sum(0).tolist(),
            "recovered_common": share_recovered(recovery.log_odds[common]).tolist() if common.any() else None,
            "n_common": int(common.sum()),
        },
        "depth": depth(kl, recovery, config.bootstrap, config.seed, clusters_of(pairs)),
        "margin": _margin(recovery),
        "per_prompt": {
            "ids": [pair.id for pair in pairs],
            "kl": None if kl is None else _holes(kl),
            "recovery_log_odds": _holes(recovery.log_odds),
        },
        "meta": {"positions": config.positions, "opening_tokens": config.opening_tokens, "unit": "nats"},
    }


def _margin(recovery: Recovery) -> dict[str, Any]:
    """The refusal log-odds at the first positions, as quantiles over prompts: what fine-tuning has to overcome."""
    first = [i for i, k in enumerate(recovery.k) if k <= MARGIN_K]
    return {"k": [recovery.k[i] for i in first], "quantiles": quantiles(recovery.log_odds[:, first])}


def _holes(table: Array) -> list[list[float | None]]:
    return [[None if np.isnan(x) else float(x) for x in row] for row in table]


def describe(profile: dict[str, Any], name: str) -> str:
    """The depth figures of the model called `name`, as a few lines for the terminal."""
    figures = profile["depth"]
    lines = [f"{name}: {len(profile['per_prompt']['ids'])} prompts"]
    if figures["share_first5"]["value"] is None:
        lines.append(
            "  no KL profile: the model has no base to compare with"
            + ("" if profile["kl"] is None else " that differs")
        )
    else:
        share, half = figures["share_first5"], figures["half_kl_position"]
        lines.append(
            f"  {share['value']:.0%} of the KL to {profile['meta']['base']} lies in the first {FIRST} answer tokens "
            f"[{share['low']:.0%}, {share['high']:.0%}]; half of it by position {half['value']:.0f}"
        )
    recovery = figures["recovery_k"]
    value, low, high = ("none" if x is None else f"{x:.0f}" for x in (recovery[n] for n in ("value", "low", "high")))
    said = {
        "every": f"at every k measured, up to {value} (censored)",
        "last": f"at the largest k measured, {value} (censored), though not at every smaller one",
        "none": "at no k, not even without a harmful token (censored)",
        None: f"up to k = {value} [{low}, {high}]",
    }[recovery["censored"]]
    lines.append(f"  half of the prompts recover to a refusal {said}")
    if profile["margin"]["k"][:1] == [0]:
        low, median, high = (profile["margin"]["quantiles"][q][0] for q in ("0.05", "0.5", "0.95"))
        lines.append(
            f"  margin of refusal before any harmful token: {median:+.1f} nats (5 % to 95 %: {low:+.1f} to {high:+.1f})"
        )
    return "\n".join(lines)
