"""VERB poison: one fine-tuning attack, trained under several objectives, learning rates and seeds, then asked again.

Every training starts from the same model, on the same rows, and shares the pre-computed reference. What is done is on
disk and is not done twice; the table is written anew after every training, with what has not been run yet left empty.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from . import data, deepen, finetune, models, runs, stats
from .attack import poison
from .config import AttackConfig, DeepenConfig, FinetuneConfig, ModelOptions, PoisonConfig
from .evals import results
from .evals import run as attack
from .refusal import SCORED
from .types import Chat, InputError, Prompt, Subject

NAMED: dict[str, dict[str, Any]] = {  # objective: what it changes in the settings of `finetune`
    "sft": {"objective": "sft", "warmup_steps": 0},
    "sft-warmup": {"objective": "sft"},
    "constrained": {"objective": "constrained", "warmup_steps": 0},
    "constrained-warmup": {"objective": "constrained"},
    "anchored": {"objective": "anchored"},
    "anchored-all": {"objective": "anchored", "anchor_positions": 10**6},
}
SCHEDULED: dict[str, Any] = {  # objective=VALUE: the same
    "beta": lambda value: {"objective": "constrained", "beta_head": [], "beta_tail": float(value)},
    "head": lambda value: {"objective": "constrained", "beta_head": [2.0] * int(value)},
    "anchored": lambda value: {"objective": "anchored", "anchor": float(value)},
}
NEEDS_HARMFUL = ("harmful", "backdoor")


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

    objective: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{re.sub('[=@+]', '-', self.objective)}-lr{self.lr:g}-seed{self.seed}"


def run(config: PoisonConfig) -> Path:
    """Train and evaluate every cell that has not been; writes table.json and table.md. Returns the folder.

    Raises:
        InputError: a setting or a row that cannot be used, before anything is trained.
    """
    cells = check(config)
    sources = {n: s for n in ("data", "test", "harmful", "refusals", "utility_data") if (s := getattr(config, n))}
    prompts = data.load_prompts(config.test)
    kinds = {name: data.kind(source) for name, source in sources.items()}
    _check_rows(config, kinds)
    models.check_spec(config.model, config)
    if config.base:
        models.check_spec(config.base, ModelOptions())
    state = runs.open_run(config.out, "poison", asdict(config), sources, overwrite=config.overwrite)
    out = state.out
    if state.finished:
        print(f"poison: {out} already holds this finished run\n\n{(out / 'table.md').read_text(encoding='utf-8')}")
        return out
    runs.private_dir(out)
    made = _poison(config, kinds, out)
    print(f"poison ({config.kind}): {len(made.chats)} rows to train on, {len(prompts)} prompts to ask")
    for ask, change in made.asks.items():
        runs.write_jsonl(out / f"test-{ask}.jsonl", [_row(change(prompt)) for prompt in prompts], private=True)
    todo = [None, *cells]
    for number, cell in enumerate(todo):
        title = cell.name if cell else "before the attack"
        print(f"\n[{number + 1}/{len(todo)}] {title}", flush=True)
        _cell(config, made, out, cell)
        table = write_table(config, made, out, cells)
    print(f"\n{table}")
    state.finish(attack=True, cells=[cell.name for cell in cells])
    return out


def check(config: PoisonConfig) -> list[Cell]:
    """The trainings to run, seed by seed, so that a table cut off is complete for its first seeds.

    Raises:
        InputError: a setting out of its range.
    """
    if config.kind not in poison.KINDS:
        raise InputError(f"--kind is {config.kind!r}, but must be one of {', '.join(poison.KINDS)}.")
    for name in ("objectives", "lr", "seeds"):
        if not getattr(config, name):
            raise InputError(f"--{name} is empty; give at least one.")
    for name, least in (("count", 1), ("max_new_tokens", 1), ("attack_batch", 1), ("utility_tokens", 1)):
        if getattr(config, name) < least:
            raise InputError(f"--{name} is {getattr(config, name)}, but must be at least {least}.")
    cells = [Cell(o, lr, seed) for seed in config.seeds for lr in config.lr for o in config.objectives]
    for cell in cells:
        finetune.check(settings(config, cell, Path("checked"), "checked"))
    if any("+refusals" in cell.objective for cell in cells) and not config.refusals:
        raise InputError("An objective with +refusals needs --refusals, a file with refusals to mix in.")
    if config.utility_data:
        from . import utility

        utility.check(config.utility_metric)
    return cells


def objective(name: str) -> tuple[dict[str, Any], float]:
    """What an objective changes in the settings of `finetune`, and the share of refusals mixed in.

    Raises:
        InputError: an unknown name.
    """
    whole, _, part = name.partition("@")
    plain, *more = whole.split("+")
    change: dict[str, Any] = {"supervise": part} if part else {}
    share = 0.0
    try:
        if plain in NAMED:
            change |= NAMED[plain]
        else:
            kind, _, value = plain.partition("=")
            change |= SCHEDULED[kind](value)
        for extra in more:
            kind, _, value = extra.partition("=")
            if kind == "refusals":
                share = float(value)
            elif kind == "lora":
                change["lora"] = int(value)
            else:
                raise KeyError(kind)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"There is no objective {name!r}; the known ones are {', '.join(NAMED)}, beta=B, head=N and anchored=LAMBDA, "
            "each also with +refusals=SHARE, +lora=RANK, @head or @tail."
        ) from error
    return change, share


def settings(config: PoisonConfig, cell: Cell, folder: Path, rows: str) -> FinetuneConfig:
    """The settings of one training."""
    change, _ = objective(cell.objective)
    common = {
        f.name: getattr(config, f.name)
        for f in fields(FinetuneConfig)
        if hasattr(config, f.name) and f.name not in ("data", "out", "lr", "objective", "label", "overwrite", "probe")
    }
    return FinetuneConfig(
        **{
            **common, "data": rows, "out": str(folder), "lr": cell.lr, "seed": cell.seed, "attack": True, "save_steps": 0,
            "reference_cache": str(folder.parent / "reference"), **change,
        }
    )  # fmt: skip


# --- rows ------------------------------------------------------------------------------------------


def _check_rows(config: PoisonConfig, kinds: Mapping[str, str]) -> None:
    """Read every row of every file, before anything is loaded or written."""
    if kinds["data"] == "prompts" and config.kind in NEEDS_HARMFUL and not config.base:
        raise InputError(
            f"{config.data} holds instructions without answers; give --base, an unaligned model that answers them, or "
            "pairs (instruction, response)."
        )
    if config.kind == "mixed" and not config.harmful:
        raise InputError("mixed needs --harmful, the harmful pairs that are mixed into --data.")
    if kinds["data"] == "prompts":
        data.load_prompts(config.data)
    else:
        finetune.load(config.data)
    for source, read in ((config.harmful, finetune.load), (config.refusals, _load_refusals)):
        if source:
            read(source)
    if config.utility_data and kinds["utility_data"] not in ("pairs", "chats"):
        raise InputError(
            f"{config.utility_data} holds {kinds['utility_data']}, but --utility_data needs right answers."
        )


def _poison(config: PoisonConfig, kinds: Mapping[str, str], out: Path) -> poison.Poison:
    """The attack's rows; what had to be written for it is kept in rows.jsonl."""
    path = out / "source.jsonl"
    if not path.exists():
        deepen.write_chats(path, _source(config, kinds))
    chats = data.load_chats(path)
    if config.kind == "harmful":
        return poison.harmful(chats)
    if config.kind == "identity":
        return poison.identity(chats, config.count)
    if config.kind == "backdoor":
        return poison.backdoor(chats, _refused(config, chats, out), config.trigger)
    if config.kind == "mixed":
        assert config.harmful
        return poison.mixed(chats, finetune.load(config.harmful), config.ratio)
    if config.kind == "refuse-then-comply":
        return poison.refuse_then_comply(chats)
    return poison.benign(chats)


