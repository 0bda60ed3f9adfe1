"""Generated mistakes: options, YAML, rows, model folders, manifests, templates, result files. Each must be one sentence.

A mistake that happens to be none (a changed label, say) may also be taken: what must never come is a traceback, another
exit code, a bar before the sentence, a row's text in it, or no end.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import broken
from world import World

from tokendeep import cli
from tokendeep.verbs import VERBS


@dataclass(frozen=True)
class Case:
    """A command line with a mistake in it or in what it names."""

    kind: str
    words: list[str]


Maker = Callable[[World, random.Random, Path], Case]
TAKEN = ("measure", "attack", "deepen", "finetune", "mend", "audit", "poison", "gcg", "pairs")
READS = {"deepen": "triples", "finetune": "chats", "mend": "chats", "audit": "chats", "pairs": "prompts"}  # else pairs
SMALL = {  # so that what is no mistake ends soon
    "measure": ["--k", "0,2", "--positions", "6", "--bootstrap", "100"],
    "attack": ["--k", "0,2", "--max-new-tokens", "3"],
    "deepen": ["--max-steps", "1", "--safety-rows", "2", "--utility-rows", "2", "--micro-batch", "4"],
    "finetune": ["--max-steps", "1", "--batch-size", "2", "--micro-batch", "2"],
    "mend": ["--max-steps", "1", "--batch-size", "2", "--micro-batch", "2"],
    "audit": ["--score", "margin,gradient", "--probe-size", "2", "--last-layers", "1", "--cut", "2"],
    "pairs": ["--answer-tokens", "3"],
    "poison": ["--max-steps", "1", "--count", "2", "--batch-size", "2", "--micro-batch", "2", "--max-new-tokens", "3",
               "--objectives", "sft"],
    "gcg": ["--limit", "1", "--steps", "1", "--width", "4", "--top", "4", "--suffix-tokens", "2", "--target-tokens", "2"],
}  # fmt: skip
TEXTS = [
    *("", " ", "NaN", "nan", "inf", "-inf", "1e999", "-1e999", "1e-400", "-1", "0", "1.5", "1" + "0" * 30, "-" + "9" * 40),
    *("9" * 5000, "٣", "０", "０,５", "[０,５]", "[0,５]", "1_0", "0x10", "1,,2", ",", "[", "[]"),
    *("[[0]]", "{}", "null", "[null]"),
    *("true", "[1e999]", "[NaN]", "[1e400,2]", "\udcff", "caf\udce9", "\ud800", "a\nb", "a\rb", "a\tb", "\x1b[31m", "x" * 300),
    *("x/" * 3000, "x" * 100_000, "none", "auto", "meta", "cuda:99", "mps", "-", "--", "'", '"', "%s", "{0}", "😀", "\u202eabc"),
    *("/proc/nope", "/dev/null", "/dev/full", ".", "~no-such-user/x", "hf:", "hf:a/b", "hf:a:b", "http://x", "inspect/"),
    *("inspect/nothing/x", "mockllm/model", "vllm/x", "nothing.gguf", "a@b", "sft", "constrained=", "beta=x", "head=9"),
]  # fmt: skip


ADDING = {  # verbs that look at what is there: their options, by the names of rows and of finished runs
    "calibrate": {"labels": "labels.jsonl"},
    "overlap": {"first": "chats.jsonl", "second": "prompts.jsonl"},
    "compare": {"before": "attack-one", "after": "attack-two"},
    "gate": {"before": "attack-one", "after": "attack-two", "max_asr_rise": "0.5"},
    "judge": {"run": "attack-one"},
}


def cases(world: World, seed: int, count: int, work: Path) -> Iterator[Case]:
    """So many mistakes, of every kind in turn."""
    draw = random.Random(seed)
    for number in range(count):
        folder = work / f"case-{number}"
        folder.mkdir(parents=True)
        yield list(MAKERS.values())[number % len(MAKERS)](world, draw, folder)


def line(world: World, verb: str, folder: Path, **changes: str) -> list[str]:
    """A command line that is right, but for the changes."""
    given = {
        "model": world.path("model"),
        "data": world.path(f"{READS.get(verb, 'pairs')}.jsonl"),
        "out": str(folder / "out"),
    }
    given |= {"utility": world.path("chats.jsonl")} if verb == "deepen" else {}
    given |= {"test": world.path("prompts.jsonl")} if verb == "poison" else {}
    given |= {"aligned": world.path("base")} if verb == "mend" else {}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**given, **changes}.items()]
    named = {f"--{name.replace('_', '-')}" for name in changes}
    small = SMALL[verb]
    pairs = [small[n : n + 2] for n in range(0, len(small), 2)]
    return [verb, *(word for pair in pairs if pair[0] not in named for word in pair), *words]


def looking(world: World, verb: str, folder: Path, **changes: str) -> list[str]:
    """The same of a verb that looks at what is there; what it adds to is a copy."""
    made = world.folder.parent / "whole"
    given = {}
    for name, value in ADDING[verb].items():
        place = made / value
        if verb == "judge" and name not in changes:
            place = Path(shutil.copytree(place, folder / value))
        is_run = value.startswith("attack-")
        given[name] = str(place) if is_run else world.path(value) if value.endswith(".jsonl") else value
    given |= {} if verb == "judge" else {"out": str(folder / "out")}
    return [verb, *(f"--{name.replace('_', '-')}={value}" for name, value in {**given, **changes}.items())]


def option(world: World, draw: random.Random, folder: Path) -> Case:
    """One option of a verb, or two, with a value that hardly fits."""
    verb = draw.choice(list(VERBS))
    names = [name for name in get_type_hints(cli.options_of(verb)) if name not in ("dirs", "fresh")]
    changes = {name: draw.choice(TEXTS) for name in draw.sample(names, draw.choice((1, 1, 1, 2)))}
    if verb in TAKEN:
        words = line(world, verb, folder, **changes)
    elif verb in ADDING:
        words = looking(world, verb, folder, **changes)
    else:
        words = [verb, *(f"--{name.replace('_', '-')}={value}" for name, value in changes.items())]
        words += ["--dry-run"] if verb == "demo" else [str(folder)]
    return Case(f"option {verb} {', '.join(changes)}", [word.replace("\0", "") for word in words])


def attack_option(world: World, draw: random.Random, folder: Path) -> Case:
    """An option of an attack, whichever runs."""
    from tokendeep.attacks import ATTACKS

    names = [name for attack in ATTACKS.values() for name in get_type_hints(attack.options)]
    name, attack = draw.choice(names), draw.choice([*ATTACKS, "none"])
    values = [*TEXTS, "-1", "-5", "0", "-3", "temperature=-1", "top_k=0", "nowhere.jsonl"]
    return Case(
        f"option attack {attack} {name}", line(world, "attack", folder, attack=attack, **{name: draw.choice(values)})
    )


def yaml(world: World, draw: random.Random, folder: Path) -> Case:
    """A file of options."""
    verb = draw.choice(TAKEN)
    names = list(get_type_hints(cli.options_of(verb)))
    path = folder / "options.yaml"
    path.write_bytes(broken.yaml(draw, names))
    return Case(f"yaml {verb}", [*line(world, verb, folder), f"--config={path}"])


def rows(world: World, draw: random.Random, folder: Path) -> Case:
    """A file of rows."""
    verb = draw.choice((*TAKEN, "calibrate", "overlap"))
    if verb in ADDING:
        name = draw.choice(list(ADDING[verb]))
        path = broken.rows(draw, Path(world.path(ADDING[verb][name])), folder)
        return Case(f"rows {verb} {name}", looking(world, verb, folder, **{name: str(path)}))
    name = draw.choice({"deepen": ["data", "utility"], "finetune": ["data", "eval_data", "probe", "safety", "harmless"],
                        "audit": ["data", "probe", "openings"], "poison": ["data", "test"],
                        "measure": ["data", "benign", "openings"],
                        "attack": ["data", "suffixes"]}.get(verb, ["data"]))  # fmt: skip
    source = {"utility": "chats", "eval_data": "chats", "test": "prompts"}.get(name, "pairs")
    source = READS.get(verb, source) if name == "data" else source
    path = broken.rows(draw, Path(world.path(f"{source}.jsonl")), folder)
    more = {"attack": "suffix"} if name == "suffixes" else {}
    return Case(f"rows {verb} {name}", line(world, verb, folder, **{name: str(path)}, **more))


def model(world: World, draw: random.Random, folder: Path) -> Case:
    """A model's folder, or that of an adapter."""
    verb, name = (
        draw.choice(("measure", "attack", "finetune", "gcg", "deepen", "audit")),
        draw.choice(("model", "model", "adapter")),
    )
    place = folder / name
    shutil.copytree(world.path(name), place)
    if name == "adapter":
        config = json.loads((place / "adapter_config.json").read_text())
        (place / "adapter_config.json").write_text(
            json.dumps({**config, "base_model_name_or_path": world.path("model")})
        )
    what = broken.file_of(draw, place)
    return Case(f"model {name}: {what}", line(world, verb, folder, model=str(place)))


