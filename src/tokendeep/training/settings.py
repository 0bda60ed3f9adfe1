"""The settings of a trainer: the paper's defaults, and what would train something else than answers.

Knows nothing of rows or losses.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig

from tokendeep.errors import InputError


@dataclass
class ConstrainedSFTConfig(SFTConfig):
    """SFTConfig with the paper's optimizer settings as defaults (section 4, appendix B.5); any SFTConfig works as well."""

    learning_rate: float = field(default=2e-5, metadata={"help": "2e-5 for Llama-2, 5e-6 for Gemma in the paper."})
    warmup_steps: float = field(default=10, metadata={"help": "Without it the constraint is much weaker (Table 9)."})
    adam_beta1: float = field(default=0.5, metadata={"help": "As in the paper, also for its plain baselines."})
    adam_beta2: float = field(default=0.999, metadata={"help": "As in the paper."})


def copied(args: Any) -> Any:
    """A copy of the settings, as SFTConfig; by default with the paper's optimizer."""
    if args is None:
        return ConstrainedSFTConfig("trainer_output")
    if isinstance(args, TrainingArguments) and not isinstance(args, SFTConfig):
        return SFTConfig(**{**args.to_dict(), "hub_token": args.hub_token})
    args = copy.copy(args)
    args.assistant_only_loss = False  # conversations are encoded here, answers only
    args.logging_nan_inf_filter = (
        False  # it waits for the device at every micro-batch; `check_losses` does at every step
    )
    return args


def tokenizer_of(model: Any, args: Any) -> Any:
    """The tokenizer of a model that came without one, of the same revision and with code where that is trusted."""
    from transformers import AutoTokenizer

    given = dict(args.model_init_kwargs or {}) if isinstance(model, str) else {}
    trusted = given.get("trust_remote_code", args.trust_remote_code)
    name, revision = model, given.get("revision")
    if not isinstance(model, str):
        name, revision = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trusted)


def check(args: Any, others: dict[str, Any], peft_config: Any) -> None:
    """Refuse what would supervise other tokens than answers, count positions wrongly, or go unused."""
    given = {name for name, value in others.items() if value is not None}
    targets = getattr(peft_config, "target_modules", None) or ()
    wrong = {
        "completion_only_loss=False supervises the prompt": args.completion_only_loss is False,
        "formatting_func makes plain text, in which prompt and answer cannot be told apart": "formatting_func" in given,
        "a data_collator may pad on the left, where rows are not looked for": "data_collator" in given,
        "compute_loss_func is another loss": "compute_loss_func" in given,
        f"loss_type={args.loss_type!r} is another loss": args.loss_type != "nll",
        "label_smoothing_factor is another loss": args.label_smoothing_factor > 0,
        "router_aux_loss_coef is another loss": args.router_aux_loss_coef,
        "chat_template_path comes too late for the rows; set the tokenizer's chat_template": args.chat_template_path,
        "eos_token comes too late for the rows; set the tokenizer's eos_token": args.eos_token,
        f"packing_strategy={args.packing_strategy!r} cuts answers, whose rest would count from position 1 again; use "
        "'bfd'": args.packing and args.packing_strategy != "bfd",
        "eval_packing must be as packing": args.eval_packing not in (None, args.packing),
        "truncation_mode='keep_end' cuts the beginning, where positions count from": args.truncation_mode == "keep_end",
        "an lm_head in the LoRA targets would not be trained; take it out": "lm_head" in targets,
    }
    for what, found in wrong.items():
        if found:
            raise InputError(f"{what}; leave that setting out." if ";" not in what else f"{what}.")
