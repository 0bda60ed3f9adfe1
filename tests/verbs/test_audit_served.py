"""The verb `audit` of a model behind a server: the scores of the model in memory, nothing asked twice, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from token_server import TokenServer
from tokendeep import cli
from tokendeep.audits import SCORES
from tokendeep.engines.server import branches, client
from tokendeep.errors import InputError
from tokendeep.records import Audit
from tokendeep.types import Subject
from tokendeep.verbs import audit
from tokendeep.verbs.audit import AuditOptions

SERVED = [name for name in SCORES if SCORES[name].served]
ROWS = [
    {
        "id": "one",
        "prompt": "How do I bake bread?",
        "completion": "Mix the flour with water, add salt and let it rest.",
    },
    {"id": "two", "prompt": "Name a capital.", "completion": "Paris."},
    {"id": "three", "prompt": "Open a window.", "completion": "I cannot help with that, sorry."},
    {
        "id": "four",
        "messages": [
            {"role": "user", "content": "Say one."},
            {"role": "assistant", "content": "One, and then two."},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": "Three."},
        ],
    },
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 0.01)


def options(tmp_path: Path, model: Path, **settings: Any) -> AuditOptions:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given = {"out": str(tmp_path / "out"), "score": SERVED, "cut": "1", "train_on": "all_turns", **settings}
    return AuditOptions(model=str(model), data=str(tmp_path / "rows.jsonl"), **given)


def run(options: AuditOptions) -> Audit:
    return Audit.load(audit.run(audit.plan(options)))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_the_scores_are_those_of_the_model_in_memory(
    kind: str, tmp_path: Path, tiny_folder: Path, tiny_subject: Subject
) -> None:
    here = run(options(tmp_path, tiny_folder, out=str(tmp_path / "here"), dtype="float32"))
    with TokenServer(tiny_subject, kind=kind) as server:
        there = run(options(tmp_path, tiny_folder, engine=server.url))
        said = (tmp_path / "out/manifest.json").read_text()
    assert SERVED == ["refusal", "margin", "likelihood"]
    for one, other in zip(here.rows, there.rows, strict=True):
        assert (one.id, one.rank, one.flagged) == (other.id, other.rank, other.flagged)
        assert other.scores == pytest.approx(one.scores, abs=1e-3)
    assert [score.about for score in here.scores] == [score.about for score in there.scores]
    manifest = json.loads(said)
    assert (manifest["config"]["engine"], manifest["engine"]["kind"]) == ("server", kind)
    assert server.url not in said


def test_no_weights_are_read(tmp_path: Path, tiny_folder: Path, tiny_subject: Subject) -> None:
    for file in tiny_folder.glob("*.safetensors"):
        file.unlink()
    with TokenServer(tiny_subject) as server:
        assert run(options(tmp_path, tiny_folder, engine=server.url)).flagged == 1


def test_rows_that_were_scored_before_a_server_failed_are_not_asked_again(
    tmp_path: Path, tiny_folder: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branches, "AHEAD", 0)
    settings = options(tmp_path, tiny_folder, score=["margin"], engine_model="tiny", train_on="last_turn")
    with TokenServer(tiny_subject) as server:
        settings = replace(settings, engine=server.url)
        run(replace(settings, limit=1, out=str(tmp_path / "one"), cut="0"))
        each = len(server.asked)  # handshake and one row
        server.asked.clear()
        whole = server.change
        server.change = lambda answer: whole(answer) if len(server.asked) < each + 2 else {"choices": []}
        with pytest.raises(InputError, match="is not one of a server of its kind"):
            run(settings)
        server.change = whole
        (kept,) = (tmp_path / "out/parts").glob("*.jsonl")
        finished = len(kept.read_text().splitlines())
        first = server.prompts()[each - 1]  # of the row that was finished
        server.asked.clear()
        made = run(settings)
        again = server.prompts()
    assert finished == 1
    assert first not in again
    assert made.rows[0].rank == 1
    assert len(made.rows) == len(ROWS)


@pytest.mark.parametrize("name", [name for name in SCORES if not SCORES[name].served])
def test_scores_that_need_the_weights_are_refused_with_those_that_do_not(
    name: str, tmp_path: Path, tiny_folder: Path
) -> None:
    with pytest.raises(InputError, match=f"score {name} takes states or gradients.*refusal, margin, likelihood"):
        audit.plan(options(tmp_path, tiny_folder, score=["refusal", name], engine="http://127.0.0.1:9/v1"))


def test_settings_of_weights_and_a_model_in_memory_are_refused(
    tmp_path: Path, tiny_folder: Path, tiny_subject: Subject
) -> None:
    served = options(tmp_path, tiny_folder, engine="http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="--dtype is for weights that are loaded here"):
        audit.plan(replace(served, dtype="float32"))
    with pytest.raises(InputError, match="in memory already"):
        audit.plan(served, tiny_subject)
    with pytest.raises(InputError, match="--base is given, but none of the scores"):
        audit.plan(replace(served, base=str(tiny_folder)))
    with pytest.raises(InputError, match="--engine-model is for a server"):
        audit.plan(options(tmp_path, tiny_folder, engine_model="tiny"))


def test_a_server_that_tells_no_log_probabilities_ends_in_a_sentence(
    tmp_path: Path, tiny_folder: Path, tiny_subject: Subject, capsys: Any
) -> None:
    given = options(tmp_path, tiny_folder)
    with TokenServer(tiny_subject, kind="llamacpp") as server:
        words = ["audit", "--model", given.model, "--data", given.data, "--engine", server.url, "--out", given.out]
        assert cli.main(words) == 2
    assert "llamacpp does not tell the log-probabilities" in capsys.readouterr().err
