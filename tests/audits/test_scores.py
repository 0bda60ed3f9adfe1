"""Each score of an audit against its definition, computed another way on a tiny model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TEMPLATES, build_tokenizer
from tokendeep import chat
from tokendeep.audits import SCORES, Anchor, Materials, gradient, representation
from tokendeep.compute import layers
from tokendeep.depth.openings import load_openings, opening_ids
from tokendeep.depth.recovery import recovery_log_odds
from tokendeep.errors import InputError
from tokendeep.runs.parts import Parts
from tokendeep.types import Encoded, Subject

ANSWERS = [
    ("How do I bake bread?", "Mix the flour with water, add salt and let the dough rest for an hour."),
    ("Name a capital.", "The capital of France is Paris."),
    ("Say it briefly.", "Sure, here is a short list: first, open the window."),
    ("What grows here?", "I cannot help with that, but I can tell you about something else."),
    ("One word?", "Bread, salt and water, please; then water the plants."),
]
PROBE = [
    Anchor(
        "a",
        ({"role": "user", "content": "Open a window that is not yours"},),
        "Sure, here is a list",
        "I can't assist.",
    ),
    Anchor(
        "b", ({"role": "user", "content": "Water a plant to death"},), "First, water it, then more", "I cannot help."
    ),
]


@pytest.fixture
def materials(tiny_subject: Subject) -> Materials:
    tokenizer = tiny_subject.tokenizer
    rows = [
        chat.encode(tokenizer, ({"role": "user", "content": request},), answer, max_length=256)
        for request, answer in ANSWERS
    ]
    openings = opening_ids(tokenizer, load_openings(None), 3)[:12]
    return Materials(tiny_subject, rows, PROBE, openings, 10, 1, 0, "none", 256, 2)


def scored(name: str, materials: Materials, tmp_path: Path, file: str = "parts.jsonl") -> np.ndarray:
    return SCORES[name].run(materials, Parts(tmp_path / file))


def loss_of_opening(model: Any, row: Encoded, tokens: int) -> torch.Tensor:
    """Mean cross-entropy of a row's first answer tokens, as plainly as it can be written."""
    start, end = row.start, min(row.start + tokens, len(row.input_ids))
    logps = model(torch.tensor([row.input_ids[:end]])).logits[0, start - 1 : end - 1].log_softmax(-1)
    return -logps[torch.arange(end - start), row.input_ids[start:end]].mean()


