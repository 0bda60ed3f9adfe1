"""Composes the verbs: the demo, which tells the paper's story live on the packaged real model.

Unaligned model -> ordinary safety fine-tuning (shallow) -> measure and attack -> deepen -> measure
and attack again -> report. Nothing is precomputed: models are trained and answers written on the
user's machine, and kept in the cache so that a second run only measures and attacks.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from tokendeep import data, models, runs
from tokendeep.errors import InputError
from tokendeep.records import Rate
from tokendeep.training import answers
from tokendeep.types import Decoding, Prompt, Subject
from tokendeep.verbs import attack, deepen, measure, report
from tokendeep.verbs.options import DemoConfig


@dataclass(frozen=True)
class Phase:
    """One of the two trainings: optimizer steps, rows per step, weight of the safety rows, share of utility rows cut."""

    steps: int
    safety: int
    utility: int
    alpha: float
    cut: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """The demo's settings; chosen so that two CPU cores finish in minutes (docs/results.md has the trials)."""

    model: str = "smollm2"
    system: str = "none"  # the paper attacks with an empty system prompt; it also makes rows shorter
    answer_tokens: int = 40
    harmful_tokens: int = 48
    attack_tokens: int = 32
    k: tuple[int, ...] = (0, 5, 10, 20)
    k_base: tuple[int, ...] = (0, 10)
    layers: int = 15
    lr: float = 3e-4
    align: Phase = Phase(steps=60, safety=4, utility=12, alpha=0.2)
    deepen: Phase = Phase(steps=80, safety=8, utility=8, alpha=0.4, cut=0.15)
    max_context: int = 40
    measured: int = 24
    measured_k: tuple[int, ...] = (0, 1, 3, 5, 10, 20)
    positions: int = 40
    utility: int | None = None  # use so many ordinary instructions only, beside the harmless twins
    twins: int = 2  # times that a twin stands among the utility rows
    train: int | None = None  # use the first so many training instructions only
    test: int | None = None


MEASURING = ("attack_tokens", "k", "k_base", "measured", "measured_k", "positions")  # settings that train nothing


def run(config: DemoConfig, recipe: Recipe | None = None) -> Path:
    """The demo; returns the folder with report.html."""
    return Demo(config, recipe or Recipe()).tell()


