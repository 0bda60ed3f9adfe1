"""How a model is loaded and talked to: the options that every verb with a model shares."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ModelOptions:
    """How to load a model and talk to it (shared by every verb that loads one).

    Args:
        dtype: auto, float32, bfloat16 or float16; auto is bfloat16 on a GPU that has it, else float32. deepen trains all
            weights in float32 only; with an adapter this is the frozen base's.
        device: auto, cpu, cuda, cuda:0 ...; auto is this process's GPU (the first, or one each under accelerate launch),
            else the CPU.
        device_map: accelerate's device map (for example auto) for models larger than one GPU.
        revision: branch, tag or commit of a hub model.
        chat_template: name of a shipped template or a Jinja file; needed when the tokenizer has none.
        system: a system prompt, none (an explicitly absent one) or default (what the template does by itself).
        trust_remote_code: run model code that comes with the weights.
        allow_pickle: load weights that are not safetensors.
    """

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    revision: str | None = None
    chat_template: str | None = None
    system: str = "default"
    trust_remote_code: bool = False
    allow_pickle: bool = False
