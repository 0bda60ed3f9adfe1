"""What a trainer looks at before a training and at its steps: the model it got, the warm-up, losses that are no numbers.

Knows nothing of rows or objectives.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset
from tqdm import tqdm
from transformers import TrainerCallback

from tokendeep import chat
from tokendeep.compute import lm_head
from tokendeep.engines.architecture import ends_of
from tokendeep.types import IGNORE, Message


class StepChecks(TrainerCallback):
    """Says what a user should know before the first step, looks at the losses before every update of the
    weights, and takes the time of a step.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for remark in self.trainer.remarks() if state.is_world_process_zero else []:
            tqdm.write(f"tokendeep: {remark}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.step_seconds = time.monotonic() - self.started

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_losses()


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