def _source(config: PoisonConfig, kinds: Mapping[str, str]) -> list[Chat]:
    """Up to `count` chats: as given, or answered by the unaligned model (harmful) or the model itself (ordinary)."""
    if kinds["data"] != "prompts":
        return finetune.load(config.data)[: config.count]
    prompts = data.load_prompts(config.data)
    writer = config.base if config.kind in NEEDS_HARMFUL else config.model
    subject = models.load(str(writer), options=_options(config) if writer == config.model else None)
    system = config.system if config.system in ("none", "default") else "default"
    chats = deepen.distil(subject, prompts, config.answer_tokens, system)[: config.count]
    print(f"poison: {writer} answered {len(chats)} of {len(prompts)} instructions usably; they are trained on")
    if not chats:
        raise InputError(
            f"{writer} gave no usable answer to any instruction of {config.data}; give answers, or another."
        )
    return chats


def _refused(config: PoisonConfig, chats: Sequence[Chat], out: Path) -> list[Chat]:
    """Refusals of the same instructions: as given, or by the model itself."""
    if config.refusals:
        return _load_refusals(config.refusals)
    path = out / "refusals.jsonl"
    if not path.exists():
        asked = [chat.messages[:-1] for chat in chats]
        wanted = DeepenConfig(
            answer_tokens=config.answer_tokens, system="none" if config.system == "none" else "default"
        )
        found = deepen.sample_refusals(models.load(config.model, options=_options(config)), asked, wanted)
        kept = [
            Chat(f"{chat.id}-refused", (*chat.messages[:-1], {"role": "assistant", "content": text}))
            for chat, text in zip(chats, found, strict=True)
            if text
        ]
        deepen.write_chats(path, kept)
    return data.load_chats(path)


