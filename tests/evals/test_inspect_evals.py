"""Tasks of inspect-evals on our provider: their prompts reach the model, and their scorers read its answers.

Their rows lie on a hub; here they are given. Skipped where the package is not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import MemoryDataset

from attacking import Answers, answers  # noqa: F401  (a fixture)

QUESTION = "Tom has two loaves and bakes three more. How many has he?"
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": QUESTION, "answer": "2 + 3 = 5\n#### 5"},
    "mmlu": {"question": QUESTION, "choices": ["3", "4", "5", "6"], "answer": 2, "subject": "arithmetic"},
    "ifeval": {
        "key": 1,
        "prompt": "Answer without a comma.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
}
TASKS = {"gsm8k": ("gsm8k", {"fewshot": 2}), "mmlu": ("mmlu_0_shot", {}), "ifeval": ("ifeval", {})}
RIGHT = {"gsm8k": "2 + 3 = 5\nANSWER: 5", "mmlu": "ANSWER: C", "ifeval": "Bread and salt."}
WRONG = {"gsm8k": "ANSWER: 6", "mmlu": "ANSWER: A", "ifeval": "Bread, salt."}


@pytest.fixture
def task(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A task of inspect-evals with one row of its form."""

    def made(name: str) -> Any:
        pytest.importorskip("inspect_evals")
        if name == "ifeval":
            scorer = pytest.importorskip("instruction_following_eval.evaluation")
            # it would bring nltk's splitter of sentences, which the one rule that is asked here does not need
            monkeypatch.setattr(scorer, "ensure_nltk_resource", lambda: None)
        module = importlib.import_module(f"inspect_evals.{name}.{name}")

        def rows(*given: Any, sample_fields: Callable[[dict[str, Any]], Any], **more: Any) -> MemoryDataset:
            return MemoryDataset([sample_fields(ROWS[name])])

        monkeypatch.setattr(module, "hf_dataset", rows)
        kind, settings = TASKS[name]
        return getattr(module, kind)(**settings)

    return made


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("right", [True, False])
def test_a_task_is_asked_and_scored(
    name: str, right: bool, task: Callable[[str], Any], answers: Answers, tiny_folder: Path, tmp_path: Path
) -> None:
    made = task(name)
    answers.reply = lambda request: (RIGHT if right else WRONG)[name]
    settings: dict[str, Any] = {"display": "none", "log_realtime": False, "log_dir": str(tmp_path)}
    [log] = inspect_eval(made, model=f"tokendeep/{tiny_folder}", max_tokens=64, **settings)
    assert log.status == "success", log.error
    [request] = answers.requests
    asked = answers.tokenizer.decode(request.ids)
    assert ROWS[name].get("question", ROWS[name].get("prompt")) in asked
    assert log.results is not None
    metrics = {m: value.value for score in log.results.scores for m, value in score.metrics.items()}
    best = max(value for m, value in metrics.items() if "stderr" not in m)
    assert best == float(right), metrics
