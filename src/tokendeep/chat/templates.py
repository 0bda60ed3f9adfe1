"""Chat templates: those that are shipped, a user's own, and the text that one makes of a conversation.

- Reasoning models are asked not to think.
- A system message with empty content means: no system prompt, not even the template's default one.
- A system message for a template without system role is an error: merging it elsewhere would be another prompt.
- Templates that print the date get a fixed one, so that today's ids are tomorrow's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from tokendeep import runs
from tokendeep.chat.ids import adds_bos, alike, control_words, memory
from tokendeep.errors import InputError, NoTemplate
from tokendeep.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOT = "tokendeep-slot"  # stands for an answer or a system prompt while the template is examined
GAP = "\ue0f0"  # a sign of no script, where another text will stand
_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Z]+\]")  # <start_of_turn>, [INST], also where the tokenizer does not know them
ROLE = 3  # words that a role takes at most, as in "GPT4 Correct User:"
TODAY = date(2024, 7, 26)  # the default of the Llama 3 templates
THINKING = ("enable_thinking", "thinking")  # Qwen3, GLM and SmolLM3; Granite and DeepSeek
ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(THINKING, False),
    "date_string": TODAY.strftime("%d %b %Y"),
}
DATE = "tokendeep_date"  # the tokenizer's attribute that holds another date
CODES = [f"%{flag}{code}" for code in "aAbBcdDeFGHIjmMpRSTuUVwWxXyYZ" for flag in ("-", "")]
# A template gets nothing from outside that it could call, so it is given what the fixed date reads as in each code.
STRFTIME = (
    "{%- macro strftime_now(format) -%}{%- set text = namespace(value=format) -%}"
    "{%- for code, value in tokendeep_codes -%}{%- set text.value = text.value.replace(code, value) -%}{%- endfor -%}"
    "{{- text.value -}}{%- endmacro %}\n"
)


def set_date(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """The day that templates of this tokenizer are told, as YYYY-MM-DD. Raises InputError where it is none."""
    vars(tokenizer)[DATE] = read_date(text)
    memory(tokenizer).clear()  # of prompts with another day


def date_of(tokenizer: PreTrainedTokenizerBase) -> date:
    """The day that templates of this tokenizer are told."""
    day: date = vars(tokenizer).get(DATE, TODAY)
    return day


def read_date(text: str) -> date:
    """A day from a text such as 2024-07-26. Raises InputError where it is none."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise InputError(f"--date is {text!r}, but must be a day such as {TODAY}.") from None


RESERVED = ("messages", "add_generation_prompt", "chat_template", "tokenize", "bos_token", "eos_token")


def with_system(messages: Sequence[Message], system: str) -> list[Message]:
    """The messages with another system prompt.

    Args:
        system: `default` changes nothing, `none` asks for none at all (an empty system message stands for that), any
            other text replaces the system prompt.
    """
    if system == "default":
        return list(messages)
    rest = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "" if system == "none" else system}, *rest]


def template_names() -> list[str]:
    """Names of the chat templates that come with tokendeep."""
    return sorted(p.name.removesuffix(".jinja") for p in _shipped().iterdir() if p.name.endswith(".jinja"))


def use_template(tokenizer: PreTrainedTokenizerBase, name_or_file: str) -> None:
    """Give the tokenizer a shipped chat template or that of a Jinja file.

    A shipped template that writes no BOS gets it where the tokenizer adds one to plain text, so that the tokenizer,
    once saved, does the same everywhere.

    Raises:
        InputError: neither a known name nor a readable file, or a template that is no valid Jinja.
    """
    text = read_template(name_or_file)
    if name_or_file in template_names() and "bos_token" not in text and adds_bos(tokenizer):
        text = "{{- bos_token }}" + text
    tokenizer.chat_template = text


