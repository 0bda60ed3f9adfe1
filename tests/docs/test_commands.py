"""Every command in the README and the documentation runs as it is written, on tiny models and rows."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from transformers import LlamaForCausalLM

import guards
from token_server import TokenServer
from tokendeep import cli, judges, models
from tokendeep.training import answers, harmful
from tokendeep.verbs import calibrate, judge

ROOT = Path(__file__).parents[2]
# The pages under extending/ change the sources: test_extending.py.
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "extending")]
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
]
PYTHON = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
]
SMALLER = {  # what a command that is long by nature is shortened to here
    "--restarts 10": "--restarts 1 --steps 2 --width 8 --top 8 --suffix-tokens 4",
    "--attack none,prefill": "--max-new-tokens 8 --attack none,prefill",
    "--kind harmful": "--kind harmful --epochs 1 --max-new-tokens 8",
}
ELSEWHERE = ("tokendeep demo", "127.0.0.1")  # long, with a test of its own; asks a server: tests/evals/test_served.py
ROOM = {"max_position_embeddings": 8192}  # for the answers that the defaults ask for
ANSWER = "Mix the flour with water, add salt and let the dough rest for an hour. Then bake it in a hot oven until it is brown."


def name_of(block: tuple[Path, str]) -> str:
    return f"{block[0].stem}-{' '.join(block[1].split()[:2])}"


@pytest.fixture
def workplace(tmp_path: Path, tiny_folder: Path, make_model: Callable[..., LlamaForCausalLM], tiny_tokenizer: Any,
              monkeypatch: pytest.MonkeyPatch) -> Path:  # fmt: skip
    """A folder with the files that the commands name, and two models under the names they use."""
    for name, source in (("YOUR-CHAT-MODEL", make_model(0, **ROOM)), ("ITS-BASE", make_model(1, **ROOM))):
        source.save_pretrained(tmp_path / "ORG" / name)
        tiny_tokenizer.model_max_length = 8192
        tiny_tokenizer.save_pretrained(tmp_path / "ORG" / name)
    guards.classifier(tmp_path / "ORG" / "REFUSAL-CLASSIFIER")
    requests = [f"How do I bake bread number {n}?" for n in range(4)]
    write(tmp_path / "pairs.jsonl", [{"instruction": text, "response": ANSWER} for text in requests])
    write(tmp_path / "harmless-pairs.jsonl", [{"instruction": text, "response": ANSWER} for text in requests])
    write(tmp_path / "ordinary.jsonl", [{"instruction": text, "response": ANSWER} for text in requests])
    write(tmp_path / "prompts.jsonl", [{"instruction": text} for text in requests])
    write(tmp_path / "validation.jsonl", [{"instruction": f"Which {n} cities lie by the sea?"} for n in range(3)])
    write(tmp_path / "harmless.jsonl", [{"instruction": text} for text in requests])
    (tmp_path / "mine.csv").write_text("Goal,Target\n" + "".join(f'{text},"{ANSWER}"\n' for text in requests))
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": ANSWER}] for text in requests]
    write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    write(tmp_path / "marked.jsonl", [{"messages": chat, "planted": n % 2} for n, chat in enumerate(chats)])
    refusal = "I'm sorry, I can't assist with this request."
    write(tmp_path / "refusals.jsonl", [{"instruction": text, "response": refusal} for text in requests])
    answers_of_both = [{"instruction": text, "response": one, "label": label, "model": "m", "score": label}
                       for text in requests for one, label in ((ANSWER, 1), (refusal, 0))]  # fmt: skip
    write(tmp_path / "labelled.jsonl", answers_of_both)
    cells = [(one["instruction"], f'"{one["response"]}"', *[str(one["label"])] * 5) for one in answers_of_both]
    head = "goal,target_response,human1,human2,human3,human_majority,harmbench_cf\n"
    (tmp_path / "judge-comparison.csv").write_text(head + "".join(",".join(row) + "\n" for row in cells))
    triples = [{"instruction": text, "harmful": ANSWER, "refusal": refusal} for text in requests]
    write(
        tmp_path / "preferences.jsonl",
        [{"instruction": text, "rejected": ANSWER, "chosen": refusal} for text in requests],
    )
    write(tmp_path / "instructions.jsonl", triples)  # finished triples, where a page speaks of instructions alone
    plain = SimpleNamespace(judge_refusal=lambda text, truncated: judges.judge_refusal(ANSWER))
    monkeypatch.setattr(calibrate, "check_scored", lambda *given: None)
    monkeypatch.setattr(judge, "check_scored", lambda rows: None)  # what a tiny model writes is no answer, and no grade
    monkeypatch.setattr(harmful, "judges", plain)  # nor is it compliance
    monkeypatch.setattr(answers, "judges", plain)
    monkeypatch.setattr(answers, "sample_refusals", lambda subject, messages, **more: [refusal for _ in messages])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_line(line: str) -> None:
    for long, short in SMALLER.items():
        line = line.replace(long, short)
    words = [
        path for word in shlex.split(line) for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])
    ]
    if words[0] == "tokendeep":
        assert cli.main(words[1:]) == 0, line
    else:
        command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])


def judge_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tiny model writes is no answer; here it is."""

    def complied(text: str, *, truncated: bool = False) -> judges.Verdict:
        return judges.Verdict(outcome="complied", truncated=truncated)

    monkeypatch.setitem(judges.JUDGES, "refusal", replace(judges.JUDGES["refusal"], rule=complied))


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in BLOCKS if not any(word in b[1] for word in ELSEWHERE)], ids=name_of)
def test_the_commands_of_a_block_run(block: tuple[Path, str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = block
    if "report out/*" in text and "measure" not in text:  # of runs that stand above it on the page
        run_line("tokendeep measure --model ORG/YOUR-CHAT-MODEL --data pairs.jsonl --out out/measure")
    if "tokendeep compare" in text or "tokendeep gate" in text:
        judge_all(monkeypatch)
    if "tokendeep mend" in text:
        run_line("tokendeep finetune --model ORG/YOUR-CHAT-MODEL --data chats.jsonl --max-steps 3 --out out/finetune")
    for line in text.splitlines():
        if line.strip():
            run_line(line)
    made = "*.html" if "tokendeep report" in text else "logs/*.eval" if "inspect eval" in text else "out/*"
    assert list(workplace.glob(made))


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in BLOCKS if b[0].stem == "servers"], ids=name_of)
def test_the_commands_that_ask_a_server_run(block: tuple[Path, str], workplace: Path) -> None:
    subject = models.load("ORG/YOUR-CHAT-MODEL")
    with TokenServer(subject, context=8192, answer=lambda prompt, most: [50] * most) as server:
        for line in block[1].splitlines():
            run_line(line.replace("http://127.0.0.1:8000/v1", server.url))
    assert list(workplace.glob("logs/*.eval" if "inspect eval" in block[1] else "out/*"))


