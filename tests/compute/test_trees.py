"""Branches of a tree of tokens against each of them as a row of its own."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as tf

from conftest import SMALL
from tokendeep.compute import scoring, trees
from tokendeep.types import IGNORE, Encoded, Subject

BRANCHES = [
    (21, (5, 6, 7)),
    (21, (5, 6, 8)),
    (21, (9, 9, 9)),
    (24, (5, 6, 7)),
    (24, (40, 41)),
    (22, (5,)),
    (27, (1, 2, 3)),
]


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        (None, True),
        (tf.Qwen3Config(**SMALL,
                        num_key_value_heads=2, head_dim=8), True),
        (tf.Gemma2Config(**SMALL,
                         num_key_value_heads=2, head_dim=8, sliding_window=4096), True),
        (tf.MistralConfig(**SMALL,
                          num_key_value_heads=2, sliding_window=8), False),
        (tf.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4), False),
        (tf.FalconConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4), True),
        (tf.FalconConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True,
                         multi_query=False), False),
    ],
)  # fmt: skip
def test_branches_of_a_tree_equal_rows_of_their_own(tiny_subject: Subject, config: Any, fits: bool) -> None:
    torch.manual_seed(0)
    model = tiny_subject.model if config is None else tf.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    subject = Subject(model, tiny_subject.tokenizer, "tree")
    ids = random.Random(0).choices(range(4, 300), k=27)
    assert trees.fits(model, 60) == fits
    ours = trees.branch_logps(subject, ids, BRANCHES)
    plain = torch.stack(
        [
            scoring.token_logps(subject, [Encoded(ids[:at] + list(t), [IGNORE] * at + list(t))])[0].sum()
            for at, t in BRANCHES
        ]
    )
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [None, tf.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4)])
def test_branches_with_a_gradient_have_that_of_rows_of_their_own(tiny_subject: Subject, config: Any) -> None:
    torch.manual_seed(0)
    model = tiny_subject.model if config is None else tf.AutoModelForCausalLM.from_config(config).eval()
    ids, weights = random.Random(0).choices(range(4, 300), k=27), list(model.parameters())
    logps = trees.differentiable_logps(model, ids, BRANCHES)
    torch.testing.assert_close(
        logps.detach(),
        trees.branch_logps(Subject(model, tiny_subject.tokenizer, "tree"), ids, BRANCHES),
        rtol=1e-4,
        atol=1e-4,
    )
    plain = []
    for at, tokens in BRANCHES:
        row = torch.tensor([[*ids[:at], *tokens]])
        given = model(row).logits[0, at - 1 : -1].log_softmax(-1)
        plain.append(given[torch.arange(len(tokens)), list(tokens)].sum())
    picked = torch.tensor([1.0, -2.0, 3.0, 0.5, -1.0, 2.0, 1.5])
    ours = torch.autograd.grad((logps * picked).sum(), weights)
    theirs = torch.autograd.grad((torch.stack(plain) * picked).sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
