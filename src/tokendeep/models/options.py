"""How a model is loaded and talked to: the options that every verb with a model shares, with their help.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from cyclopts import Group, Parameter

loading = partial(Parameter, group=Group("Model", sort_key=2))
advanced = partial(Parameter, group=Group("Advanced", sort_key=9))


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How to load a model and talk to it (shared by every verb that loads one)."""

    system: Annotated[
        str, loading(help="System prompt; none is an explicitly absent one, default what the template does by itself.")
    ] = "default"
    chat_template: Annotated[
        str | None,
        loading(help="Name of a shipped chat template or a Jinja file; needed where the tokenizer has none."),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        loading(help="Number format of the weights; auto is bfloat16 on a GPU that has it, else float32."),
    ] = "auto"
    device: Annotated[
        str, loading(help="cpu, cuda, cuda:0 ...; auto is the GPU of this process, or the CPU where there is none.")
    ] = "auto"
    device_map: Annotated[
        str | None, advanced(help="Accelerate's device map, such as auto, for a model larger than one GPU.")
    ] = None
    revision: Annotated[str | None, advanced(help="Branch, tag or commit of a hub model.")] = None
    trust_remote_code: Annotated[
        bool, advanced(help="Run the Python code that comes with the weights; only where you trust their author.")
    ] = False
    allow_pickle: Annotated[
        bool, advanced(help="Load weights that are not safetensors, which can run code; only where you trust them.")
    ] = False
