"""VERB demo: the paper's story, told live on the packaged real model.

Unaligned model -> ordinary safety fine-tuning (shallow) -> measure and attack -> deepen -> measure
and attack again -> report. Nothing is precomputed: models are trained and answers written on the
user's machine, and kept in the cache so that a second run only measures and attacks.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from tokendeep import chat, data, models, runs
from tokendeep.data import stock
from tokendeep.depth import profile as profiles
from tokendeep.errors import InputError
from tokendeep.records import Profile, Rate
from tokendeep.training import answers
from tokendeep.types import Decoding, Prompt, Subject
from tokendeep.verbs import attack, deepen, measure, report
from tokendeep.verbs.common import ending, heading, output

what = heading("What to tell")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Tell the paper's story live on the packaged real model: shallow, attacked, deepened, attacked again."""

    fresh: Annotated[bool, what(help="Train again, also where trained models are in the cache.")] = False
    seed: Annotated[int, what(help="Seed of everything; another one trains other models.")] = 0
    out: Annotated[str, output(help="Folder for everything the demo writes, the report included.")] = "demo-out"


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
    """The demo's settings; chosen so that two CPU cores finish in minutes (docs/results/demo.md has the trials)."""

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
RECIPE = Recipe()


@dataclass(frozen=True)
class DemoPlan:
    """One telling of the story: how, and where its files lie."""

    options: DemoOptions
    recipe: Recipe
    cache: Path

    @property
    def out(self) -> Path:
        return Path(self.options.out)

    def checkpoint(self, name: str) -> str:
        """A trained model, or the one that all begins with."""
        return self.recipe.model if name == "base" else str(self.cache / name / "checkpoint")

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this demo from another."""
        return {"seed": self.options.seed, "recipe": json.loads(json.dumps(asdict(self.recipe)))}

    def lines(self) -> list[str]:
        """The steps with their minutes on two quiet CPU cores, and what is in the cache."""
        there = [not self.options.fresh and kept is not None and (self.cache / kept).exists() for *_, kept in STEPS]
        steps = [
            f"{number}. {title}: " + ("in the cache" if cached else f"{seconds / 60:.1f} min")
            for number, ((title, seconds, _, _), cached) in enumerate(zip(STEPS, there, strict=True), 1)
        ]
        total = sum(seconds for (_, seconds, _, _), cached in zip(STEPS, there, strict=True) if not cached)
        return [
            f"model: {self.recipe.model}",
            *steps,
            f"about {total / 60:.0f} minutes on two CPU cores; trained models are kept in {self.cache}",
            f"out: {self.options.out} ({runs.look(self.out, 'demo', self.settings, overwrite=self.options.fresh)})",
        ]


def plan(options: DemoOptions, recipe: Recipe = RECIPE) -> DemoPlan:
    """What the demo would do; loads no weights and writes nothing.

    Raises:
        InputError: the packaged model is not installed.
    """
    models.check_spec(recipe.model)
    return DemoPlan(options, recipe, models.cache_dir() / f"demo-{_key(recipe, options.seed)}")


def run(plan: DemoPlan) -> Path:
    """Tell the story; returns the folder with report.html."""
    started = time.monotonic()
    state = runs.open_run(plan.out, "demo", plan.settings, overwrite=plan.options.fresh)
    if state.finished:
        print(f"demo: {plan.out} already holds this finished run")
        _show(plan)
        return plan.out
    if plan.options.fresh:
        shutil.rmtree(plan.cache, ignore_errors=True)
    runs.private_dir(plan.cache)
    for number, (title, _, step, _) in enumerate(STEPS, 1):
        print(f"\n[{number}/{len(STEPS)}] {title}", flush=True)
        start = time.monotonic()
        step(plan)
        print(f"      {time.monotonic() - start:.0f} s", flush=True)
    state.finish()
    print(f"\ntook {(time.monotonic() - started) / 60:.1f} minutes")
    _show(plan)
    return plan.out


def _show(plan: DemoPlan) -> None:
    """The table at the end of the story, and the way on."""
    print(f"\n{closing_table(plan.out, plan.recipe.k)}\n")
    ending(
        f"{plan.out / 'report.html'} (open it in a browser)",
        ["attack", "--model", "YOUR-CHAT-MODEL", "--attack", "none", "--data", "INSTRUCTIONS.jsonl", "--out", "out/attack"],
    )  # fmt: skip


# --- the steps -----------------------------------------------------------------------------------


def _write_data(plan: DemoPlan) -> None:
    """Answers of the unaligned model, written once: utility chats, harmful pairs, benign control pairs."""
    recipe, cache = plan.recipe, plan.cache
    if (cache / "train_triples.jsonl").exists():
        print("      from the cache (--fresh makes them anew)")
        return
    harmful, benign = stock.rows("harmful.jsonl"), stock.rows("benign.jsonl")
    train = [r for r in harmful if r["split"] == "train"][: recipe.train]
    test = [r for r in harmful if r["split"] == "test"][: recipe.test]
    ordinary = [r for r in benign if r["split"] == "utility"][: recipe.utility]
    unseen = [r for r in benign if r["split"] == "unseen"][: recipe.test]
    base = models.load(recipe.model)
    twins = [(f"twin-{r['id']}", r["twin"]) for r in train]
    _write_utility(plan, base, [*((r["id"], r["instruction"]) for r in ordinary), *twins])
    _write_pairs(plan, "benign_pairs.jsonl", base, unseen, recipe.answer_tokens, "ordinary answers")
    _write_pairs(plan, "test_pairs.jsonl", base, test, recipe.harmful_tokens)
    data.write_rows(cache / "twins.jsonl", [{**_prompt(r, "twin"), "category": r["category"]} for r in test])
    data.write_rows(cache / "unseen.jsonl", [_prompt(r, "instruction") for r in unseen])
    refusals, draw = stock.text("refusals.txt").splitlines(), random.Random(plan.options.seed)
    triples = [
        {"id": r["id"], "instruction": r["instruction"], "harmful": answer, "refusal": draw.choice(refusals)}
        for r, answer in zip(train, _answers(plan, base, train, recipe.harmful_tokens), strict=True)
        if answer.strip()
    ]
    data.write_rows(cache / "train_triples.jsonl", triples)


def _answers(
    plan: DemoPlan, subject: Subject, rows: Sequence[dict[str, Any]], tokens: int, title: str = "harmful answers"
) -> list[str]:
    turns = [chat.with_system(({"role": "user", "content": r["instruction"]},), plan.recipe.system) for r in rows]
    return [text for text, _ in answers.write_answers(subject, turns, Decoding(max_new_tokens=tokens), title=title)]


def _write_utility(plan: DemoPlan, base: Subject, rows: Sequence[tuple[str, str]]) -> None:
    prompts = [Prompt(i, ({"role": "user", "content": text},)) for i, text in rows]
    chats = answers.distil(base, prompts, plan.recipe.answer_tokens, plan.recipe.system, "utility answers")
    print(f"      {len(chats)} utility rows; {len(rows) - len(chats)} left out (no usable answer)")
    twins = [chat for chat in chats if chat.id.startswith("twin-")]
    again = [replace(chat, id=f"{chat.id}-{n}") for n in range(2, plan.recipe.twins + 1) for chat in twins]
    data.write_rows(plan.cache / "utility.jsonl", chats + again)


def _write_pairs(
    plan: DemoPlan, name: str, base: Subject, rows: Sequence[dict[str, Any]], tokens: int, title: str = "harmful answers"
) -> None:  # fmt: skip
    written = zip(rows, _answers(plan, base, rows, tokens, title), strict=True)
    pairs = [{**_prompt(r, "instruction"), "response": answer} for r, answer in written if answer.strip()]
    if len(pairs) < len(rows):
        print(f"      {len(rows) - len(pairs)} rows of {name} left out: the model's answer was empty")
    data.write_rows(plan.cache / name, pairs)


def _train(plan: DemoPlan, name: str, phase: Phase, **settings: Any) -> None:
    recipe = plan.recipe
    options = deepen.DeepenOptions(
        out=str(plan.cache / name), utility=str(plan.cache / "utility.jsonl"), system=recipe.system,
        seed=plan.options.seed, max_steps=phase.steps, cut_utility=phase.cut, safety_rows=phase.safety,
        utility_rows=phase.utility, alpha=phase.alpha, micro_batch=(phase.safety + phase.utility) // 4 or 1,
        lr=recipe.lr, warmup_steps=5, train_layers=recipe.layers, **settings,
    )  # fmt: skip
    deepen.run(deepen.plan(options), show=False)


def _align(plan: DemoPlan) -> None:
    triples = str(plan.cache / "train_triples.jsonl")
    _train(plan, "aligned", plan.recipe.align, model=plan.recipe.model, data=triples, p_zero=1.0)


def _deepen(plan: DemoPlan) -> None:
    triples, recipe = str(_own_refusals(plan)), plan.recipe
    aligned = plan.checkpoint("aligned")
    _train(plan, "deepened", recipe.deepen, model=aligned, data=triples, max_context=recipe.max_context)


def _own_refusals(plan: DemoPlan) -> Path:
    """The training triples with the aligned model's own refusals, as in the paper."""
    path, recipe = plan.cache / "own_triples.jsonl", plan.recipe
    if path.exists():
        return path
    triples = data.read_triples(plan.cache / "train_triples.jsonl")
    refusals = answers.sample_refusals(
        models.load(plan.checkpoint("aligned")), [t.messages for t in triples], tokens=recipe.answer_tokens,
        system=recipe.system, seed=plan.options.seed, tries=2,
    )  # fmt: skip
    refused = [replace(t, refusal=r) for t, r in zip(triples, refusals, strict=True) if r]
    print(f"      the aligned model refused {len(refused)} of {len(triples)} training instructions; they are used")
    if not refused:
        raise InputError("The aligned model refused none of the training instructions; train it with --fresh.")
    data.write_rows(path, refused)
    return path


