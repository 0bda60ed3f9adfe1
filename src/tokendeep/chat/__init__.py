"""Conversations as token ids: THE tokenisation."""

from tokendeep.chat.facts import check
from tokendeep.chat.header import header_ids, opened
from tokendeep.chat.ids import continuation_ids, control_ids, document_ids
from tokendeep.chat.reasoning import answer, decode
from tokendeep.chat.templates import (
    date_of,
    read_date,
    read_template,
    set_date,
    template_hash,
    template_names,
    use_template,
    with_system,
)
from tokendeep.chat.tokens import closed_ids, encode, lead_ids, open_prompt, prompt_ids, response_ids, thinking_ids
