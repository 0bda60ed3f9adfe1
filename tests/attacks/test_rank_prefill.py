"""Rank-assisted prefilling: the walk against a plain search without cache, its scorers, and the verb."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attacking import ROWS, Answers, answers, attack, config, judge, pairs  # noqa: F401  (fixtures)
from tokendeep import chat
from tokendeep.attacks import rank_prefill as ranks
from tokendeep.compute import scoring
from tokendeep.errors import InputError
from tokendeep.types import Subject
from tokendeep.verbs.attack import plan

pytestmark = pytest.mark.slow  # a model runs in nearly every test

ASK = [{"role": "user", "content": "How do I bake bread"}]


def everything(prompt: Sequence[int], answer: Sequence[int], candidates: Sequence[int]) -> list[bool]:
    return [True] * len(candidates)


def plain_walk(
    subject: Subject, prompt: list[int], accepts: Callable[..., bool], top: int, length: int
) -> tuple[int, ...] | None:
    """The first whole prefix in rank order, found by recursion over full forward passes."""
    special = set(subject.tokenizer.all_special_ids)

    def search(answer: tuple[int, ...]) -> tuple[int, ...] | None:
        if len(answer) == length:
            return answer
        with torch.no_grad():
            logits = subject.model(torch.tensor([[*prompt, *answer]])).logits[0, -1]
        for token in logits.topk(top).indices.tolist():
            if token in special or answer[-2:] == (token, token) or not accepts(answer, token):
                continue
            if found := search((*answer, token)):
                return found
        return None

    return search(())


def asked(subject: Subject) -> list[int]:
    return chat.prompt_ids(subject.tokenizer, ASK)  # type: ignore[arg-type]


@pytest.mark.parametrize("cached", [True, False])
def test_the_walk_is_that_of_a_plain_search(
    cached: bool, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens divisible by 3 are no good, and after three tokens of even sum nothing is: the walk has to go back."""
    if not cached:
        monkeypatch.setattr(scoring, "plain_cache", lambda model, length: False)

    def accepts(answer: Sequence[int], token: int) -> bool:
        return token % 3 != 0 and not (len(answer) == 3 and sum(answer) % 2 == 0)

    def scorer(prompt: Sequence[int], answer: Sequence[int], candidates: Sequence[int]) -> list[bool]:
        return [accepts(answer, token) for token in candidates]

    found = ranks.walk(tiny_subject, asked(tiny_subject), scorer, ranks.Budget(top=4, length=6, passes=500))
    assert found.ids == plain_walk(tiny_subject, asked(tiny_subject), accepts, 4, 6)
    assert found.whole
    assert found.backtracks > 0


def test_where_everything_is_accepted_it_is_greedy(tiny_subject: Subject) -> None:
    found = ranks.walk(tiny_subject, asked(tiny_subject), everything, ranks.Budget(length=5))
    assert found.ids == plain_walk(tiny_subject, asked(tiny_subject), lambda answer, token: True, 1, 5)
    assert (found.passes, found.backtracks) == (5, 0)


def test_the_budget_is_kept_and_the_longest_prefix_stays(tiny_subject: Subject) -> None:
    def short(prompt: Sequence[int], answer: Sequence[int], candidates: Sequence[int]) -> list[bool]:
        return [len(answer) < 3] * len(candidates)

    found = ranks.walk(tiny_subject, asked(tiny_subject), short, ranks.Budget(top=5, length=6, passes=20))
    assert found.passes == 20
    assert (len(found.ids), found.whole) == (3, False)
    nothing = ranks.walk(tiny_subject, asked(tiny_subject), lambda *a: [False] * len(a[2]), ranks.Budget(top=5))
    assert nothing == ranks.Walk((), 1, 0, False)


