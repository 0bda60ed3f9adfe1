"""How large a model, on what: the tables of docs/sizes.md, and the measured peaks that they are checked against.

python benchmarks/sizes.py                           the page's tables
python benchmarks/sizes.py measure NAME [FOLDER]     one case below, into benchmarks/sizes.json; FOLDER holds the 0.5B
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import memory
from memory import Shape, Training, Work

FOUND = Path(__file__).with_suffix(".json")
SMOLLM2 = Shape(30, 576, 9, 3, 64, 1536, 49152, tied=True)
QWEN = Shape(24, 896, 14, 2, 64, 4864, 151936, biased=True)  # its GGUF file has an output head of its own
TINY = Shape(2, 32, 4, 2, 8, 64, 300, tied=True)
SHAPES = {"135M": SMOLLM2, "0.5B": QWEN, "tiny": TINY}
LARGE = {  # sizes as the config.json of these models gives them
    "1B": Shape(16, 2048, 32, 8, 64, 8192, 128256, tied=True),  # Llama-3.2-1B
    "3B": Shape(28, 3072, 24, 8, 128, 8192, 128256, tied=True),  # Llama-3.2-3B
    "8B": Shape(32, 4096, 32, 8, 128, 14336, 128256),  # Llama-3.1-8B
    "13B": Shape(40, 5120, 40, 40, 128, 13824, 32000),  # Llama-2-13b
    "32B": Shape(64, 5120, 40, 8, 128, 27648, 152064, biased=True),  # Qwen2.5-32B
    "70B": Shape(80, 8192, 64, 8, 128, 28672, 128256),  # Llama-3.1-70B
}
CARDS = {24: (125, 0.6), 48: (362, 0.864), 80: (312, 2.04), 141: (989, 4.8)}  # GB: the vendor's TFLOP/s and TB/s
ALONE = "… the first process reads alone"  # all weights
USABLE = 0.9  # of a card, beside the context of the GPU and gaps between allocations
BUSY = 0.4  # of the peak of products in training and scoring; assumed
READING = 0.5  # of the peak of memory in decoding; assumed
COUNTS = (1, 2, 4, 8)
OPENINGS = 36  # tokens of the openings of refusals that `measure` reads behind each k of a pair
SCORED, WRITTEN, TRAINED = Work(16, 200, 100), Work(16, 100, 512), Work(4, 512, 256)
FULL, LORA = Training(), Training(rank=16, item=2)


# --- measuring: one verb in a process of its own ---------------------------------------------------------


def case_of(name: str) -> dict[str, Any]:
    """What a measurement is of: VERB[-full|-loraRANK][-recompute][-anchored]-MODEL-DTYPE-ROWS."""
    verb, *kinds, model, dtype, rows = name.split("-")
    rank = next((int(kind.removeprefix("lora")) for kind in kinds if kind.startswith("lora")), 0)
    return {"verb": verb, "kinds": kinds, "model": model, "dtype": dtype, "rows": int(rows), "lora": rank}


def tiny_folder(out: Path) -> Path:
    """A model of a few thousand weights, whose run shows what the libraries alone take."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import tokendeep

    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate([*control, *letters])}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(control)
    template = Path(tokendeep.__file__).parent / "assets" / "templates" / "chatml.jinja"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", chat_template=template.read_text()
    )
    config = LlamaConfig(
        vocab_size=TINY.vocabulary, hidden_size=TINY.hidden, intermediate_size=TINY.inner, num_hidden_layers=TINY.layers,
        num_attention_heads=TINY.heads, num_key_value_heads=TINY.kv_heads, max_position_embeddings=8192,
        tie_word_embeddings=True, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(out / "tiny")
    tokenizer.save_pretrained(out / "tiny")
    return out / "tiny"


def status(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is held now, VmHWM the most since it was reset."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def run(case: dict[str, Any], model: str, out: Path) -> dict[str, Any]:
    """Run the verb of a case here, and give peak and seconds behind the loading of its model, with the work that was done."""
    from tokendeep import chat, cli, models
    from tokendeep.training import fit

    load, arguments = models.load, fit._arguments
    taken: list[Any] = []
    ready: list[float] = []

    def loaded(*given: Any, **more: Any) -> Any:
        subject = load(*given, **more)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        taken.append(subject.tokenizer)
        ready.append(time.perf_counter())
        return subject

    def as_on_a_gpu(*given: Any) -> Any:
        made = arguments(*given)
        made.activation_checkpointing = made.gradient_checkpointing = "recompute" in case["kinds"]
        return made

    models.load, fit._arguments = loaded, as_on_a_gpu
    data, options = rows(case, out)
    code = cli.main([case["verb"], "--model", model, "--data", str(data), "--out", str(out / "run"), *options])
    assert code == 0, code
    tokenizer = taken[0]
    pairs = [json.loads(line) for line in data.read_text().splitlines()]
    asked = [len(chat.prompt_ids(tokenizer, [{"role": "user", "content": p["instruction"]}])) for p in pairs]
    answered = [len(tokenizer(p["response"], add_special_tokens=False)["input_ids"]) + 1 for p in pairs]
    behind = time.perf_counter() - ready[-1]
    return {"peak": status("VmHWM"), "prompt": max(asked), "answer": min(max(answered), 100), "seconds": behind}


def rows(case: dict[str, Any], out: Path) -> tuple[Path, list[str]]:
    """A file of pairs, and the options of the verb."""
    text = "Mix the flour with water, add salt and let the dough rest for an hour, then bake it until it is brown. " * 2
    count = case["rows"] * (1 if case["verb"] in ("measure", "attack") else 2)
    if case["model"] == "tiny" or case["verb"] in ("finetune", "deepen"):
        text = text[:99]
    path = out / "rows.jsonl"
    asked = [f"How do I bake bread {n}?" for n in range(count)]
    write(path, [{"instruction": one, "response": text} for one in asked])
    kind, size = case["dtype"], str(case["rows"])
    if case["verb"] in ("measure", "attack"):
        more = ["--attack", "none", "--max-new-tokens", "64"] if case["verb"] == "attack" else []
        return path, ["--dtype", kind, "--batch-size", size, *more]
    options = ["--precision", kind, "--micro-batch", size, "--max-steps", "2", "--max-length", "256"]
    options += ["--lora", str(case["lora"])] if case["lora"] else []
    if case["verb"] == "finetune":
        objective = "anchored" if "anchored" in case["kinds"] else "constrained"
        return path, [*options, "--objective", objective, "--batch-size", str(count), "--warmup-steps", "0"]
    write(out / "triples.jsonl", [{"instruction": one, "harmful": text, "refusal": "I cannot."} for one in asked])
    return out / "triples.jsonl", [*options, "--utility", str(path), "--safety-rows", size, "--utility-rows", size]


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(name: str) -> None:
    """Run one case here and add what was found to the file."""
    case = case_of(name)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        places = {"tiny": lambda: str(tiny_folder(out)), "135M": lambda: "smollm2", "0.5B": lambda: sys.argv[3]}
        model = places[case["model"]]()
        found = run(case, model, out)
        del found["seconds"]  # of the verb with the libraries that it loads; times.py looks at speed
    known = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    FOUND.write_text(json.dumps({**known, name: found}, indent=1) + "\n")
    print(f"{name}: {found['peak'] / 1e9:.3f} GB; computed {computed(name, found) / 1e9:.3f}")


def computed(name: str, found: dict[str, int]) -> int:
    """What the model of memory says of a measured case."""
    case = case_of(name)
    shape, item = SHAPES[case["model"]], 2 if case["dtype"] == "bfloat16" else 4
    work = Work(case["rows"], min(256, found["prompt"] + found["answer"]), found["answer"])
    if case["verb"] == "measure":
        return memory.measuring(shape, item, work)
    if case["verb"] == "attack":
        return memory.attacking(shape, item, Work(case["rows"], found["prompt"], 64))
    how = Training(
        case["lora"], 4, half=item == 2, recompute="recompute" in case["kinds"], together=False,
        anchored="anchored" in case["kinds"],
    )  # fmt: skip
    return memory.training(shape, how, work)


# --- the tables of the page --------------------------------------------------------------------------------


def whole(shape: Shape, cards: int) -> int:
    """Bytes on each card for training all weights: every process loads the whole model before it is cut into shards."""
    return max(sharded(shape, cards), 4 * shape.parameters)


def sharded(shape: Shape, cards: int) -> int:
    """The same where the first process alone reads the model, into the machine's memory."""
    return memory.training(shape, FULL, TRAINED, cards)


def spread(peak: int, shape: Shape, cards: int) -> int:
    """Bytes on each card where the layers lie on several (--device-map auto): what is not weights is counted on each."""
    weights = 2 * shape.parameters
    return weights // cards + peak - weights


def needs(shape: Shape) -> dict[str, Callable[[int], int]]:
    """What each verb holds on each of so many cards, in bytes."""

    def over(peak: int) -> Callable[[int], int]:
        return lambda cards: spread(peak, shape, cards)

    return {
        "measure": over(memory.measuring(shape, 2, SCORED)),
        "measure, base beside it": lambda cards: spread(memory.measuring(shape, 2, SCORED, base=True), shape, cards) - (
            2 * shape.parameters - 2 * shape.parameters // cards
        ),
        "attack": over(memory.attacking(shape, 2, WRITTEN)),
        "finetune, deepen: LoRA": over(memory.training(shape, LORA, TRAINED)),
        "finetune, deepen: all weights": lambda cards: whole(shape, cards),
        ALONE: lambda cards: sharded(shape, cards),
    }  # fmt: skip


def fitting(shape: Shape, verb: str, size: int) -> str:
    """The fewest cards of a size that hold it."""
    found = (cards for cards in COUNTS if needs(shape)[verb](cards) <= USABLE * size * 1e9)
    return str(next(found, "—"))


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def memory_table() -> str:
    names = [name for name in needs(LARGE["1B"]) if name != ALONE]
    lines = [[f"{name} (one card)", *(gb(needs(shape)[name](1)) for shape in LARGE.values())] for name in names]
    ways = {"all weights": whole, "the first process reads alone": sharded}
    for name, way in ways.items():
        lines += [[f"{name}, each of {n} cards", *(gb(way(shape, n)) for shape in LARGE.values())] for n in COUNTS[1:]]
    return table(["GB, computed", *LARGE], lines)


def cards_table() -> str:
    lines = [[name, f"{size} GB", *(fitting(shape, name, size) for shape in LARGE.values())]
             for name in needs(LARGE["1B"]) for size in CARDS]  # fmt: skip
    return table(["cards needed, computed", "card", *LARGE], lines)


def learning(shape: Shape, how: Training, tokens: int, supervised: int) -> float:
    """Operations of products in training on so many tokens, so many of them supervised; checked by times.py.

    Forwards two for each weight and token, backwards as many for the states and, of what is trained, for the weights;
    the chunks of the head are always computed twice.
    """
    layers = (4 if how.rank else 6) + 2 * how.recompute
    adapter = 6 + 2 * how.recompute if how.rank else 0
    decoder = layers * shape.layers * shape.linear + adapter * (shape.adapter(how.rank) if how.rank else 0)
    return tokens * decoder + supervised * (6 if how.rank else 8) * shape.table


def scoring(shape: Shape, pairs: int, prompt: int, deepest: int = 40, ks: int = 9) -> float:
    """Operations of products in measuring recovery and margin of so many pairs, without a base; checked by times.py.

    Behind each k stand the openings of refusals, of which the last tokens are looked at and not read.
    """
    tokens, positions = prompt + deepest + OPENINGS * ks, (1 + OPENINGS) * ks
    return 2.0 * pairs * (tokens * shape.layers * shape.linear + positions * shape.table)


def decoder_weights(shape: Shape) -> int:
    return shape.layers * shape.linear


def step_bytes(shape: Shape, rows: int, length: float, item: int) -> float:
    """Bytes that decoding one token of each row reads: all weights but an embedding, and the keys of rows so long."""
    table = 0 if shape.tied else shape.table
    return (shape.parameters - table) * item + rows * length * shape.cached(item)


def hours(shape: Shape) -> dict[str, Callable[[float, float], float]]:
    """Hours on one card of so many FLOP/s and bytes/s, by what is done."""
    read, computed = step_bytes(shape, 16, 350, 2), 32 * (decoder_weights(shape) + shape.table)  # a step of 16 rows

    def products(operations: float) -> Callable[[float, float], float]:
        return lambda flops, _: operations / (BUSY * flops) / 3600

    return {
        "measure 500 pairs": products(scoring(shape, 500, 100)),
        "attack, 1,000 answers": lambda flops, reads: (
            1000 / 16 * 512 * max(read / (READING * reads), computed / (BUSY * flops)) / 3600
        ),
        "LoRA, 1,000,000 tokens": products(learning(shape, LORA, 10**6, 5 * 10**5)),
        "all weights, 1,000,000 tokens": products(learning(shape, FULL, 10**6, 5 * 10**5)),
    }


def time_table() -> str:
    lines = []
    for name in hours(LARGE["1B"]):
        for size, (flops, reads) in CARDS.items():
            found = [60 * hours(shape)[name](flops * 1e12, reads * 1e12) for shape in LARGE.values()]
            lines.append([name, f"{size} GB", *(f"{minutes:.1f}" for minutes in found)])
    return table(["minutes, computed", "card", *LARGE], lines)


def checked_table() -> str:
    """Measured peaks, less what the same verb takes with a model of no size, beside the computed ones."""
    found = json.loads(FOUND.read_text())
    lines = []
    for name, case in found.items():
        if "-tiny-" not in name:
            libraries = found[f"{case_of(name)['verb']}-full-tiny-float32-8"]["peak"]
            measured, guess = case["peak"] - libraries, computed(name, case)
            lines.append([f"`{name}`", gb(measured, 2), gb(guess, 2), f"{guess / measured:.2f}"])
    return table(["verb, model, numbers, rows", "measured, GB", "computed, GB", "ratio"], lines)


def gb(count: int, digits: int = 0) -> str:
    return f"{count / 1e9:.{digits}f}"


TABLES = {"memory": memory_table, "cards": cards_table, "time": time_table, "checked": checked_table}

if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2])
    else:
        print("\n\n".join(make() for make in TABLES.values()))