def _attack_both(plan: DemoPlan) -> None:
    _attack(plan, "base")
    _attack(plan, "aligned")


def _attack(plan: DemoPlan, label: str) -> None:
    """Prefilling on the harmful test rows; the plain request on their harmless twins and on unseen benign prompts."""
    recipe, folder = plan.recipe, plan.out / label
    common: dict[str, Any] = {
        "model": plan.checkpoint(label), "system": recipe.system, "max_new_tokens": recipe.attack_tokens,
        "seed": plan.options.seed, "batch_size": 96, "overwrite": plan.options.fresh, "label": label,
    }  # fmt: skip
    subject = models.load(common["model"])
    ks = list(recipe.k if label != "base" else recipe.k_base)
    for name, file, role, how in (
        ("attack", "test_pairs", "harmful", {"attack": "prefill", "k": ks}),
        ("overrefusal", "twins", "twins", {"attack": "none"}),
        ("unseen", "unseen", "unseen", {"attack": "none"}),
    ):
        options = attack.AttackOptions(
            data=str(plan.cache / f"{file}.jsonl"), out=str(folder / name), role=role, **how, **common
        )
        attack.run(attack.plan(options, subject), show=False)
    rates = sorted((row.params.k or 0, row.rate) for row in Rate.load_all(folder / "attack"))
    print(f"      {label}: not refused: " + ", ".join(f"{rate:.2f} at k={k}" for k, rate in rates))
    rows = {kind: Rate.load_all(folder / name)[0] for kind, name in (("twins", "overrefusal"), ("unseen", "unseen"))}
    harmless = [f"{kind} {_refused(row):.2f} (broken off {row.partial_rate:.2f})" for kind, row in rows.items()]
    print(f"      {label}: harmless requests refused: {', '.join(harmless)}", flush=True)