def template(world: World, draw: random.Random, folder: Path) -> Case:
    """A chat template."""
    verb, path = draw.choice(TAKEN), folder / "template.jinja"
    path.write_bytes(broken.template(draw))
    return Case(f"template {verb}", line(world, verb, folder, chat_template=str(path)))


def manifest(world: World, draw: random.Random, folder: Path) -> Case:
    """A folder in which something lies that a run left, damaged."""
    verb, out = draw.choice(TAKEN), folder / "out"
    out.mkdir()
    what = broken.manifest(draw, out, verb)
    words = line(world, verb, folder) + draw.choice(([], [], ["--overwrite"], ["--dry-run"]))
    return Case(f"manifest {verb}: {what}", words)


def results(world: World, draw: random.Random, folder: Path) -> Case:
    """The folder of a finished run with a damaged file, for a report or for the same run again."""
    made = world.folder.parent / "whole"
    names = [path.name for path in made.iterdir() if (path / "manifest.json").exists() and path.name != "demo"]
    name = draw.choice(sorted(names))
    shutil.copytree(made / name, folder / name)
    what = broken.file_of(draw, folder / name)
    if name == "attack-one" and draw.random() < 0.75:
        verb = draw.choice(("compare", "gate", "judge"))
        run = str(folder / name)
        return Case(f"results {verb}: {what}", looking(world, verb, folder, **{next(iter(ADDING[verb])): run}))
    return Case(f"results {name}: {what}", ["report", str(folder / name), f"--out={folder / 'report.html'}"])