def read_template(name_or_file: str) -> str:
    """The text of a shipped chat template or of a Jinja file. Raises InputError as `use_template`."""
    import jinja2

    if name_or_file in template_names():
        return (_shipped() / f"{name_or_file}.jinja").read_text(encoding="utf-8")
    file = runs.user_file(name_or_file)
    try:
        text = file.read_text(encoding="utf-8-sig")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except FileNotFoundError:
        known = ", ".join(template_names())
        raise InputError(f"No chat template {name_or_file}: name a Jinja file or one of {known}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"The chat template {name_or_file} cannot be read: {error}.") from error
    except jinja2.TemplateSyntaxError as error:
        if "Encountered unknown tag" not in str(error):  # such as {% generation %}, which transformers knows
            raise InputError(
                f"The chat template {name_or_file}, line {error.lineno}, is no valid Jinja: {error.message}."
            ) from error
    if not text.strip():
        raise InputError(f"The chat template {name_or_file} is empty: write one or name one that is shipped.")
    return text


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the chat template's text. Raises InputError where there is none."""
    return runs.sha256_text(template(tokenizer))


def template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the chat template that is used."""
    if not tokenizer.chat_template:
        raise NoTemplate(
            "The tokenizer has no chat template: give one with --chat-template "
            f"({', '.join(template_names())}, or a Jinja file)."
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:  # several named ones and none called default
        raise InputError(
            "The tokenizer has several chat templates and no default one: give one with --chat-template."
        ) from error


def _shipped() -> Any:
    return resources.files("tokendeep") / "assets" / "templates"


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation: bool,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """The text for these messages, where an empty system message means that there is no system prompt at all.

    Args:
        arguments: what the row gives to the template beside the messages, such as `tools`.
    """
    arguments = arguments or {}
    if not messages or messages[0]["role"] != "system":
        return _apply(tokenizer, messages, generation, arguments)
    kind, _ = system_of(tokenizer)
    if messages[0]["content"].strip():
        if kind in ("refused", "ignored"):
            raise InputError(
                "The chat template has no system role: leave --system at default, or put these words into the user's message."
            )
        return _apply(tokenizer, messages, generation, arguments)
    if kind == "refused" or (kind != "default" and not _speaks_first(tokenizer)):
        return _apply(tokenizer, messages[1:], generation, arguments)
    if kind == "ignored":
        raise InputError(
            "The chat template always writes words of its own before the conversation, which --system none cannot take out: "
            "leave the system prompt at default, or give another template."
        )
    if arguments.get("tools"):
        raise InputError("The chat template writes tools into its system prompt, which is to be taken out: keep one.")
    slot: Message = {"role": "system", "content": SLOT}
    block = _apply(tokenizer, [slot], False, arguments)
    text = _apply(tokenizer, [slot, *messages[1:]], generation, arguments)
    if SLOT not in block or not text.startswith(block):
        raise InputError("The chat template inserts a system prompt that cannot be taken out: give --system a text.")
    rest, bos = text[len(block) :], tokenizer.bos_token
    return bos + rest if bos and block.startswith(bos) and not rest.startswith(bos) else rest


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    generation: bool,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """The template's own text for these messages."""
    turns: list[Any] = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
    text, dated = _dated(template(tokenizer), date_of(tokenizer))
    more = {**dated, **(arguments or {})}
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, chat_template=text, tokenize=False, add_generation_prompt=generation, **more
            )
        )
    except Exception as error:  # a template is a program of its own, which can fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"The chat template cannot render this conversation ({reason}): check its roles.") from error


def _dated(text: str, day: date) -> tuple[str, dict[str, Any]]:
    """The template's text, where the date is the given one, and the arguments to render it with."""
    arguments = {**ARGUMENTS, "date_string": day.strftime("%d %b %Y")}
    if "strftime_now" not in text:
        return text, arguments
    midnight = datetime(day.year, day.month, day.day)
    return STRFTIME + text, {**arguments, "tokendeep_codes": [[code, midnight.strftime(code)] for code in CODES]}


def check_arguments(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
    """Raises InputError for what a row gives to the chat template and the template does not look at."""
    words = set(re.findall(r"\w+", template(tokenizer)))
    for name in arguments:
        if name not in words or name in RESERVED:
            what = "the row's tools" if name == "tools" else f"{name} of the row's chat_template_kwargs"
            raise InputError(f"The chat template does not know {what}: take it out, or give a template that uses it.")


def system_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    """What the template does with a system message (see TemplateFacts.system), and its default system prompt."""
    known = memory(tokenizer)
    key = ("system", template(tokenizer))
    facts = known.get(key)
    if facts is None:
        facts = known[key] = _examine_system(tokenizer)
    return facts


def _examine_system(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str | None]:
    user: Message = {"role": "user", "content": "Hello there"}
    slot: Message = {"role": "system", "content": SLOT}
    plain = _apply(tokenizer, [user], True)
    try:
        text = _apply(tokenizer, [slot, user], True)
    except InputError:
        return "refused", None
    if SLOT not in text:
        return "ignored", None
    before, after = text.split(SLOT, 1)
    same_frame = plain.startswith(before) and plain.endswith(after) and len(plain) >= len(before) + len(after)
    default = plain[len(before) : len(plain) - len(after)]
    if not same_frame or not (default or _stands_alone(tokenizer, slot)):
        return "role", None
    return "default", default


def _speaks_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True when words that stay whatever the system prompt is begin a conversation (gpt-oss, Command R7B, Phi-4-reasoning)."""
    known = memory(tokenizer)
    key = ("first words", template(tokenizer))
    if key not in known:
        user: Message = {"role": "user", "content": SLOT}
        first = _apply(tokenizer, [user], True).partition(SLOT)[0]
        if system_of(tokenizer)[0] == "role":
            first = first[: alike(first, _apply(tokenizer, [{"role": "system", "content": GAP}, user], True))]
        known[key] = len(re.findall(r"[^\W\d_]{2,}", _MARK.sub(" ", control_words(tokenizer).sub(" ", first)))) > ROLE
    speaks: bool = known[key]
    return speaks


def _stands_alone(tokenizer: PreTrainedTokenizerBase, slot: Message) -> bool:
    """True when the template has a turn of its own for the system prompt, rather than a place in the user's."""
    try:
        return SLOT in _apply(tokenizer, [slot], False)
    except InputError:
        return False
