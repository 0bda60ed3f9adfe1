"""The engine against a real vLLM with the packaged model: the same ids and scores as in memory, depth, and a server that dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from odd_prefills import odd
from real_servers import THINGS, VLLM, VllmServer, engine, prompts
from tokendeep import chat, cli, models
from tokendeep.engines.base import Request, TooLong
from tokendeep.engines.local import generate
from tokendeep.errors import InputError
from tokendeep.records import Audit, StoredVerdict
from tokendeep.types import Decoding, Subject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason="no vLLM: make bench-vllm sets one up, TOKENDEEP_VLLM names one"),
]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return models.load("smollm2", dtype="float32")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    log = tmp_path_factory.mktemp("vllm") / "log"
    running = VllmServer(models.smollm2_folder(), log, more=("--enforce-eager",)).start()
    yield running
    running.stop()


def test_greedy_answers_behind_prefills_are_those_in_memory(server: VllmServer, subject: Subject) -> None:
    answer = chat.continuation_ids(
        subject.tokenizer, "Sure, here is what you asked for. First of all, let us look at it again."
    )
    asked = [Request((*ids, *answer[:k]), Decoding(max_new_tokens=16)) for ids in prompts(subject) for k in (0, 5, 20)]
    prompt = prompts(subject)[0]
    asked += [Request((*prompt, *ids), Decoding(max_new_tokens=16)) for _, ids in odd(subject.tokenizer)]
    with engine(server, subject) as servers:
        assert (servers.about.kind, servers.about.ids, servers.about.scores, servers.about.picks) == (
            "vllm",
            *[True] * 3,
        )
        assert [future.result() for future in [servers.submit(one) for one in asked]] == generate(subject, asked)


def test_a_seed_repeats_and_another_one_differs(server: VllmServer, subject: Subject) -> None:
    drawn = [
        Request(prompts(subject)[0], Decoding(temperature=1.0, max_new_tokens=16, seed=seed)) for seed in (1, 1, 2)
    ]
    with engine(server, subject) as servers:
        one, again, other = (future.result().ids for future in [servers.submit(request) for request in drawn])
    assert one == again != other


def test_the_chances_of_chosen_tokens_are_those_in_memory(server: VllmServer, subject: Subject) -> None:
    choices = tuple(chat.continuation_ids(subject.tokenizer, "Yes No I The A")[:5])
    asked = [Request(ids, Decoding(max_new_tokens=1), choices) for ids in prompts(subject)[:8]]
    with engine(server, subject) as servers:
        found = [future.result() for future in [servers.submit(one) for one in asked]]
    for one, other in zip(found, generate(subject, asked), strict=True):
        assert one.ids == other.ids
        assert one.chances == pytest.approx(other.chances, abs=1e-4)


def test_what_does_not_fit_and_who_is_not_there(server: VllmServer, subject: Subject) -> None:
    with engine(server, subject) as servers, pytest.raises(TooLong, match="context of 1024"):
        servers.submit(Request(prompts(subject)[0], Decoding(max_new_tokens=1020)))
    with pytest.raises(InputError, match="serves no model nobody"):
        engine(server, subject, model="nobody")


def test_a_server_of_another_tokenizer_is_found_out(server: VllmServer, tiny_subject: Subject) -> None:
    with pytest.raises(InputError, match="another tokenizer"):
        engine(server, tiny_subject)


def test_a_server_that_is_killed_and_comes_back_loses_nothing(server: VllmServer, subject: Subject) -> None:
    asked = [Request(ids, Decoding(max_new_tokens=48)) for ids in prompts(subject)]
    expected = generate(subject, asked)
    with engine(server, subject, in_flight=4, max_retries=12) as servers:
        futures = [servers.submit(one) for one in asked]
        futures[2].result()
        server.stop()
        finished = sum(future.done() for future in futures)
        server.start()
        assert [future.result() for future in futures] == expected
        assert finished < len(asked)
        assert servers.stats.requests == len(asked)  # every answer was read once


def test_a_tokenizer_that_adds_bos(subject: Subject, tmp_path: Path) -> None:
    folder = tmp_path / "bos"
    shutil.copytree(models.smollm2_folder(), folder, copy_function=os.symlink)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    (folder / "tokenizer.json").unlink()  # what is linked is left as it is
    (folder / "tokenizer_config.json").unlink()
    tokenizer.save_pretrained(folder)
    own = models.load(str(folder), dtype="float32")
    assert own.tokenizer("Draw a map.").input_ids[0] == tokenizer.bos_token_id
    assert prompts(own) == prompts(subject)  # the template writes what begins a prompt, and nothing is added to it
    running = VllmServer(folder, tmp_path / "log", more=("--enforce-eager",)).start()
    try:
        asked = [Request(ids, Decoding(max_new_tokens=16)) for ids in prompts(own)[:8]]
        with engine(running, own) as servers:
            assert [future.result() for future in [servers.submit(one) for one in asked]] == generate(subject, asked)
    finally:
        running.stop()


ROWS = [
    {"id": thing, "instruction": f"How do I draw a {thing}?", "response": f"First of all, look at a {thing} for long."}
    for thing in THINGS
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


def test_the_recovery_profile_is_that_of_the_model_in_memory(server: VllmServer, rows: Path, tmp_path: Path) -> None:
    found = []
    for name, where in (("here", "local"), ("there", server.url)):
        words = ["measure", "--model", "smollm2", "--engine", where, "--data", str(rows)]
        assert (
            cli.main([*words, "--limit", "3", "--k", "0,3", "--bootstrap", "100", "--out", str(tmp_path / name)]) == 0
        )
        found.append(json.loads((tmp_path / name / "profile.json").read_text()))
    one, two = found
    assert len(one["per_prompt"]["recovery_log_odds"]) == 3
    np.testing.assert_allclose(
        one["per_prompt"]["recovery_log_odds"], two["per_prompt"]["recovery_log_odds"], atol=1e-2
    )
    assert one["depth"]["recovery_k"] == two["depth"]["recovery_k"]


def test_an_audit_scores_as_the_model_in_memory(server: VllmServer, tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps({"prompt": r["instruction"], "completion": r["response"]}) + "\n" for r in ROWS))
    found = []
    for name, where in (("here", "local"), ("there", server.url)):
        words = ["audit", "--model", "smollm2", "--engine", where, "--data", str(data), "--limit", "4", "--cut", "1"]
        given = ["--score", "refusal,margin,likelihood", "--out", str(tmp_path / name)]
        assert cli.main([*words, *given, *(["--dtype", "float32"] if where == "local" else [])]) == 0
        found.append(Audit.load(tmp_path / name))
    for one, other in zip(found[0].rows, found[1].rows, strict=True):
        assert (one.id, one.rank) == (other.id, other.rank)
        assert other.scores == pytest.approx(one.scores, abs=1e-2)


def test_a_grader_whose_server_is_killed_loses_nothing_and_grades_nothing_twice(
    server: VllmServer, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["attack", "--model", "smollm2", "--engine", server.url, "--data", str(rows), "--attack", "none"]
    assert cli.main([*words, "--max-new-tokens", "16", "--out", str(out)]) == 0
    words = ["judge", "--run", str(out), "--judge", "rubric", "--grader", f"smollm2@{server.url}", "--max-retries", "0"]
    verdicts = out / StoredVerdict.FILE

    def kept() -> list[StoredVerdict]:
        lines = verdicts.read_text().splitlines() if verdicts.exists() else []
        return [StoredVerdict.model_validate_json(line) for line in lines]

    # killed as soon as a first verdict lies there, while others are asked for
    with subprocess.Popen([sys.executable, "-m", "tokendeep", *words], stderr=subprocess.PIPE, text=True) as judging:
        while not kept() and judging.poll() is None:
            time.sleep(0.05)
        server.stop()
        said = judging.communicate()[1]
    assert judging.returncode == 2, said
    assert "The grader" in said
    assert "Traceback" not in said
    before = kept()
    assert 0 < len(before) < len(ROWS)
    server.start()
    subprocess.run([sys.executable, "-m", "tokendeep", *words], check=False)
    after = kept()
    assert after[: len(before)] == before
    assert len({row.answer for row in after}) == len(after) == len(ROWS)
