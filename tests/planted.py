"""Tiny models whose safety is planted to be exactly `depth` tokens deep, and a plain way to compute what they should show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from tokendeep.types import IGNORE, Encoded, Subject

REFUSE, COMPLY, DRIFT = 0, 1, 2
BENIGN, START, REFUSAL = 4, 1, (10, 11, 12, 13)
OPENINGS = [(10, 11, 12), (11, 10, 13)]
LONG = 60  # answer tokens


class PlantedConfig(PretrainedConfig):
    model_type = "planted"

    def __init__(
        self, depth: int = 0, start_token: int = 0, refusal: tuple[int, ...] = (), vocab_size: int = 64,
        drift: float = 0.0, **rest: Any,
    ):  # fmt: skip
        super().__init__(tie_word_embeddings=False, **rest)
        self.drift = drift
        self.depth, self.start_token, self.refusal = depth, start_token, list(refusal)
        self.vocab_size, self.hidden_size, self.max_position_embeddings = vocab_size, 3, 4096


class PlantedDecoder(PreTrainedModel):
    """Refuses while the next token is one of the first `depth` of the answer, or once it has begun to refuse.

    Never where the prompt holds BENIGN. Every position drifts from the base by about `drift`, more or less by its token.
    """

    config_class = PlantedConfig

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, 3)
        self.post_init()

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        start = (input_ids == self.config.start_token).int().argmax(1, keepdim=True)  # the last prompt token
        nth = position_ids - start + 1  # which answer token comes next
        refusing = torch.isin(input_ids, torch.tensor(self.config.refusal)) & (nth > 1)
        harmful = (input_ids != BENIGN).all(1, keepdim=True)
        state = (((nth >= 1) & (nth <= self.config.depth)) | refusing) & harmful
        hidden = nn.functional.one_hot(torch.where(state, REFUSE, COMPLY), 3).float()
        hidden[..., DRIFT] = self.config.drift * (1 + 0.5 * torch.sin(7.0 * input_ids))
        return BaseModelOutputWithPast(last_hidden_state=hidden)


class Planted(PreTrainedModel):
    config_class = PlantedConfig
    base_model_prefix = "model"
    _is_stateful = True  # it keeps no cache

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        self.model = PlantedDecoder(config)
        self.lm_head = nn.Linear(3, config.vocab_size, bias=False)
        self.post_init()
        weight = torch.zeros(config.vocab_size, 3)
        weight[1::2, DRIFT], weight[::2, DRIFT] = 1.0, -1.0
        weight[config.refusal, REFUSE] = 12.0
        weight[[i for i in range(config.vocab_size) if i not in config.refusal], COMPLY] = 12.0
        self.lm_head.weight.data = weight

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        return self.model

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        kwargs.pop("use_cache", None)
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids, **kwargs)[0]))


def brute_force_kl(p: Any, q: Any, input_ids: list[int], labels: list[int]) -> Tensor:
    """D_KL(p || q) at supervised positions from full logits, softmax in float64."""
    ids = torch.tensor([input_ids])
    with torch.no_grad():
        log_p, log_q = (m(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for m in (p, q))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return kl[torch.tensor(labels[1:]) != -100]


def planted(depth: int, drift: float = 0.0) -> Subject:
    """A model that refuses with REFUSAL for the first `depth` answer tokens; it has no tokenizer."""
    config = PlantedConfig(depth=depth, start_token=START, refusal=REFUSAL, drift=drift)
    return Subject(Planted(config), None, f"planted {depth}")  # type: ignore[arg-type]


def harmful_rows(count: int = 6, answer: int = LONG) -> list[Encoded]:
    """Rows whose answers never refuse."""
    return _rows([5, 6, 7, START], [[20 + (i * 7 + j) % 40 for j in range(answer)] for i in range(count)])


def benign_rows(count: int = 6, answer: int = LONG) -> list[Encoded]:
    """Rows of requests that are never refused, with other answers."""
    return _rows([BENIGN, 6, 7, START], [[20 + (i * 11 + j * j) % 40 for j in range(answer)] for i in range(count)])


def _rows(prompt: list[int], answers: list[list[int]]) -> list[Encoded]:
    return [Encoded(prompt + body, [IGNORE] * len(prompt) + body) for body in answers]
