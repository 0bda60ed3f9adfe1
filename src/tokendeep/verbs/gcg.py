"""VERB gcg: find adversarial suffixes by gradient and trial, several times over, and keep them in a file.

The search itself is in `attacks.gcg`; `tokendeep attack --attack suffix` tries what was found, on this model or another.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tokendeep import chat, data, models, runs
from tokendeep.attacks import suffix
from tokendeep.data.options import DataOptions
from tokendeep.depth import openings
from tokendeep.errors import InputError, check_known, check_least
from tokendeep.models.options import ModelOptions
from tokendeep.types import Prompt, Subject
from tokendeep.verbs.common import Place, Texts, advanced, beside, ending, given, heading, loading, output

if TYPE_CHECKING:
    from tokendeep.attacks.gcg.behaviours import Behaviour
    from tokendeep.attacks.gcg.search import State

OPENING = "Sure, here is what you asked for"
TARGETS = ("opening", "refusal")
TOKENS = 3  # of a refusal's opening, as `measure` counts them
what = heading("What to search for")


@dataclass(frozen=True, kw_only=True)
class GcgOptions(ModelOptions, DataOptions):
    """Find adversarial suffixes: texts behind a request that make the model begin as it should not."""

    model: Annotated[str, what(help="Hub id, local folder, adapter folder, GGUF file or smollm2.")]
    data: Annotated[
        str,
        what(
            help="Requests; the model is driven to their target where they have one (AdvBench), else to --opening, and of "
            "pairs to the answer's first sentence."
        ),
    ]
    others: Annotated[
        Texts, what(help="Further models with the same tokenizer that the suffix must work on as well.")
    ] = field(default_factory=list)
    target: Annotated[
        Literal["opening", "refusal"],
        what(
            help="opening drives answers to their target or --opening; refusal makes that likelier than a refusal, at the "
            "first 3 tokens (the adaptive attack on a deepened model)."
        ),
    ] = "opening"
    opening: Annotated[str, what(help="How answers should begin where the data has no target.")] = OPENING
    target_tokens: Annotated[
        int,
        what(
            help="Drive to the first so many tokens of the target or answer, which reach deeper the more they are; 0 is the "
            "whole target, and of an answer its first sentence."
        ),
    ] = 0
    each: Annotated[bool, what(help="Find a suffix for every request by itself, in place of one for all.")] = False
    restarts: Annotated[int, what(help="Searches with seeds seed, seed + 1, ..., for each request or for all.")] = 1
    limit: Annotated[int | None, what(help="Use only the first so many rows.")] = None
    base: models.AdapterBase = None
    batch_size: Annotated[
        int, loading(help="Candidates in one forward pass; it is halved where the memory does not hold them.")
    ] = 64
    out: Annotated[str, output(help="Folder for suffixes.jsonl, one file for each search and manifest.json.")]
    label: Annotated[str | None, output(help="Short name of the model in reports; its path where left out.")] = None
    overwrite: Annotated[bool, output(help="Replace what a different run left in the output folder.")] = False
    steps: Annotated[int, advanced(help="Steps of each search at most.")] = 500
    width: Annotated[int, advanced(help="Candidates scored in each step.")] = 512
    top: Annotated[int, advanced(help="Swaps considered at each place of the suffix.")] = 256
    suffix_tokens: Annotated[int, advanced(help="Tokens of the suffix.")] = 20
    ascii_only: Annotated[bool, advanced(help="Keep the suffix printable ASCII.")] = True
    stop: Annotated[bool, advanced(help="End a search as soon as it succeeds.")] = True
    one_by_one: Annotated[
        bool, advanced(help="Begin with the first request and add the next when all so far succeed.")
    ] = True
    seed: Annotated[int, advanced(help="First seed.")] = 0


@dataclass(frozen=True)
class GcgPlan:
    """Everything that `gcg` reads, checked."""

    options: GcgOptions
    prompts: Sequence[Prompt]
    subject: Subject | None = None

    @property
    def groups(self) -> list[list[Prompt]]:
        """The requests that a search is for."""
        return [[prompt] for prompt in self.prompts] if self.options.each else [list(self.prompts)]

    @property
    def place(self) -> Place:
        """The output folder, and what tells this run from another."""
        answered = any("answer" in prompt.meta for prompt in self.prompts)
        return Place("gcg", self.options, {"data": self.options.data}, _recorded(self.options, answered))

    def lines(self) -> list[str]:
        options = self.options
        searches = len(self.groups) * options.restarts
        others = f", and on {', '.join(options.others)}" if options.others else ""
        return [
            f"model: {options.model}{others}",
            f"rows: {len(self.prompts)} requests of {options.data}",
            f"searches: {searches}, {'each for one request' if options.each else 'each for all requests'}, of {options.steps} "
            f"steps at most: {searches * options.steps * options.width} candidates",
            *self.place.lines(),
        ]


def plan(options: GcgOptions, subject: Subject | None = None) -> GcgPlan:
    """Read and check everything `gcg` needs; loads no weights and writes nothing.

    Args:
        subject: the model, where the caller has it in memory already.

    Raises:
        InputError: an option out of range, a row that cannot be used, or a model that is not there.
    """
    _check(options)
    prompts = read(options)
    if subject:
        models.check_no_base(options.base)
    else:
        models.check_spec(options.model, options, base=options.base)
    for spec in options.others:
        models.check_spec(spec, options)
    return GcgPlan(options, prompts, subject)


def run(plan: GcgPlan, *, show: bool = True) -> Path:
    """Search with every seed; writes suffixes.jsonl, a loss curve per search and manifest.json. Returns the folder.

    Args:
        show: print what each search came to.

    Raises:
        InputError: the output folder holds another run, or a request that no suffix can be found for.
        KeyboardInterrupt: Ctrl-C; the same call goes on from the last step that is on disk.
    """
    options = plan.options
    state = plan.place.open()
    out = state.out
    if state.finished:
        if show:
            print(f"gcg: {out} already holds this finished run")
            _show(out, options)
        return out
    runs.private_dir(out)
    subjects = [plan.subject or models.load(options.model, base=options.base, options=options)]
    subjects += [models.load(spec, options=options) for spec in options.others]
    rows, batch = [], options.batch_size
    for number, group in enumerate(plan.groups, 1):
        only = suffix.key(group[0]) if options.each else None
        for restart in range(options.restarts):
            name = "-".join(["search", *([str(number)] if only else []), str(options.seed + restart)])
            one, batch = _search(subjects, group, options, options.seed + restart, batch, out / f"{name}.json")
            rows.append({**one, "for": only, "name": f"restart {restart + 1}"})
            if show:
                print(f"  {name}: {describe(one)}", flush=True)
    runs.write_jsonl(out / suffix.FILE, rows, private=True)
    state.finish(attack=None, candidates=sum(one["candidates"] for one in rows), label=options.label)
    if show:
        _show(out, options)
    return out


def _show(out: Path, options: GcgOptions) -> None:
    """What a finished run came to, and the way on."""
    rows = runs.read_jsonl(out / suffix.FILE)
    print(f"gcg: {sum(one['success'] for one in rows)} of {len(rows)} searches succeeded")
    base = ["--base", options.base] if options.base else []
    ending(
        f"{out / suffix.FILE} (the suffixes, readable by you alone)",
        ["attack", "--model", options.model, *base, *given(options, ModelOptions), "--attack", "none,suffix", "--suffixes", out,
         "--data", "UNSEEN.jsonl", "--out", beside(out, "suffix")],
    )  # fmt: skip


def _recorded(options: GcgOptions, answered: bool) -> dict[str, Any]:
    """The options as the manifest keeps them: texts of the user by their hash.

    Earlier versions drove pairs to their whole answer, so that what a run drives them to is told.
    """
    first = answered and not options.target_tokens and options.target == "opening"
    reach = {"reach": "first sentence"} if first else {}
    opening = options.opening if options.opening == OPENING else runs.fingerprint(options.opening)
    return {**asdict(options), "opening": opening, "system": runs.system_name(options.system), **reach}


def _check(options: GcgOptions) -> None:
    """Raise InputError for an option out of range, before anything is read."""
    check_known(options, {"target": TARGETS})
    check_least(options, {
        "steps": 1, "width": 1, "top": 1, "batch_size": 1, "suffix_tokens": 1, "restarts": 1, "target_tokens": 0, "seed": 0,
    })  # fmt: skip
    if options.target == "refusal" and options.target_tokens:
        raise InputError(f"--target refusal compares openings of {TOKENS} tokens; leave --target-tokens out.")
    if not options.opening.strip():
        raise InputError("--opening is empty; say how an answer should begin.")


def read(options: GcgOptions) -> list[Prompt]:
    """The harmful requests; of pairs the answer stays with them, for its beginning is what the model is driven to."""
    source = data.choose(options.data, options.columns, "harmful")
    if data.kind(source) != "pairs":
        return data.read_prompts(source, limit=options.limit)
    pairs = data.read_pairs(source, limit=options.limit)
    return [Prompt(p.id, p.messages, meta={**p.meta, "answer": p.response}) for p in pairs]


def behaviours(subject: Subject, prompts: Sequence[Prompt], options: GcgOptions) -> list[Behaviour]:
    """What each request's answer is driven to (`aim`)."""
    from tokendeep.attacks.gcg.behaviours import behaviour

    refusals: list[tuple[int, ...]] = []
    if options.target == "refusal":
        refusals = openings.opening_ids(subject.tokenizer, openings.load_openings(None), TOKENS)
    return [
        behaviour(subject, f"Row {p.id}", chat.with_system(p.messages, options.system), aim(p, options),
                  tokens=options.target_tokens or None, openings=refusals)
        for p in prompts
    ]  # fmt: skip


