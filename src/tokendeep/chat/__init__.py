"""Conversations as token ids: THE tokenisation."""

from tokendeep.chat.facts import check
from tokendeep.chat.ids import continuation_ids, control_ids
from tokendeep.chat.reasoning import answer, decode
from tokendeep.chat.templates import read_template, template_hash, template_names, use_template, with_system
from tokendeep.chat.tokens import encode, lead_ids, open_prompt, prompt_ids, response_ids, thinking_ids

__all__ = [
    "answer",
    "check",
    "continuation_ids",
    "control_ids",
    "decode",
    "encode",
    "lead_ids",
    "open_prompt",
    "prompt_ids",
    "read_template",
    "response_ids",
    "template_hash",
    "template_names",
    "thinking_ids",
    "use_template",
    "with_system",
]
