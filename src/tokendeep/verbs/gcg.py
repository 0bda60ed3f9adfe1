"""VERB gcg: find adversarial suffixes by gradient and trial, several times over, and keep them in a file.

The search itself is `attack.gcg`; `tokendeep attack --attack suffix` tries what was found, on this model or another.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokendeep import chat, data, models, runs
from tokendeep.attacks import suffix
from tokendeep.errors import InputError, check_known, check_least
from tokendeep.types import Prompt, Subject
from tokendeep.verbs.options import GcgConfig

if TYPE_CHECKING:
    from tokendeep.attacks.gcg import search as gcg
    from tokendeep.attacks.gcg.behaviours import Behaviour

TARGETS = ("opening", "refusal")
TOKENS = 3  # of a refusal's opening, as `measure` counts them


def run(config: GcgConfig, subject: Subject | None = None) -> Path:
    """Search with every seed; writes suffixes.jsonl, a loss curve per search and manifest.json. Returns the folder.

    Raises:
        InputError: a setting, a row or a model that cannot be used.
        KeyboardInterrupt: Ctrl-C; the same call goes on from the last step that is on disk.
    """
    check(config)
    prompts = load(config)
    for spec in [config.model, *config.others]:
        models.check_spec(spec, config)
    state = runs.open_run(config.out, "gcg", _recorded(config), {"data": config.data}, overwrite=config.overwrite)
    out = state.out
    if state.finished:
        print(f"gcg: {out} already holds this finished run")
        return out
    runs.private_dir(out)
    subjects = [subject or models.load(config.model, options=config)]
    subjects += [models.load(spec, options=config) for spec in config.others]
    groups = [[prompt] for prompt in prompts] if config.each else [prompts]
    found, batch = [], config.batch_size
    for number, group in enumerate(groups):
        only = suffix.key(group[0]) if config.each else None
        for restart in range(config.restarts):
            name = "-".join(["search", *([str(number + 1)] if only else []), str(config.seed + restart)])
            one, batch = _search(subjects, group, config, config.seed + restart, batch, out / f"{name}.json")
            found.append({**one, "for": only, "name": f"restart {restart + 1}"})
            print(f"  {name}: {_said(one)}", flush=True)
    runs.write_jsonl(out / suffix.FILE, found, private=True)
    state.finish(attack=None, candidates=sum(one["candidates"] for one in found), label=config.label)
    print(f"gcg: {sum(one['success'] for one in found)} of {len(found)} searches succeeded\n  {out / suffix.FILE}")
    return out


def _recorded(config: GcgConfig) -> dict[str, Any]:
    """The settings as the manifest keeps them: texts of the user by their hash."""
    opening = config.opening if config.opening == GcgConfig().opening else runs.fingerprint(config.opening)
    return {**asdict(config), "opening": opening, "system": runs.system_name(config.system)}


def check(config: GcgConfig) -> None:
    """Raise InputError for a setting out of range, before anything is read."""
    check_known(config, {"target": TARGETS})
    check_least(config, {
        "steps": 1, "width": 1, "top": 1, "batch_size": 1, "suffix_tokens": 1, "restarts": 1, "target_tokens": 0, "seed": 0,
    })  # fmt: skip
    if config.target == "refusal" and config.target_tokens:
        raise InputError(f"--target refusal compares openings of {TOKENS} tokens; leave --target_tokens out.")
    if not config.opening.strip():
        raise InputError("--opening is empty; say how an answer should begin.")


def load(config: GcgConfig) -> list[Prompt]:
    """The requests; of pairs the answer stays with them, as what the model is driven to."""
    if data.kind(config.data) != "pairs":
        return data.read_prompts(config.data, limit=config.limit)
    return [
        Prompt(p.id, p.messages, meta={**p.meta, "target": p.response})
        for p in data.read_pairs(config.data, limit=config.limit)
    ]


def behaviours(subject: Subject, prompts: Sequence[Prompt], config: GcgConfig) -> list[Behaviour]:
    """What each request's answer is driven to: its own target (AdvBench), its response, or `--opening`."""
    from tokendeep.attacks.gcg.behaviours import behaviour
    from tokendeep.depth import openings

    refusals: list[tuple[int, ...]] = []
    if config.target == "refusal":
        refusals = openings.opening_ids(subject.tokenizer, openings.load_openings(None), TOKENS)
    return [
        behaviour(
            subject, f"row {p.id}", chat.with_system(p.messages, config.system),
            str(p.meta.get("target") or p.meta.get("Target") or config.opening),
            tokens=config.target_tokens or None, openings=refusals,
        )
        for p in prompts
    ]  # fmt: skip


def _search(
    subjects: Sequence[Subject], prompts: Sequence[Prompt], config: GcgConfig, seed: int, batch: int, path: Path
) -> tuple[dict[str, Any], int]:
    """One search from where it was cut off, or from the start; the file holds its state and loss curve.

    Returns what was found, and how many candidates the memory held together, for the next search to begin with.
    """
    from tqdm import tqdm

    from tokendeep.attacks.gcg import search as gcg
    from tokendeep.attacks.gcg.behaviours import start

    settings = gcg.Settings(
        steps=config.steps, width=config.width, top=config.top, batch=batch, ascii_only=config.ascii_only,
        seed=seed, stop=config.stop, one_by_one=config.one_by_one,
    )  # fmt: skip
    search = gcg.Search(subjects, behaviours(subjects[0], prompts, config), settings, say=tqdm.write)
    now = search.begin(start(subjects[0], config.suffix_tokens))
    before = 0.0
    if path.exists():
        now, before = _kept(path)
    started = time.monotonic()
    with tqdm(total=config.steps, initial=now.step, desc=path.stem, unit="step") as bar:
        for now in search.steps(now):  # noqa: B020 (the search is begun once, from where it stands)
            bar.update()
            bar.set_postfix(loss=f"{now.losses[-1]:.2f}", requests=now.active, refresh=False)
            _keep(path, now, before + time.monotonic() - started)
    return {
        "suffix": search.text(now.best or now.suffix), "loss": _finite(now.loss), "success": now.success,
        "steps": now.step, "candidates": now.candidates, "requests": now.active,
        "seconds": round(before + time.monotonic() - started, 1),
    }, search.batch  # fmt: skip


def _keep(path: Path, state: gcg.State, seconds: float) -> None:
    runs.write_json(path, {**asdict(state), "loss": _finite(state.loss), "seconds": seconds})


def _kept(path: Path) -> tuple[gcg.State, float]:
    """The state of a search that was cut off, and the seconds it had taken."""
    from tokendeep.attacks.gcg import search as gcg

    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    seconds = float(kept.pop("seconds"))
    kept["loss"] = math.inf if kept["loss"] is None else kept["loss"]
    for name in ("suffix", "best", "losses"):
        kept[name] = tuple(kept[name])
    return gcg.State(**kept), seconds


def _finite(loss: float) -> float | None:
    """The loss for JSON; None where there is none yet."""
    return loss if math.isfinite(loss) else None


def _said(one: dict[str, Any]) -> str:
    how = "succeeded" if one["success"] else "not there"
    loss = "unknown" if one["loss"] is None else f"{one['loss']:.2f}"
    return (
        f"{how} after {one['steps']} steps ({one['candidates']} candidates, {one['seconds']:.0f} s), loss {loss}"
        f" on {one['requests']} request(s)"
    )