def _measure(plan: DemoPlan, label: str) -> None:
    recipe = plan.recipe
    options = measure.MeasureOptions(
        model=plan.checkpoint(label), base=recipe.model, data=str(plan.cache / "test_pairs.jsonl"),
        benign=str(plan.cache / "benign_pairs.jsonl"), out=str(plan.out / label / "measure"), system=recipe.system,
        positions=recipe.positions, k=list(recipe.measured_k), limit=recipe.measured, seed=plan.options.seed,
        overwrite=plan.options.fresh, label=label,
    )  # fmt: skip
    profile = Profile.load(measure.run(measure.plan(options), show=False))
    print("\n".join(f"      {line}" for line in profiles.describe(profile, label).splitlines()))


def _report(plan: DemoPlan) -> None:
    options = report.ReportOptions([str(plan.out)], out=str(plan.out / "report.html"), overwrite=True)
    report.run(report.plan(options), show=False)


STEPS: tuple[tuple[str, int, Callable[[DemoPlan], None], str | None], ...] = (
    # what is told, seconds on two quiet CPU cores, what does it, what it leaves in the cache
    ("answers of the unaligned model (SmolLM2-135M-Instruct)", 135, _write_data, "train_triples.jsonl"),
    ("ordinary safety fine-tuning: it learns to refuse", 236, _align, "aligned/checkpoint"),
    ("attack the unaligned and the aligned model", 113, _attack_both, None),
    ("measure how deep the alignment goes", 33, lambda plan: _measure(plan, "aligned"), None),
    ("deepen: train to recover after harmful tokens", 301, _deepen, "deepened/checkpoint"),
    ("attack the deepened model", 75, lambda plan: _attack(plan, "deepened"), None),
    ("measure it again", 61, lambda plan: _measure(plan, "deepened"), None),
    ("report", 3, _report, None),
)


