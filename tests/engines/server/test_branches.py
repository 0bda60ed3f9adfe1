"""Continuations scored by servers: the same values as in memory, and how few are asked in which order."""

from __future__ import annotations

import pytest

from token_server import TokenServer
from tokendeep.compute import trees
from tokendeep.engines.base import Request
from tokendeep.engines.local import generate
from tokendeep.engines.server import branches
from tokendeep.engines.server.engine import ServerEngine
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Subject

ROW = [5, 6, 7, 8, 9, 10, 11, 12]
BRANCHES = [
    (3, (8, 9)), (3, (20, 21)), (3, (20, 22)), (3, (8, 30)), (5, (10, 11)), (5, (20, 21)), (6, (11, 12)), (6, (20, 21)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "picks"), [("vllm", True), ("vllm", False), ("sglang", False)])
def test_the_values_are_those_in_memory(tiny_subject: Subject, kind: str, picks: bool) -> None:
    jobs = [(ROW, BRANCHES), (ROW[:4], BRANCHES[:4])] * 4  # more rows than are asked ahead
    server = TokenServer(tiny_subject, kind=kind)
    server.picks = picks
    with server, ServerEngine(server.url, tiny_subject.tokenizer, known=server.known) as engine:
        assert (engine.about.scores, engine.about.picks) == (True, picks)
        found = list(branches.branch_logps(engine, jobs))
    for (ids, some), values in zip(jobs, found, strict=True):
        assert values == pytest.approx(trees.branch_logps(tiny_subject, ids, some).tolist(), abs=1e-4)


def test_what_does_not_fit_is_said_before_it_is_asked(tiny_subject: Subject) -> None:
    with (
        TokenServer(tiny_subject, context=128) as server,
        ServerEngine(server.url, tiny_subject.tokenizer, known=server.known) as engine,
    ):
        for ask in (lambda: engine.score_next([5] * 128, [6]), lambda: engine.score([5] * 128, 3)):
            with pytest.raises(InputError, match="context of 128"):
                ask()


def test_the_chances_of_chosen_tokens_are_those_in_memory(tiny_subject: Subject) -> None:
    asked = [
        Request((5, 6, last), Decoding(max_new_tokens=most), choices=(7, 8, 30)) for last in (7, 40) for most in (1, 3)
    ]
    with (
        TokenServer(tiny_subject) as server,
        ServerEngine(server.url, tiny_subject.tokenizer, known=server.known) as engine,
    ):
        found = [engine.submit(one).result() for one in asked]
    wanted = generate(tiny_subject, asked)
    assert [one.ids for one in found] == [one.ids for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.chances == pytest.approx(other.chances, abs=1e-5)


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_a_server_that_does_not_tell_them_is_refused(tiny_subject: Subject, kind: str) -> None:
    server = TokenServer(tiny_subject, kind=kind)
    server.picks = False
    with (
        server,
        ServerEngine(server.url, tiny_subject.tokenizer, known=server.known) as engine,
        pytest.raises(InputError, match="chances of chosen tokens"),
    ):
        engine.submit(Request((5, 6), Decoding(max_new_tokens=1), choices=(7, 8)))


@pytest.mark.parametrize(("picks", "requests"), [(True, 8), (False, 6)])
def test_nothing_is_asked_twice_and_shared_beginnings_stand_together(
    tiny_subject: Subject, picks: bool, requests: int
) -> None:
    """Chosen next tokens: behind (3), (3, 8), (3, 20), and so on, one request each, whichever branches go on from there.

    Whole paths: the answer's own next tokens at 3 and at 5 begin the path of those at 6, and are scored with it.
    """
    server = TokenServer(tiny_subject)
    server.picks = picks
    with server, ServerEngine(server.url, tiny_subject.tokenizer, known=server.known, in_flight=1) as engine:
        before = len(server.asked)
        list(branches.branch_logps(engine, [(ROW, BRANCHES)]))
    paths = server.prompts()[before:]
    assert len(paths) == len(set(paths)) == requests
    assert paths == sorted(paths)
    assert (tuple(ROW) in paths) is not picks


def test_a_server_that_tells_logits_is_not_taken_at_its_word(tiny_subject: Subject) -> None:
    def shifted(answer: dict) -> dict:  # type: ignore[type-arg]
        for choice in answer["choices"]:
            for told in (choice.get("logprobs") or {}).get("top_logprobs", ()):
                told.update({token: value + 12 for token, value in told.items()})
        return answer

    server = TokenServer(tiny_subject)
    server.change = shifted
    with server, ServerEngine(server.url, tiny_subject.tokenizer, known=server.known) as engine:
        assert (engine.about.scores, engine.about.picks) == (True, False)