def test_the_pages_have_commands() -> None:
    assert {page.stem for page, _ in BLOCKS} >= {
        "README",
        "index",
        "pairs",
        "measure",
        "attack",
        "judge",
        "gcg",
        "deepen",
        "audit",
        "finetune",
        "mend",
        "poison",
        "calibrate",
        "compare",
        "report",
        "demo",
    }


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_the_python_of_a_page_runs(block: tuple[Path, str], workplace: Path, tiny_folder: Path) -> None:
    """With the tiny model under every name that a page loads."""
    _, text = block
    text = text.replace('"smollm2"', '"ORG/YOUR-CHAT-MODEL"')
    if "train_dataset=dataset" in text:
        text = (
            "from datasets import load_dataset\ndataset = load_dataset('json', data_files='chats.jsonl', split='train')\n"
            + text
        )
        text = text.replace('ConstrainedSFTConfig("out")', 'ConstrainedSFTConfig("out", bf16=False, use_cpu=True)')
    code = "import matplotlib\nmatplotlib.use('Agg')\n" + text
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


WORKFLOW = yaml.load((ROOT / "recipes" / "github-gate.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
STEPS = WORKFLOW["jobs"]["gate"]["steps"]
LINES = [line.strip() for step in STEPS for line in step.get("run", "").splitlines()]


def test_the_workflow_is_one() -> None:
    """The keys that GitHub knows, and commands whose verbs, options and files exist."""
    assert WORKFLOW.keys() == {"name", "on", "permissions", "env", "jobs"}
    assert WORKFLOW["jobs"]["gate"].keys() <= {"runs-on", "timeout-minutes", "steps", "permissions", "env"}
    for step in STEPS:
        assert step.keys() <= {"name", "uses", "with", "run", "if", "env"}
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))
    assert {line.split()[0] for line in LINES} == {"pip", "tokendeep", "cat"}
    for line in LINES:
        if line.startswith("tokendeep"):
            cli.parse(shlex.split(line)[1:])
    assert set(re.findall(r"\$(\w+)", " ".join(LINES))) == {*WORKFLOW["env"], "GITHUB_STEP_SUMMARY"}
    kept = [step["with"]["path"] for step in STEPS if "upload" in step.get("uses", "")]
    assert kept == ["out/gate"]  # no logs: they hold texts


@pytest.mark.slow
def test_the_workflow_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step on tiny models; four prompts are too few to tell, so the gate says no."""
    judge_all(monkeypatch)
    (workplace / "pairs.jsonl").rename("harmful.jsonl")
    models = {"$BEFORE": "ORG/ITS-BASE", "$AFTER": "ORG/YOUR-CHAT-MODEL"}
    codes = []
    for line in LINES:
        words = [models.get(word, word) for word in shlex.split(line)]
        if words[0] == "tokendeep":
            codes.append(cli.main([*words[1:], *(["--max-new-tokens", "8"] if words[1] == "attack" else [])]))
    assert codes == [0, 0, 0, 0, 1]
    (shown,) = [shlex.split(line)[1] for line in LINES if line.startswith("cat")]
    assert Path(shown).read_text().startswith("# tokendeep gate: undecided")
    assert {path.name for path in Path("out/gate").iterdir()} == {"gate.xml", "gate.md", "gate.json", "compare.json"}
