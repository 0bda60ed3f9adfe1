"""Conversations as token ids: THE tokenisation."""

from tokendeep.chat.tokens import (
    check,
    continuation_ids,
    control_ids,
    encode,
    lead_ids,
    open_prompt,
    prompt_ids,
    read_template,
    response_ids,
    template_hash,
    template_names,
    thinking_ids,
    use_template,
    with_system,
)

__all__ = [
    "check",
    "continuation_ids",
    "control_ids",
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