class Demo:
    """One telling of the story: where its files lie, and its steps in order."""

    def __init__(self, config: DemoConfig, recipe: Recipe) -> None:
        self.recipe, self.seed, self.fresh = recipe, config.seed, config.fresh
        self.out = Path(config.out)
        self.cache = models.cache_dir() / f"demo-{_key(recipe, config.seed)}"
        self.steps, self.started = 8, time.monotonic()
        self.done = 0

    def tell(self) -> Path:
        settings = {"seed": self.seed, "recipe": json.loads(json.dumps(asdict(self.recipe)))}
        state = runs.open_run(self.out, "demo", settings, overwrite=self.fresh)
        if state.finished:
            print(f"demo: {self.out} already holds this finished run\n\n{closing_table(self.out, self.recipe.k)}")
            return self.out
        if self.fresh:
            shutil.rmtree(self.cache, ignore_errors=True)
        runs.private_dir(self.cache)
        with self._step("answers of the unaligned model (SmolLM2-135M-Instruct)"):
            self._write_data()
        with self._step("ordinary safety fine-tuning: it learns to refuse"):
            aligned = self._align()
        with self._step("attack the unaligned and the aligned model"):
            self._attack("base", self.recipe.model)
            self._attack("aligned", aligned)
        with self._step("measure how deep the alignment goes"):
            self._measure("aligned", aligned)
        with self._step("deepen: train to recover after harmful tokens"):
            deepened = self._deepen(aligned)
        with self._step("attack the deepened model"):
            self._attack("deepened", deepened)
        with self._step("measure it again"):
            self._measure("deepened", deepened)
        with self._step("report"):
            options = report.ReportOptions([str(self.out)], out=str(self.out / "report.html"), overwrite=True)
            page = report.run(report.plan(options), show=False)
        state.finish()
        print(f"\n{closing_table(self.out, self.recipe.k)}\n\nReport: {page}")
        print(f"Took {(time.monotonic() - self.started) / 60:.1f} minutes.")
        return self.out

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        self.done += 1
        print(f"\n[{self.done}/{self.steps}] {title}", flush=True)
        start = time.monotonic()
        yield
        print(f"      {time.monotonic() - start:.0f} s", flush=True)

    def _write_data(self) -> None:
        """Answers of the unaligned model, written once: utility chats, harmful pairs, benign control pairs."""
        if (self.cache / "train_triples.jsonl").exists():
            print("      from the cache (--fresh makes them anew)")
            return
        harmful, benign = demo_rows("harmful.jsonl"), demo_rows("benign.jsonl")
        train = [r for r in harmful if r["split"] == "train"][: self.recipe.train]
        test = [r for r in harmful if r["split"] == "test"][: self.recipe.test]
        ordinary = [r for r in benign if r["split"] == "utility"][: self.recipe.utility]
        unseen = [r for r in benign if r["split"] == "unseen"][: self.recipe.test]
        utility = [(r["id"], r["instruction"]) for r in ordinary] + [(f"twin-{r['id']}", r["twin"]) for r in train]
        base = models.load(self.recipe.model)
        self._write_chats("utility.jsonl", base, utility)
        self._write_pairs("benign_pairs.jsonl", base, unseen, "instruction", self.recipe.answer_tokens)
        self._write_pairs("test_pairs.jsonl", base, test, "instruction", self.recipe.harmful_tokens)
        data.write_rows(self.cache / "twins.jsonl", [{**_prompt(r, "twin"), "category": r["category"]} for r in test])
        data.write_rows(self.cache / "unseen.jsonl", [_prompt(r, "instruction") for r in unseen])
        refusals = demo_text("refusals.txt").splitlines()
        draw = random.Random(self.seed)
        answers = self._answers(base, [r["instruction"] for r in train], self.recipe.harmful_tokens)
        triples = [
            {"id": r["id"], "instruction": r["instruction"], "harmful": answer, "refusal": draw.choice(refusals)}
            for r, answer in zip(train, answers, strict=True)
            if answer.strip()
        ]
        data.write_rows(self.cache / "train_triples.jsonl", triples)

    def _answers(self, subject: Subject, instructions: Sequence[str], tokens: int) -> list[str]:
        turns = [deepen.chat.with_system(({"role": "user", "content": i},), self.recipe.system) for i in instructions]
        return [text for text, _ in answers.write_answers(subject, turns, Decoding(max_new_tokens=tokens))]

    def _write_chats(self, name: str, base: Subject, rows: Sequence[tuple[str, str]]) -> None:
        prompts = [Prompt(i, ({"role": "user", "content": text},)) for i, text in rows]
        chats = answers.distil(base, prompts, self.recipe.answer_tokens, self.recipe.system)
        print(f"      {len(chats)} utility rows; {len(rows) - len(chats)} left out (no usable answer)")
        again = [
            replace(c, id=f"{c.id}-{n}") for n in range(2, self.recipe.twins + 1) for c in chats if c.id[:5] == "twin-"
        ]
        data.write_rows(self.cache / name, chats + again)

    def _write_pairs(self, name: str, base: Subject, rows: Sequence[dict[str, Any]], field: str, tokens: int) -> None:
        answers = self._answers(base, [r[field] for r in rows], tokens)
        pairs = [{**_prompt(r, field), "response": a} for r, a in zip(rows, answers, strict=True) if a.strip()]
        if len(pairs) < len(rows):
            print(f"      {len(rows) - len(pairs)} rows of {name} left out: the model's answer was empty")
        data.write_rows(self.cache / name, pairs)

    def _train(self, name: str, phase: Phase, **settings: Any) -> str:
        out = self.cache / name
        deepen.run(
            deepen.plan(deepen.DeepenOptions(
                out=str(out), utility=str(self.cache / "utility.jsonl"), system=self.recipe.system, seed=self.seed,
                max_steps=phase.steps, cut_utility=phase.cut, safety_rows=phase.safety, utility_rows=phase.utility,
                alpha=phase.alpha, micro_batch=(phase.safety + phase.utility) // 4 or 1, lr=self.recipe.lr, warmup_steps=5,
                train_layers=self.recipe.layers, **settings,
            ))
        )  # fmt: skip
        return str(out / "checkpoint")

    def _align(self) -> str:
        triples = str(self.cache / "train_triples.jsonl")
        return self._train("aligned", self.recipe.align, model=self.recipe.model, data=triples, p_zero=1.0)

    def _deepen(self, aligned: str) -> str:
        own = self._own_refusals(aligned)
        return self._train(
            "deepened", self.recipe.deepen, model=aligned, data=str(own), max_context=self.recipe.max_context
        )

    def _own_refusals(self, aligned: str) -> Path:
        """The training triples with the aligned model's own refusals, as in the paper."""
        path = self.cache / "own_triples.jsonl"
        if not path.exists():
            triples = data.read_triples(self.cache / "train_triples.jsonl")
            refusals = answers.sample_refusals(
                models.load(aligned), [t.messages for t in triples], tokens=self.recipe.answer_tokens,
                system=self.recipe.system, seed=self.seed, tries=2,
            )  # fmt: skip
            kept = [replace(t, refusal=r) for t, r in zip(triples, refusals, strict=True) if r]
            print(f"      the aligned model refused {len(kept)} of {len(triples)} training instructions; they are used")
            if not kept:
                raise InputError("The aligned model refused none of the training instructions; train it with --fresh.")
            data.write_rows(path, kept)
        return path

    def _attack(self, label: str, model: str) -> None:
        """Prefilling on the harmful test rows; the plain request on their harmless twins and on unseen benign prompts."""
        common: dict[str, Any] = {
            "model": model, "system": self.recipe.system, "max_new_tokens": self.recipe.attack_tokens,
            "seed": self.seed, "batch_size": 96, "overwrite": self.fresh, "label": label,
        }  # fmt: skip
        ks = list(self.recipe.k if label != "base" else self.recipe.k_base)
        folder = self.out / label
        subject = models.load(model)
        rows = {"attack": "test_pairs.jsonl", "overrefusal": "twins.jsonl", "unseen": "unseen.jsonl"}
        roles = {"attack": "harmful", "overrefusal": "twins", "unseen": "unseen"}
        for name, file in rows.items():
            what: dict[str, Any] = {"attack": "prefill", "k": ks} if name == "attack" else {"attack": "none"}
            options = attack.AttackOptions(
                data=str(self.cache / file), out=str(folder / name), role=roles[name], **what, **common
            )
            attack.run(attack.plan(options, subject), show=False)
        rates = {row.params.k: row.rate for row in Rate.load_all(folder / "attack")}
        print(f"      {label}: not refused: " + ", ".join(f"{rate:.2f} at k={k}" for k, rate in sorted(rates.items())))
        harmless = [
            f"{what} {_refused(row):.2f} (broken off {row.partial_rate:.2f})"
            for what, row in (
                ("twins", Rate.load_all(folder / "overrefusal")[0]),
                ("unseen", Rate.load_all(folder / "unseen")[0]),
            )
        ]
        print(f"      {label}: harmless requests refused: {', '.join(harmless)}", flush=True)

    def _measure(self, label: str, model: str) -> None:
        options = measure.MeasureOptions(
                model=model, base=self.recipe.model, data=str(self.cache / "test_pairs.jsonl"),
                benign=str(self.cache / "benign_pairs.jsonl"), out=str(self.out / label / "measure"),
                system=self.recipe.system, positions=self.recipe.positions, k=list(self.recipe.measured_k),
                limit=self.recipe.measured,
                seed=self.seed, overwrite=self.fresh, label=label,
        )  # fmt: skip
        measure.run(measure.plan(options))


