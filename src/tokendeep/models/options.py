"""How a model is loaded and talked to: the options that every verb with a model shares, with their help.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import Group, Parameter, Token

loading = partial(Parameter, group=Group("Model", sort_key=2))
advanced = partial(Parameter, group=Group("Advanced", sort_key=9))
T = TypeVar("T")
LARGEST = 2**63 - 1  # whole number that every library takes


def _words(tokens: Sequence[Token], commas: bool) -> list[str]:
    """The words of a list: `0,5`, `0 5` and `[0, 5]`; without `commas` a comma is part of a text."""
    text = " ".join(token.value for token in tokens).strip()
    if text.startswith("["):
        return [value if isinstance(value, str) else json.dumps(value) for value in json.loads(text)]
    values = [token.value for token in tokens]
    return [part.strip() for value in values for part in value.split(",") if part.strip()] if commas else values


def _converter(convert: Callable[[str], object], meaning: str, commas: bool = True) -> Callable[..., Any]:
    def converted(_type: object, tokens: Sequence[Token]) -> list[object]:
        try:
            values = [convert(word) for word in _words(tokens, commas)]
        except (ValueError, RecursionError):
            values = []
        if not values and tokens[0].value != "[]":
            raise ValueError(f"must be {meaning}")
        return values

    return converted


def own(kind: type[T], given: Any) -> T:
    """The options of one kind out of an object that has them and others.

    Args:
        kind: a dataclass of options.
    """
    return kind(**{field.name: getattr(given, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def whole_number(text: str) -> int:
    """The number in a text. Raises ValueError for no whole number, or one that does not fit into 64 bits."""
    value = int(text)
    check_range(value)
    return value


def number(text: str) -> float:
    """The number in a text. Raises ValueError for none, NaN or what is beyond the range of floats."""
    value = float(text)
    check_range(value)
    return value


def check_range(value: float) -> None:
    """Raises ValueError for NaN, and for what is too large for the libraries: infinity, whole numbers of over 64 bits."""
    if not (math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST):
        raise ValueError("out of range")


Ints = Annotated[list[int], Parameter(converter=_converter(whole_number, "whole numbers, such as 0,5,10"))]
Floats = Annotated[list[float], Parameter(converter=_converter(number, "numbers, such as 0.5,2,2"))]
Names = Annotated[list[str], Parameter(converter=_converter(str, "names, such as one,two"))]
TEXTS = Parameter(converter=_converter(str, "texts, each in quotes", commas=False))
Texts = Annotated[list[str], TEXTS]


AdapterBase = Annotated[
    str | None,
    loading(help="The full model that an adapter belongs to, where it lies elsewhere than the adapter says."),
]


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
    date: Annotated[
        str,
        advanced(
            help="Day that chat templates are told, which some of them write into the prompt; fixed, so that "
            "prompts are the same every day."
        ),
    ] = "2024-07-26"