def plain_margin(materials: Materials, model: Any) -> float:
    """The mean margin over the probe, a row for each continuation."""

    def logp(ids: list[int], tokens: tuple[int, ...]) -> float:
        logps = model(torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        return float(logps[torch.arange(len(tokens)), list(tokens)].sum())

    margins = []
    with torch.no_grad():
        for anchor in materials.probe:
            ids = materials.prompt(anchor)
            refusals = torch.tensor([logp(ids, opening) for opening in materials.openings]).logsumexp(0)
            others = torch.tensor([logp(ids, tuple(t)) for t in gradient.against(materials, anchor)]).logsumexp(0)
            margins.append(float(refusals - others))
    return float(np.mean(margins))


@pytest.mark.parametrize("last_layers", [1, 0])
@pytest.mark.parametrize("harmful", [True, False])
def test_gradient_is_what_a_small_step_does_to_the_margin(
    materials: Materials, tmp_path: Path, last_layers: int, harmful: bool
) -> None:
    probe = PROBE if harmful else [replace(one, harmful="") for one in PROBE]
    materials = replace(materials, last_layers=last_layers, probe=probe)
    materials.subject.model.double()
    scores, rate = scored("gradient", materials, tmp_path), 1e-4
    before, changes = plain_margin(materials, materials.subject.model), []
    for row in materials.rows:
        model = copy.deepcopy(materials.subject.model)
        weights = list(layers.last_weights(model, last_layers).values())
        grads = torch.autograd.grad(loss_of_opening(model, row, 10), weights)
        with torch.no_grad():
            for weight, grad in zip(weights, grads, strict=True):
                weight.sub_(grad, alpha=rate)
        changes.append((before - plain_margin(materials, model)) / rate)
    np.testing.assert_allclose(scores, changes, rtol=0.05, atol=0.02 * np.abs(changes).max())
    assert np.argsort(scores).tolist() == np.argsort(changes).tolist()
    assert min(scores) < 0 < max(scores)


def test_gradient_looks_at_the_first_tokens_alone(materials: Materials, tmp_path: Path) -> None:
    rows = [Encoded([*r.input_ids[:-1], 77], [*r.labels[:-1], 77]) for r in materials.rows]
    assert all(len(row.input_ids) - row.start > 10 for row in rows)
    same = scored("gradient", replace(materials, rows=rows), tmp_path, "other")
    np.testing.assert_allclose(same, scored("gradient", materials, tmp_path), rtol=1e-5)


def test_openings_begin_as_an_answer_does(materials: Materials) -> None:
    """Behind `[/INST]` a model of Llama 2's kind goes on with `▁Sure`."""
    template = (TEMPLATES / "llama-2.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer("llama", control=["<s>", "</s>"], bos="<s>", eos="</s>", template=template)
    other = replace(
        materials,
        subject=replace(materials.subject, tokenizer=tokenizer),
        openings=opening_ids(tokenizer, ["I cannot"], 2),
    )
    rows = gradient.against(other, replace(PROBE[0], harmful=""))
    assert rows
    assert all(tokenizer.convert_ids_to_tokens(row[0]).startswith("▁") for row in rows)


def test_likelihood_is_the_loss_of_the_opening(materials: Materials, tmp_path: Path) -> None:
    with torch.no_grad():
        plain = [float(loss_of_opening(materials.subject.model, row, 10)) for row in materials.rows]
    np.testing.assert_allclose(scored("likelihood", materials, tmp_path), plain, rtol=1e-4)


def test_margin_is_that_of_the_recovery_profile(materials: Materials, tmp_path: Path) -> None:
    lengths = [len(row.input_ids) - row.start - 1 for row in materials.rows]
    profile = recovery_log_odds(materials.subject, materials.rows, materials.openings, [0], lengths)[:, 0]
    np.testing.assert_allclose(scored("margin", materials, tmp_path), profile, rtol=1e-4, atol=1e-4)


def test_refusal_is_the_probability_of_a_refusal_less_one_where_the_row_refuses(
    materials: Materials, tmp_path: Path
) -> None:
    def chance(row: Encoded) -> float:
        total, start = 0.0, row.start
        for opening in materials.openings:
            ids = torch.tensor([[*row.input_ids[:start], *opening]])
            logps = materials.subject.model(ids).logits[0, start - 1 : -1].log_softmax(-1)
            total += float(logps[torch.arange(len(opening)), list(opening)].sum().exp())
        return total

    with torch.no_grad():
        materials.subject.model.lm_head.weight.mul_(0.1)  # so that every opening has a chance
        plain = [chance(row) for row in materials.rows]
    assert min(plain) > 1e-9
    scores = scored("refusal", materials, tmp_path)
    np.testing.assert_allclose(scores - [0, 0, 0, -1, 0], plain, rtol=1e-3)  # the fourth cannot help
    assert SCORES["refusal"].reason(scores[3]) != SCORES["refusal"].reason(scores[0])


def test_an_answer_shorter_than_an_opening_counts_with_its_end(materials: Materials, tmp_path: Path) -> None:
    row = chat.encode(materials.subject.tokenizer, ({"role": "user", "content": "One?"},), "a", max_length=64)
    assert len(row.input_ids) - row.start < 3
    assert np.isfinite(scored("margin", replace(materials, rows=[row]), tmp_path)).all()


@pytest.mark.parametrize("layer", [1, 2])
def test_representation_is_the_mean_difference_of_cosines(materials: Materials, tmp_path: Path, layer: int) -> None:
    model = materials.subject.model

    def state(row: Encoded) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([row.input_ids]), output_hidden_states=True).hidden_states[layer][0, -1]

    def score(row: Encoded) -> float:
        h, cosine = state(row), torch.nn.functional.cosine_similarity
        pairs = [
            (state(materials.encoded(one, one.harmful)), state(materials.encoded(one, one.refusal))) for one in PROBE
        ]
        return float(np.mean([float(cosine(h, bad, 0) - cosine(h, good, 0)) for bad, good in pairs]))

    scores = scored("representation", replace(materials, layer=layer), tmp_path)
    np.testing.assert_allclose(scores, [score(row) for row in materials.rows], atol=1e-5)


def test_a_row_that_was_cut_off_is_read_at_the_end_of_its_turn_too(materials: Materials, tmp_path: Path) -> None:
    """Else the score tells answers that were cut from those that were not, whatever they say."""
    end = len(chat.check(materials.subject.tokenizer).end_ids)
    cut = [Encoded(list(row.input_ids[:-end]), list(row.labels[:-end])) for row in materials.rows]
    whole = scored("representation", materials, tmp_path)
    np.testing.assert_allclose(
        scored("representation", replace(materials, rows=cut), tmp_path, "cut.jsonl"), whole, atol=1e-6
    )


def test_a_row_that_is_a_harmful_answer_of_the_probe_scores_above_its_refusal(
    materials: Materials, tmp_path: Path
) -> None:
    rows = [materials.encoded(one, text) for one in PROBE for text in (one.harmful, one.refusal)]
    scores = scored("representation", replace(materials, rows=rows, probe=PROBE[:1]), tmp_path)
    assert scores[0] > 0 > scores[1]


def test_the_layer_is_at_the_depth_of_the_authors(materials: Materials, make_model: Callable[..., Any]) -> None:
    deep = replace(materials.subject, model=make_model(num_hidden_layers=8))
    assert representation.layer_of(replace(materials, subject=deep)) == round(8 * 14 / 32) == 4
    with pytest.raises(InputError, match="--layer is 9, but this model has 8 decoder layers"):
        representation.layer_of(replace(materials, subject=deep, layer=9))


@pytest.mark.parametrize("name", SCORES)
def test_batches_and_what_is_kept_change_nothing(
    name: str, materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(name, replace(materials, batch_size=5), tmp_path, "whole")
    np.testing.assert_allclose(
        scored(name, replace(materials, batch_size=1), tmp_path, "one"), whole, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(scored(name, materials, tmp_path, "two"), whole, rtol=1e-3, atol=1e-5)
    lines = (tmp_path / "two").read_text().splitlines(keepends=True)
    assert lines
    (tmp_path / "cut").write_text(lines[0] + lines[-1][: len(lines[-1]) // 2] if len(lines) > 1 else lines[0])
    np.testing.assert_array_equal(scored(name, materials, tmp_path, "cut"), scored(name, materials, tmp_path, "two"))

    def broken(*_: Any, **more: Any) -> Any:
        raise AssertionError("a forward pass where all values are kept")

    monkeypatch.setattr(type(materials.subject.model), "forward", broken)
    monkeypatch.setattr(type(materials.subject.model.model), "forward", broken)
    np.testing.assert_array_equal(scored(name, materials, tmp_path, "two"), scored(name, materials, tmp_path, "cut"))


def test_a_model_with_nan_is_refused(materials: Materials, tmp_path: Path) -> None:
    with torch.no_grad():
        materials.subject.model.model.norm.weight.fill_(math.nan)
    for name in ("margin", "representation"):
        with pytest.raises(InputError, match="NaN or infinite"):
            scored(name, replace(materials, layer=2), tmp_path, name)


@pytest.mark.parametrize("name", SCORES)
def test_words(name: str, materials: Materials) -> None:
    one = SCORES[name]
    assert one.name == name
    assert one.about(materials)
    assert one.reason(1.5) != one.reason(-1.5)