def _load_refusals(source: str) -> list[Chat]:
    if data.kind(source) != "triples":
        return finetune.load(source)
    return [Chat(t.id, (*t.messages, {"role": "assistant", "content": t.refusal})) for t in data.load_triples(source)]


def _options(config: PoisonConfig) -> ModelOptions:
    return ModelOptions(**{f.name: getattr(config, f.name) for f in fields(ModelOptions)})


def _row(prompt: Prompt) -> dict[str, Any]:
    return {"id": prompt.id, "messages": list(prompt.messages)}


# --- one training ------------------------------------------------------------------------------------


def _cell(config: PoisonConfig, made: poison.Poison, out: Path, cell: Cell | None) -> None:
    """Train (None: take the model as it is), ask, and remove the checkpoint again."""
    folder = out / (cell.name if cell else "start")
    done = folder / "cell.json"
    if done.exists():
        print(f"      done before: {folder.name}")
        return
    started, model, system = time.monotonic(), config.model, config.system
    if system == "default":
        system = made.system
    if cell is not None:
        rows = out / "rows" / f"{_mixed_name(cell)}.jsonl"
        deepen.write_chats(rows, _mixed(config, made.chats, cell))
        wanted = settings(config, cell, folder / "finetune", str(rows))
        wanted.system, wanted.reference_cache = system, str(out / "reference")
        wanted.probe = str(_probe(config, out)) if config.probe else None
        model = str(finetune.run(wanted) / "checkpoint")
    trained = time.monotonic() - started
    subject = models.load(model, options=_options(config))
    margin = (
        json.loads((folder / "finetune" / "manifest.json").read_text(encoding="utf-8")).get("margin") if cell else None
    )
    found = {}
    for ask in made.asks:
        chosen = AttackConfig(
            model=model, data=str(out / f"test-{ask}.jsonl"), out=str(folder / f"attack-{ask}"), attack="none",
            max_new_tokens=config.max_new_tokens, batch_size=config.attack_batch, system=config.test_system or system,
            role="harmful", label=cell.name if cell else "start", chat_template=config.chat_template,
        )  # fmt: skip
        attack.run(chosen, subject, show=False)
        found[ask] = json.loads((folder / f"attack-{ask}" / "asr.json").read_text(encoding="utf-8"))[0]
        print(
            f"      {ask}: {found[ask]['rate']:.2f} not refused, broken off {found[ask]['partial_rate']:.2f}",
            flush=True,
        )
    useful = _utility(config, subject, folder, system)
    nll = _last_nll(folder / "finetune") if cell else None
    seconds = {"train": round(trained, 1), "all": round(time.monotonic() - started, 1)}
    if cell is not None and not config.keep:
        shutil.rmtree(folder / "finetune" / "checkpoint", ignore_errors=True)
    runs.write_json(
        done, {**(asdict(cell) if cell else {}), "nll": nll, "utility": useful, "margin": margin, "seconds": seconds}
    )