# --- rows, cache and the closing table -----------------------------------------------------------


def _prompt(row: dict[str, Any], field: str) -> dict[str, Any]:
    return {"id": row["id"], "instruction": row[field]}


def _key(recipe: Recipe, seed: int) -> str:
    """Names the cache folder: everything the trained models depend on, besides the machine."""
    versions = {name: metadata.version(name) for name in ("tokendeep", "torch", "transformers", "trl")}
    texts = [stock.text(name) for name in ("harmful.jsonl", "benign.jsonl", "refusals.txt")]
    trained = {name: value for name, value in asdict(recipe).items() if name not in MEASURING}
    return runs.sha256_text(json.dumps([trained, seed, versions, texts]))[:10]


def _refused(row: Rate) -> float:
    """Share of the scored answers that refuse at once."""
    return row.count("refused") / row.n if row.n else float("nan")


def closing_table(out: Path, ks: Sequence[int]) -> str:
    """Non-refusal by k and over-refusal of each model, as aligned text."""
    of_harmless = [f"{kind} {what}" for kind in ("twins", "unseen") for what in ("refused", "broken off")]
    lines = [["model", *(f"k={k}" for k in ks), *of_harmless]]
    for label in ("base", "aligned", "deepened"):
        rates = {row.params.k: row.rate for row in Rate.load_all(out / label / "attack")}
        cells = [f"{rates[k]:.2f}" if k in rates else "-" for k in ks]
        for name in ("overrefusal", "unseen"):
            row = Rate.load_all(out / label / name)[0]
            cells += [f"{_refused(row):.2f}", f"{row.partial_rate:.2f}"]
        lines.append([label, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    title = "Share of harmful requests not refused, by number k of harmful tokens given in advance; and of harmless\n" \
            "requests refused at once or broken off midway:"  # fmt: skip
    return "\n".join([title, *("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)])
