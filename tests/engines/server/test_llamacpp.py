"""The engine against llama.cpp's server with the packaged model: the same ids as in memory, what it cannot do, and a death."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from odd_prefills import odd
from real_servers import LLAMACPP, LlamaCppServer, engine, prompts
from tokendeep import chat, cli, models
from tokendeep.engines.base import Request
from tokendeep.engines.local import generate
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Subject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LLAMACPP, reason="TOKENDEEP_LLAMACPP names no Python with xllamacpp and gguf"),
]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return models.load("smollm2", dtype="float32")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCppServer]:
    folder = tmp_path_factory.mktemp("llamacpp")
    running = LlamaCppServer(folder, folder / "log")
    running.start()
    yield running
    running.stop()


def test_greedy_answers_behind_prefills_are_those_in_memory(server: LlamaCppServer, subject: Subject) -> None:
    answer = chat.continuation_ids(
        subject.tokenizer, "Sure, here is what you asked for. First of all, let us look at it again."
    )
    asked = [Request((*ids, *answer[:k]), Decoding(max_new_tokens=16)) for ids in prompts(subject) for k in (0, 5, 20)]
    prompt = prompts(subject)[0]
    asked += [Request((*prompt, *ids), Decoding(max_new_tokens=16)) for _, ids in odd(subject.tokenizer)]
    with engine(server, subject) as servers:
        assert (servers.about.kind, servers.about.scores, servers.about.picks) == ("llamacpp", False, False)
        there = [future.result() for future in [servers.submit(one) for one in asked]]
    assert there == generate(subject, asked)


def test_a_seed_repeats_one_by_one_and_another_one_differs(server: LlamaCppServer, subject: Subject) -> None:
    """Together they need not: what is computed beside other requests is rounded in another way (docs/results/servers.md)."""
    drawn = [
        Request(prompts(subject)[0], Decoding(temperature=1.0, max_new_tokens=16, seed=seed)) for seed in (1, 1, 2)
    ]
    with engine(server, subject, in_flight=1) as servers:
        one, again, other = (servers.submit(request).result().ids for request in drawn)
    assert one == again != other


def test_a_server_of_another_tokenizer_is_found_out(server: LlamaCppServer, tiny_subject: Subject) -> None:
    with pytest.raises(InputError, match="another tokenizer"):
        engine(server, tiny_subject)


def test_a_profile_is_refused_in_a_sentence(
    server: LlamaCppServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"id": "1", "instruction": "Draw a map.", "response": "First of all, look at it."}))
    words = ["measure", "--model", "smollm2", "--engine", server.url, "--data", str(rows)]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "log-probabilities" in said
    assert "Traceback" not in said


def test_a_server_that_is_killed_and_comes_back_loses_nothing(server: LlamaCppServer, subject: Subject) -> None:
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
        assert servers.stats.requests == len(asked)