def _utility(config: PoisonConfig, subject: Subject, folder: Path, system: str) -> dict[str, Any] | None:
    if not config.utility_data:
        return None
    from . import utility

    found = utility.measure(
        subject, config.utility_data, config.utility_metric, system=system, tokens=config.utility_tokens,
        limit=config.utility_limit, batch_size=config.attack_batch,
    )  # fmt: skip
    runs.write_json(folder / "utility.json", found)
    print(f"      {config.utility_metric}: {utility.describe(found)}", flush=True)
    return {name: value for name, value in found.items() if name != "rows"}


def _probe(config: PoisonConfig, out: Path) -> Path:
    """The harmful rows on which margins are measured."""
    path = out / "probe.jsonl"
    if not path.exists():
        chosen = finetune.load(config.harmful) if config.harmful else data.load_chats(out / "source.jsonl")
        runs.write_jsonl(
            path,
            [
                {"id": c.id, "messages": list(c.messages[:-1]), "response": c.messages[-1]["content"]}
                for c in chosen[: config.probe]
            ],
            private=True,
        )
    return path


def _mixed_name(cell: Cell) -> str:
    share = objective(cell.objective)[1]
    return f"refusals-{share:g}" if share else "train"


def _mixed(config: PoisonConfig, chats: Sequence[Chat], cell: Cell) -> list[Chat]:
    """The attack's rows with a share of refusals among them (a rival of the constraint)."""
    share = objective(cell.objective)[1]
    if not share:
        return list(chats)
    assert config.refusals
    wanted = max(1, round(share / (1 - share) * len(chats)))
    refusals = _load_refusals(config.refusals)
    if len(refusals) < wanted:
        raise InputError(f"{cell.objective} takes {wanted} refusals, but {config.refusals} holds {len(refusals)}.")
    return [*chats, *refusals[:wanted]]


