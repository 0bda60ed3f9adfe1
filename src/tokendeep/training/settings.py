"""The settings of a trainer: the paper's defaults, and what would train something else than answers.

Knows nothing of rows or losses.
"""

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig

from tokendeep import chat, runs
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
        args = ConstrainedSFTConfig("trainer_output")
    elif isinstance(args, TrainingArguments) and not isinstance(args, SFTConfig):
        args = SFTConfig(**{**args.to_dict(), "hub_token": args.hub_token})
    args = copy.copy(args)
    args.assistant_only_loss = False  # conversations are encoded here, answers only: see `answers`
    # batches are not cut in pieces by rows, of fixed rows neither: they hold values by token too
    if args.accelerator_config.dispatch_batches and runs.is_main_process():
        print(
            "tokendeep: dispatch_batches=True is left out, for it would cut batches by rows, and they hold values by token"
        )
    args.accelerator_config = replace(args.accelerator_config, dispatch_batches=False)
    args.logging_nan_inf_filter = False  # waits for the device at every micro-batch, as `check_losses` does not
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


def answers(args: Any, train_on: str | None) -> str:
    """Which answers of a conversation are trained on: as `train_on` says, else as the settings do.

    Raises:
        InputError: they say different things.
    """
    every = getattr(args, "assistant_only_loss", False)
    if every and train_on not in (None, "all_turns"):
        raise InputError(
            f"assistant_only_loss=True trains on every answer of a conversation and train_on={train_on!r} does not; leave "
            "one of them out."
        )
    return train_on or ("all_turns" if every else "last_turn")


def dress(tokenizer: Any, args: Any) -> None:
    """Give a tokenizer the EOS and the chat template that the settings name, before rows are encoded with it.

    Raises:
        InputError: an EOS it does not know; no token to pad with; a template of another model, which may bring tokens of
            its own.
    """
    if args.eos_token:
        if args.eos_token not in tokenizer.get_vocab():
            raise InputError(
                f"eos_token is {args.eos_token!r}, which the tokenizer does not know; give one of its tokens."
            )
        tokenizer.eos_token = args.eos_token
    if not any((args.pad_token, tokenizer.pad_token, tokenizer.eos_token)):
        raise InputError(
            "The tokenizer names neither a pad_token nor an eos_token, one of which batches are padded with; put the model's "
            "tokenizer_config.json beside its tokenizer.json."
        )
    if path := args.chat_template_path:
        if not Path(path).is_file():
            raise InputError(
                f"chat_template_path is {path}, and no file; another model's template may need tokens that this one lacks: "
                "save the template to a .jinja file, or set the tokenizer's chat_template."
            )
        tokenizer.chat_template = chat.read_template(str(path))


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
        "dataset_kwargs with skip_prepare_dataset asks for rows unchecked; rows of input_ids and labels are taken as they "
        "are without it": (args.dataset_kwargs or {}).get("skip_prepare_dataset"),
        f"packing_strategy={args.packing_strategy!r} cuts answers, whose rest would count from position 1 again; use "
        "'bfd'": args.packing and args.packing_strategy != "bfd",
        "eval_packing must be as packing": args.eval_packing not in (None, args.packing),
        "truncation_mode='keep_end' cuts the beginning, where positions count from": args.truncation_mode == "keep_end",
        "an lm_head in the LoRA targets would not be trained; take it out": "lm_head" in targets,
    }
    for what, found in wrong.items():
        if found:
            raise InputError(f"{what}; leave that setting out." if ";" not in what else f"{what}.")
