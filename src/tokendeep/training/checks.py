"""What a trainer looks at before a training and at its steps: the model it got, the warm-up, losses that are no numbers,
whether rows that stand in one are kept apart.

Knows nothing of rows or objectives.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.compute as pc
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from tokendeep import chat, models
from tokendeep.compute import lm_head
from tokendeep.engines.architecture import ends_of
from tokendeep.errors import InputError
from tokendeep.training import cpu
from tokendeep.training.batches import Limits
from tokendeep.types import IGNORE, Message

PROBE = 8  # tokens of each of the rows that are tried in one

log = logging.getLogger(__name__)


class StepChecks(TrainerCallback):
    """Says what a user should know before the first step, looks at the losses before every update of the
    weights, and takes the time of a step.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_rows_apart()
        for remark in self.trainer.remarks() if state.is_world_process_zero else []:
            tqdm.write(f"tokendeep: {remark}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.step_seconds = time.monotonic() - self.started

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_losses()


def limits(model: Any) -> Limits:
    """What a model takes."""
    lm = lm_head.causal_lm(model)
    return Limits(models.tokens_of(lm), models.context_length(lm))


def check_taken(model: Any, rows: Any, what: str) -> None:
    """Refuse rows that hold other tokens than the model knows, or more than it takes; of a stream the collator does.

    Args:
        what: what the rows are, for messages.

    Raises:
        InputError: naming the first such row, by its number among those that can be trained on.
    """
    if not hasattr(rows, "__len__"):
        return
    takes, first = limits(model), 0
    columns = rows.select_columns(["input_ids", "labels"])
    for table in columns.with_format("arrow").iter(batch_size=1000):  # a look at each, in no Python loop
        highest = max(pc.max(pc.list_flatten(column)).as_py() for column in table.columns)
        if highest >= takes.vocabulary or pc.max(pc.list_value_length(table["input_ids"])).as_py() > takes.context:
            for place in range(first, first + len(table)):
                takes.check(columns[place], f"Row {place + 1} of {what}")
        first += len(table)


@torch.no_grad()
def check_apart(trainer: Any) -> None:
    """Refuse to put several rows into one where the model does not keep them apart by their positions.

    Two short rows go through it in one, and each alone: what is said within the second must be the same, to rounding. Masks
    of some architectures take no notice of positions (GPT-OSS, OPT), and the states of others run on (Mamba, convolutions).

    Raises:
        InputError: the second row sees the first, or the model cannot take both in one.
    """
    vocabulary = limits(trainer.model).vocabulary
    ids = [7919 * place % vocabulary for place in range(1, 2 * PROBE + 1)]  # a prime: all over the vocabulary
    first, second = ({"input_ids": half, "labels": half} for half in (ids[:PROBE], ids[PROBE:]))
    training, collator = trainer.model.training, trainer._collator.inner
    trainer.model.eval()
    try:
        alone = _states(trainer, {name: torch.tensor([second[name]]) for name in second})
        try:
            packed = _states(trainer, collator([first, second]))[PROBE - 1 :]
            apart = bool(((packed - alone).norm(dim=-1) <= _rounding(trainer) * alone.norm(dim=-1)).all())
        except torch.OutOfMemoryError:
            raise
        except Exception:  # what an architecture says to positions that it does not know
            log.debug("two rows in one", exc_info=True)
            apart = False
    finally:
        trainer.model.train(training)
    if not apart:
        raise InputError(
            f"{type(lm_head.causal_lm(trainer.model)).__name__} does not keep rows apart that stand in one, so answers would be "
            "learnt behind other rows; leave out --packing (in Python packing and padding_free)."
        )


def _states(trainer: Any, batch: dict[str, Any]) -> Tensor:
    """The final states (N, H) at the supervised tokens of a batch, as the training computes them."""
    accelerator = trainer.accelerator
    with accelerator.autocast(), cpu.quick(trainer.model):  # before training the model is not wrapped in it yet
        given = send_to_device(batch, accelerator.device)
        return trainer.model_wrapped(**given, supervised=True, keep_states=True).states.float()


def _rounding(trainer: Any) -> float:
    """How far two ways to compute one state may lie apart, as a share of its length."""
    half = any(weights.dtype.itemsize < 4 for weights in trainer.model.parameters())
    rough = half or trainer.accelerator.mixed_precision != "no" or torch.backends.cuda.matmul.allow_tf32
    return 0.1 if rough else 1e-3


def leave_router_loss_out(trainer: Any) -> None:
    """Train a mixture of experts without its load-balancing loss, and say so; its configuration keeps the coefficient."""
    if not trainer.aux_loss_enabled:
        return
    trainer.aux_loss_enabled = False
    lm_head.causal_lm(trainer.model).config.get_text_config().output_router_logits = False
    if trainer.is_world_process_zero():
        print("tokendeep: the model is a mixture of experts; its router's load-balancing loss is left out")


def end_where_answers_end(model: Any, rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> None:
    """Let generation stop at the tokens that end the answers of the rows, beside those where it stops already.

    Of a stream, whose rows are not known yet, those of the chat template. A row that was cut off may end with any token: a
    mark that the tokenizer does not call special (`<tool_call>`, `</think>`) is an end where the template has it as one.
    """
    config = getattr(lm_head.causal_lm(model), "generation_config", None)
    if not hasattr(rows, "__len__"):
        asked: list[Message] = [{"role": "user", "content": "Hello"}]
        rows = [{"labels": chat.response_ids(tokenizer, asked, "Hello")}] if tokenizer.chat_template else []
    if config is None:
        return
    known = config.eos_token_id
    stops = [known] if isinstance(known, int) else list(known or ())
    added = tokenizer.added_tokens_decoder
    known_ends = ends_of((), tokenizer) | {i for i, token in added.items() if token.special}
    if isinstance(rows, Dataset):
        rows = rows.select_columns("labels")  # the ids, as many again, are not read
    ends = {row["labels"][-1] for row in rows if row["labels"][-1:] != [IGNORE]} & known_ends
    if not ends <= set(stops):
        config.eos_token_id = [*sorted(ends), *(stop for stop in stops if stop not in ends)]