def demo_text(name: str) -> str:
    """A text file of the demo that is shipped with the package."""
    return resources.files("tokendeep").joinpath(f"assets/demo/{name}").read_text(encoding="utf-8")


def demo_rows(name: str) -> list[dict[str, Any]]:
    """The rows of one of the demo's shipped JSONL files."""
    return [json.loads(line) for line in demo_text(name).splitlines() if line.strip()]


def _prompt(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {"id": row["id"], "instruction": row[field]}


def _key(recipe: Recipe, seed: int) -> str:
    """Names the cache folder: everything the trained models depend on, besides the machine."""
    versions = {name: metadata.version(name) for name in ("tokendeep", "torch", "transformers", "trl")}
    texts = [demo_text(name) for name in ("harmful.jsonl", "benign.jsonl", "refusals.txt")]
    trained = {name: value for name, value in asdict(recipe).items() if name not in MEASURING}
    return runs.sha256_text(json.dumps([trained, seed, versions, texts]))[:10]


def _refused(row: Rate) -> float:
    """Share of the scored answers that refuse at once."""
    return row.count("refused") / row.n if row.n else float("nan")


def closing_table(out: Path, ks: Sequence[int]) -> str:
    """Non-refusal by k and over-refusal of each model, as aligned text."""
    heads = [
        "model",
        *(f"k={k}" for k in ks),
        "twins refused",
        "twins broken off",
        "unseen refused",
        "unseen broken off",
    ]
    lines = [heads]
    for label in ("base", "aligned", "deepened"):
        rates = {row.params.k: row.rate for row in Rate.load_all(out / label / "attack")}
        cells = [f"{rates[k]:.2f}" if k in rates else "-" for k in ks]
        for name in ("overrefusal", "unseen"):
            row = Rate.load_all(out / label / name)[0]
            cells += [f"{_refused(row):.2f}", f"{row.partial_rate:.2f}"]
        lines.append([label, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    title = "Share of harmful requests not refused, by number k of harmful tokens given in advance; and of harmless\n" \
            "requests refused at once or broken off midway:"  # fmt: skip
    return "\n".join([title, *("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)])
