"""A model whose layers end on another card than its inputs: its steps run, though there are no cards here (fake tensors)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from tokendeep.compute import lm_head
from tokendeep.training import pact
from tokendeep.training.held import HeldSFTTrainer, Term
from tokendeep.training.referenced import ReferencedSFTTrainer
from tokendeep.training.safety import SafetyAnchor
from tokendeep.training.sft import ResponseSFTTrainer
from tokendeep.training.trainer import ConstrainedSFTTrainer
from tuning import LORA, settings, token_rows

FIRST, LAST = torch.device("cuda:0"), torch.device("cuda:1")
TOKENS = pact.SafetyTokens(torch.arange(3), torch.ones(3))
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (ResponseSFTTrainer, {}),
    "constrained": (ConstrainedSFTTrainer, {}),
    "on the fly": (ConstrainedSFTTrainer, {"reference": "on-the-fly", "head_anchor": (0.5, 5)}),
    "head anchor": (ConstrainedSFTTrainer, {"head_anchor": (0.5, 5)}),
    "safety anchor": (ReferencedSFTTrainer, {"safety_anchor": SafetyAnchor(token_rows(4, seed=5), rows_per_step=4)}),
    "pact": (HeldSFTTrainer, {"term": Term(1.0, pact.value(TOKENS), alone=True)}),
}


class Indexed(TorchFunctionMode):
    """Indexing by operators alone: Python's own way looks for the card itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        made, places = args[0], args[1] if isinstance(args[1], tuple) else (args[1],)
        dim = 0
        for place in places:
            if place is None:
                made = made.unsqueeze(dim)
            elif isinstance(place, torch.Tensor):
                made = torch.ops.aten.index.Tensor(made, [*[None] * dim, place])
            elif isinstance(place, int):
                made, dim = made.select(dim, place), dim - 1
            elif place != slice(None):
                made = torch.ops.aten.slice.Tensor(made, dim, place.start, place.stop)
            dim += 1
        return made


class Counted:
    """In the place of a meter: what it is given lies where it counts."""

    def add(self, name: str, values: torch.Tensor, *where: torch.Tensor | None, peak: bool = False) -> None:
        for one in (values, *where):
            assert one is None or one.device == FIRST, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_model_on_two_cards(
    kind: str, tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, more = KINDS[kind]
    made = make(
        make_model(), settings(tmp_path), train_dataset=Dataset.from_list(token_rows()), processing_class=tiny_tokenizer,
        **{"peft_config": LORA, **more},
    )  # fmt: skip
    if make is not ResponseSFTTrainer:
        made.prepare_all({})
    batches, count = made.get_batch_samples(iter(made.get_train_dataloader()), 1, torch.device("cpu"))
    config = lm_head.causal_lm(made.model).config

    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), Indexed():
        model = type(lm_head.causal_lm(made.model))(config).train()
        model.lm_head.weight = torch.nn.Parameter(torch.empty(config.vocab_size, config.hidden_size, device=LAST))

        def hidden_states(lm: Any, input_ids: torch.Tensor, **more: Any) -> torch.Tensor:
            return torch.empty(*input_ids.shape, config.hidden_size, device=LAST)

        monkeypatch.setattr(lm_head, "hidden_states", hidden_states)
        lm_head.add_supervised_forward(model)
        made.meters = {"train": Counted()}

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: moved(one) for name, one in value.items()}
            return torch.empty_like(value, device=FIRST) if isinstance(value, torch.Tensor) else value

        given = moved(dict(batches[0]))
        if kind == "on the fly":  # the reference is the model itself, with its adapter off
            monkeypatch.setattr(made, "_adapter_off", False)
        loss = made.compute_loss(model, given, num_items_in_batch=moved(count))
        assert loss.device == FIRST