def aim(prompt: Prompt, options: GcgOptions) -> str:
    """How the answer to a request should begin: its own target (AdvBench), the beginning of its answer, or `--opening`."""
    if target := prompt.meta.get("target"):
        return str(target)
    if answer := prompt.meta.get("answer"):
        return str(answer) if options.target_tokens or options.target == "refusal" else first_sentence(answer)
    return options.opening


def first_sentence(text: str) -> str:
    """The beginning of a text up to where its first sentence of three words or more ends, or its first line."""
    line = text.strip().partition("\n")[0].strip()
    ends = [match.end() for match in re.finditer(r"[.!?:…](?=\s)|[。！？：]", line)]
    return next((line[:end] for end in ends if len(line[:end].split()) > 2 or not line.isascii()), line)


# --- one search ------------------------------------------------------------------------------------


def _search(
    subjects: Sequence[Subject], prompts: Sequence[Prompt], options: GcgOptions, seed: int, batch: int, path: Path
) -> tuple[dict[str, Any], int]:
    """One search from where it was cut off, or from the start; the file holds its state and loss curve.

    Returns what was found, and how many candidates the memory held together, for the next search to begin with.
    """
    from tqdm import tqdm

    from tokendeep.attacks.gcg import search as gcg
    from tokendeep.attacks.gcg.behaviours import start
    from tokendeep.progress import Bar

    settings = gcg.Settings(
        steps=options.steps, width=options.width, top=options.top, batch=batch, ascii_only=options.ascii_only,
        seed=seed, stop=options.stop, one_by_one=options.one_by_one,
    )  # fmt: skip
    search = gcg.Search(subjects, behaviours(subjects[0], prompts, options), settings, say=tqdm.write)
    now, before = search.begin(start(subjects[0], options.suffix_tokens)), 0.0
    if path.exists():
        now, before = _kept(path)
    started = time.monotonic()
    with Bar(options.steps, path.stem, "step", initial=now.step) as bar:
        for now in search.steps(now):  # noqa: B020 (the search is begun once, from where it stands)
            bar.update()
            bar.set_postfix(loss=f"{now.losses[-1]:.2f}", requests=now.active, refresh=False)
            seconds = before + time.monotonic() - started
            runs.write_json(path, {**asdict(now), "loss": _finite(now.loss), "seconds": seconds})
    return {
        "suffix": search.text(now.best or now.suffix), "loss": _finite(now.loss), "success": now.success,
        "steps": now.step, "candidates": now.candidates, "requests": now.active,
        "seconds": round(before + time.monotonic() - started, 1),
    }, search.batch  # fmt: skip


def _kept(path: Path) -> tuple[State, float]:
    """The state of a search that was cut off, and the seconds it had taken."""
    from tokendeep.attacks.gcg.search import State

    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    seconds = float(kept.pop("seconds"))
    kept["loss"] = math.inf if kept["loss"] is None else kept["loss"]
    for name in ("suffix", "best", "losses"):
        kept[name] = tuple(kept[name])
    return State(**kept), seconds


def _finite(loss: float) -> float | None:
    """The loss for JSON; None where there is none yet."""
    return loss if math.isfinite(loss) else None


def describe(one: dict[str, Any]) -> str:
    """What a search came to, in one line."""
    how = "succeeded" if one["success"] else "not there"
    loss = "unknown" if one["loss"] is None else f"{one['loss']:.2f}"
    return (
        f"{how} after {one['steps']} steps ({one['candidates']} candidates, {one['seconds']:.0f} s), loss {loss}"
        f" on {one['requests']} request(s)"
    )