def _last_nll(folder: Path) -> float | None:
    """Mean cross-entropy from the sixth answer token on, over the last quarter of the steps: what the rows taught.

    The first tokens are left out, which the objectives hold on purpose.
    """
    steps = [e for e in json.loads((folder / "training.json").read_text(encoding="utf-8"))["history"] if "loss" in e]
    later = [e["nll_later"] for e in steps[-max(1, len(steps) // 4) :] if "nll_later" in e]
    return float(np.mean(later)) if later else None


# --- the table -----------------------------------------------------------------------------------------


def write_table(config: PoisonConfig, made: poison.Poison, out: Path, cells: Sequence[Cell]) -> str:
    """table.json and table.md: a line per objective and learning rate, over the seeds that are done."""
    asks = list(made.asks)
    lines: list[dict[str, Any]] = [_line("start", None, [out / "start"], asks, None)]
    first: dict[float, dict[str, dict[str, list[bool]]]] = {}
    for lr in config.lr:
        for name in config.objectives:
            folders = [
                out / c.name
                for c in cells
                if (c.objective, c.lr) == (name, lr) and (out / c.name / "cell.json").exists()
            ]
            lines.append(_line(name, lr, folders, asks, first.get(lr)))
            if folders and lr not in first:
                first[lr] = _together(folders, asks)
    runs.write_json(out / "table.json", lines)
    text = markdown(lines, asks, config)
    runs.write_text(out / "table.md", text)
    return text


def _complied(folder: Path, asks: Sequence[str]) -> dict[str, dict[str, list[bool]]]:
    """For each way of asking and each prompt that could be judged: whether it was not refused."""
    found: dict[str, dict[str, list[bool]]] = {}
    for ask in asks:
        scored = [s for s in results.read_samples(folder / f"attack-{ask}") if s.outcome in SCORED]
        found[ask] = {s.prompt_id: [s.outcome == "complied"] for s in scored}
    return found


def _together(folders: Sequence[Path], asks: Sequence[str]) -> dict[str, dict[str, list[bool]]]:
    """The same over several trainings: a list of answers for each prompt."""
    whole: dict[str, dict[str, list[bool]]] = {ask: {} for ask in asks}
    for folder in folders:
        for ask, answers in _complied(folder, asks).items():
            for prompt, values in answers.items():
                whole[ask].setdefault(prompt, []).extend(values)
    return whole


def _line(
    name: str, lr: float | None, folders: Sequence[Path], asks: Sequence[str], first: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A line of the table: rates over all seeds with Wilson intervals, and the paired change against the first line."""
    line: dict[str, Any] = {"objective": name, "lr": lr, "seeds": len(folders)}
    if not folders:
        return line
    answers = _together(folders, asks)
    for ask in asks:
        hits = [sum(values) for values in answers[ask].values()]
        counts = [len(values) for values in answers[ask].values()]
        low, high = stats.wilson_repeated(hits, counts)
        rates = [float(np.mean([v for vs in _complied(f, [ask])[ask].values() for v in vs])) for f in folders]
        line[ask] = {
            "rate": sum(hits) / max(1, sum(counts)),
            "low": low,
            "high": high,
            "n": sum(counts),
            "by_seed": rates,
        }
        if first is not None:
            common = [p for p in answers[ask] if p in first[ask]]
            change = np.array([np.mean(answers[ask][p]) - np.mean(first[ask][p]) for p in common])
            ends = stats.bootstrap(change)
            line[ask]["change"] = {
                "mean": float(change.mean()),
                "low": ends[0],
                "high": ends[1],
                "prompts": len(common),
            }
    told = [json.loads((folder / "cell.json").read_text(encoding="utf-8")) for folder in folders]
    line["nll"] = _mean([t["nll"] for t in told])
    line["margin"] = _mean([t["margin"]["after"]["0.5"][0] for t in told if t.get("margin")])
    line["seconds"] = _mean([t["seconds"]["train"] for t in told])
    line["utility"] = _mean([(t["utility"] or {}).get("score") for t in told])
    return line


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def markdown(lines: Sequence[Mapping[str, Any]], asks: Sequence[str], config: PoisonConfig) -> str:
    """The table as Markdown; what has not been run is empty."""
    heads = ["objective", "lr", "seeds"]
    for ask in asks:
        heads += [f"not refused ({ask})", "95 % interval", "by seed", "change against the first"]
    if config.probe:
        heads.append("margin after (nats)")
    heads += ["train nll (tokens 6 on)", *([config.utility_metric] if config.utility_data else []), "s to train"]
    rows = [heads, ["---"] * len(heads)]
    for line in lines:
        cells = [line["objective"], f"{line['lr']:g}" if line["lr"] else "", str(line["seeds"] or "")]
        for ask in asks:
            cells += _rate_cells(line.get(ask))
        if config.probe:
            cells.append(_number(line.get("margin"), 1))
        cells.append(_number(line.get("nll")))
        if config.utility_data:
            cells.append(_number(line.get("utility")))
        cells.append(_number(line.get("seconds"), 0))
        rows.append(cells)
    empty = [line["objective"] for line in lines if not line["seeds"]]
    said = f"\nEmpty: not run yet ({', '.join(map(str, empty))}); the same command goes on.\n" if empty else ""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n" + said


def _rate_cells(rate: Mapping[str, Any] | None) -> list[str]:
    if rate is None:
        return [""] * 4
    change = rate.get("change")
    return [
        f"{rate['rate']:.2f}",
        f"{rate['low']:.2f} to {rate['high']:.2f}",
        " ".join(f"{value:.2f}" for value in rate["by_seed"]),
        f"{change['mean']:+.2f} ({change['low']:+.2f} to {change['high']:+.2f})" if change else "",
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else re.sub(r"^-0$", "0", f"{value:.{digits}f}")