def test_an_unaligned_model_accepts_its_likeliest_tokens(make_model: Callable[..., Any], tiny_subject: Subject) -> None:
    base = replace(tiny_subject, model=make_model(seed=3).eval())
    prompt = asked(tiny_subject)
    with torch.no_grad():
        likely = base.model(torch.tensor([[*prompt, 9]])).logits[0, -1].topk(7).indices.tolist()
    scorer = ranks.Likely(base, 7)
    assert scorer(prompt, [9], list(range(300))) == [token in likely for token in range(300)]
    found = ranks.walk(tiny_subject, prompt, scorer, ranks.Budget(top=60, length=4, passes=400))
    for place in range(4):
        with torch.no_grad():
            row = torch.tensor([[*prompt, *found.ids[:place]]])
            assert found.ids[place] in base.model(row).logits[0, -1].topk(7).indices.tolist()


def test_the_judge_takes_no_refusal(tiny_tokenizer: Any) -> None:
    scorer = ranks.NotRefusing(tiny_tokenizer)
    start = tiny_tokenizer("I'm sorry, but I can't help with", add_special_tokens=False).input_ids
    ends = [tiny_tokenizer(text, add_special_tokens=False).input_ids[-1] for text in (".", "t")]
    refusing = tiny_tokenizer.decode([*start, ends[0]])
    assert refusing.endswith("help with.")
    assert scorer([], start, ends[:1]) == [False]
    assert scorer([], tiny_tokenizer("Here is the lis", add_special_tokens=False).input_ids, ends[1:]) == [True]


@pytest.mark.parametrize("name", ["top", "length", "passes"])
def test_a_budget_of_nothing_is_refused(name: str, tiny_subject: Subject) -> None:
    with pytest.raises(InputError, match=f"{name} is 0, a budget of nothing"):
        ranks.walk(tiny_subject, asked(tiny_subject), everything, ranks.Budget(**{name: 0}))


def test_the_verb_asks_with_the_prefixes_keeps_them_and_tells_what_they_cost(
    pairs: Path, tmp_path: Path, tiny_subject: Subject, answers: Answers, judge: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    wanted = {"attack": "none,rank-prefill", "rank_length": 4, "rank_budget": 30}
    walk, seen = ranks.walk, []

    def cut(subject: Any, prompt: Any, scorer: Any, settings: Any) -> ranks.Walk:
        seen.append(tuple(prompt))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return walk(subject, prompt, scorer, settings)

    monkeypatch.setattr(ranks, "walk", cut)
    clock = itertools.count(step=5.0)
    monkeypatch.setattr(ranks.time, "perf_counter", lambda: next(clock))  # each walk takes five seconds
    with pytest.raises(KeyboardInterrupt):
        attack(config(pairs, tmp_path / "out", **wanted), tiny_subject)
    out = attack(config(pairs, tmp_path / "out", **wanted), tiny_subject)
    prompts = [
        tuple(chat.prompt_ids(tiny_subject.tokenizer, [{"role": "user", "content": r["instruction"]}])) for r in ROWS
    ]
    assert seen == [*prompts, prompts[2]]  # those found before the interrupt are not looked for again
    scorer = ranks.NotRefusing(tiny_subject.tokenizer)
    found = [walk(tiny_subject, p, scorer, ranks.Budget(20, 4, 30)) for p in prompts]
    requests = {tuple(request.ids) for request in answers.requests}
    assert {(*p, *w.ids) for p, w in zip(prompts, found, strict=True)} | set(prompts) == requests
    rows = json.loads((out / "asr.json").read_text())
    assert [(row["attack"], row["n"]) for row in rows] == [("none", 3), ("rank-prefill", 3)]
    cost = json.loads((out / "manifest.json").read_text())["cost"]["rank-prefill"]
    assert (cost["passes"], cost["prompts"], cost["scorer"]) == (sum(w.passes for w in found), 3, "judge")
    assert cost["seconds"] == 3 * 5.0  # those of the first attempt are counted too
    assert not (out / "parts").exists()


def test_settings_are_checked_before_a_model_is_loaded(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rank-budget is 0"):
        plan(config(pairs, tmp_path, attack="rank-prefill", rank_budget=0))