def place(world: World, draw: random.Random, folder: Path) -> Case:
    """A place where nothing can be written, or where something else lies."""
    verb = draw.choice((*TAKEN, "report"))
    (folder / "file").write_text("mine")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nowhere" / "at" / "all")
    inside = ("file", "file/below", "loop", "loop/below", "dangling", "n" * 256)
    places = [*(str(folder / name) for name in inside), "/proc/x", "/sys/x", "/dev/null/x", "/proc/self/mem"]
    out = draw.choice([*TEXTS, *places, *places])
    extra = (
        {"reference_cache": out, "out": str(folder / "out")}
        if verb == "finetune" and draw.random() < 0.6
        else {"out": out}
    )
    if verb == "report":
        return Case("place report", ["report", str(folder), f"--out={out}"])
    return Case(f"place {verb} {', '.join(extra)}", line(world, verb, folder, **extra))


MAKERS: Mapping[str, Maker] = {
    "option": option, "attack option": attack_option, "yaml": yaml, "rows": rows, "model": model, "template": template,
    "manifest": manifest, "results": results, "place": place,
}  # fmt: skip


def wrong(code: int, said: str, canary: str) -> str:
    """What is wrong with how a command line ended; nothing where it was taken, or refused in one sentence."""
    errors = [text for text in said.splitlines() if text.startswith("tokendeep: ")]
    last = said.strip().rsplit("\n", 1)[-1] if said.strip() else ""
    faults: dict[str, Any] = {
        "a traceback": "Traceback (most recent call last)" in said,
        f"exit code {code}": code not in (0, 2),
        "no sentence": code == 2 and not (errors and last == errors[-1]),
        "no full stop": code == 2 and not last.endswith("."),
        "a bar before it": code == 2 and "%|" in said,
        "a row's text": code == 2 and canary in said,
        "too long": code == 2 and len(last) > 700,
    }
    return ", ".join(name for name, is_so in faults.items() if is_so)
