"""Tiny models and data sets for `trl_suite.py`, in folders that are called as those on the hub are.

Knows which models TRL's tests ask for (their names are read from the tests); takes chat templates from the installed TRL.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OWNER = "trl-internal-testing"
TINY: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 2048,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 4, "initializer_range": 0.2, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1,
    "layer_types": None, "rope_scaling": None,
}  # fmt: skip
TEMPLATES = {  # the first that a model's name begins with
    "Qwen2ForCausalLM-2.5": "qwen2_5", "Qwen3": "qwen3", "LlamaForCausalLM-3.2": "llama3_2", "LlamaForCausalLM-3.1": "llama3_1",
    "LlamaForCausalLM-3": "llama3", "Cohere2": "cohere2", "Cohere": "cohere", "Gemma": "gemma", "Glm4Moe": "glm4moe",
    "GptOss": "gptoss", "Lfm2ForCausalLM-2.5": "lfm2_2_5", "Lfm2": "lfm2", "NemotronH": "nemotron_3_nano", "Phi3": "phi3",
    "DeepseekV3": "deepseekv3", "Olmo3": "qwen2_5", "Mistral": "qwen2_5",
}  # fmt: skip
ENDS = ("<|im_end|>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>", "<end_of_turn>", "<|return|>", "<|end|>", "<|endoftext|>",
        "<｜end▁of▁sentence｜>")  # fmt: skip
CONTROL = re.compile(r"<\|\w+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_turn>|</?think>|</?tool_(?:call|response)>")
LINES = [
    "Bread wants time.", "Flour and water are enough.", "Salt is added late.", "A warm room helps.", "Fold the dough twice.",
    "Let it rest for an hour.", "Heat the oven first.", "Steam makes a crust.", "Do not open the door.", "Wait for the colour.",
    "Knock on the bottom.", "A hollow sound is good.", "Cool it on a rack.", "Cut it when it is cold.", "Old bread makes soup.",
    "Soup wants time too.", "Keep some dough back.", "It is the next bread.", "Share what is left.",
]  # fmt: skip
TRAIN = 17  # lines to train on; the others are the test split
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}  # fmt: skip


def write_all(work: Path, suite: str, kind: str) -> None:
    """Every model and data set that TRL's tests name, under `work`; what cannot be made is left out.

    Args:
        suite: the text of TRL's tests.
        kind: texts, as TRL has them, or answers: the same lines as prompt and completion.
    """
    for name in sorted(set(re.findall(rf"{OWNER}/tiny-(\w+ForCausalLM[\w.-]*)", suite))):
        folder = work / OWNER / f"tiny-{name}"
        if not folder.exists():
            with contextlib.suppress(Exception):  # a model that this version of transformers makes otherwise
                write_model(folder, name)
    for name, configurations in data_sets(kind).items():
        write_data(work / OWNER / name, configurations)


def write_model(folder: Path, name: str) -> None:
    """A random model of that architecture with the chat template of its family."""
    import torch
    import transformers

    kind = getattr(transformers, re.match(r"\w+ForCausalLM", name)[0])  # type: ignore[index]
    tokenizer = tokenizer_for(next((file for start, file in TEMPLATES.items() if name.startswith(start)), None))
    known = kind.config_class()
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
           "bos_token_id": None}  # fmt: skip
    settings = {key: value for key, value in {**TINY, **ids}.items() if hasattr(known, key)}
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tokenizer_for(file: str | None) -> Any:
    """A small BPE tokenizer with the control tokens of one of TRL's chat templates; no template where `file` is None."""
    import trl
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    templates = Path(trl.__file__).parent / "chat_templates"
    template = (templates / f"{file}.jinja").read_text(encoding="utf-8") if file else None
    control = list(dict.fromkeys(["<pad>", "<bos>", "<eos>", *CONTROL.findall(template or "")]))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=alphabet, special_tokens=control, show_progress=False
    )
    backend.train_from_iterator([template or "", json.dumps(WEATHER), *LINES], trainer)
    end = next((token for token in ENDS if token in control), "<eos>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token=end, bos_token="<bos>", chat_template=template,
        extra_special_tokens=[token for token in control if token not in ("<pad>", "<bos>", end)], model_max_length=2048,
    )  # fmt: skip


def data_sets(kind: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The rows of every data set, by name and configuration."""

    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    halves = [(line[: len(line) // 2], line[len(line) // 2 :]) for line in LINES]
    chats = [
        [said("user", f"What of this: {a}?"), said("assistant", line)]
        for (a, _), line in zip(halves, LINES, strict=True)
    ]
    pairs: list[dict[str, Any]] = [{"prompt": a, "completion": b} for a, b in halves]
    asked = [{"prompt": chat[:1], "completion": chat[1:]} for chat in chats]
    called = {
        **said("assistant", ""),
        "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}],
    }
    tooled = [
        said("user", "How is the weather in Rome?"), called, {**said("tool", "sun, 20 degrees"), "name": "get_weather"},
        said("assistant", "It is sunny."),
    ]  # fmt: skip
    return {
        "zen": {
            "standard_language_modeling": [{"text": line} for line in LINES] if kind == "texts" else pairs,
            "conversational_language_modeling": [{"messages": chat} for chat in chats],
            "standard_prompt_completion": pairs,
            "conversational_prompt_completion": asked,
            "standard_implicit_prompt_preference": [{"chosen": line, "rejected": line[::-1]} for line in LINES],
        },
        "harmony": {"language_modeling": [{"messages": chat} for chat in chats], "prompt_completion": asked},
        "toolcall": {"language_modeling": [{"tools": json.dumps([WEATHER]), "messages": tooled}] * TRAIN},
    }


def write_data(folder: Path, configurations: Mapping[str, list[dict[str, Any]]]) -> None:
    """JSON lines, and the card by which `load_dataset` finds configurations and splits."""
    card = ["---", "configs:"]
    for name, rows in configurations.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        card += [f"- config_name: {name}", "  data_files:"]
        for split, part in (("train", rows[:TRAIN]), ("test", rows[TRAIN:] or rows[:2])):
            text = "".join(json.dumps(row) + "\n" for row in part)
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
            card += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]), encoding="utf-8")
