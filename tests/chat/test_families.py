"""What tokenizers and chat templates of published families do besides the common: each built small, with the flags of its
tokens and a template in our words that writes the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import processors
from transformers import AddedToken

from conftest import build_tokenizer
from tokendeep import chat
from tokendeep.chat import templates
from tokendeep.engines.architecture import ends_of
from tokendeep.engines.base import Request
from tokendeep.engines.server import answers
from tokendeep.engines.server.dialects import Ask, Reply
from tokendeep.errors import InputError
from tokendeep.types import IGNORE, Decoding

USER: list[Any] = [{"role": "user", "content": "How do I bake bread?"}]
TURNS: list[Any] = [
    *USER,
    {"role": "assistant", "content": "Mix flour with water."},
    {"role": "user", "content": "And then?"},
]
ANSWER = "Sure, here is a short list:\n1. First, open the window.\n\n2. Then <td>water</td> the plants."


def mark(content: str, *, special: bool = True, lstrip: bool = False, rstrip: bool = False) -> AddedToken:
    return AddedToken(content, normalized=False, special=special, lstrip=lstrip, rstrip=rstrip)


def marks(*contents: str, **flags: bool) -> list[AddedToken]:
    return [mark(content, **flags) for content in contents]


@dataclass(frozen=True)
class Family:
    """How a family is built, and what must be found out of it.

    Attributes:
        marks: its control tokens.
        end: what closes an answer.
        header: what closes an answer and opens the next; None where that is told elsewhere.
        whole: whether the template writes a conversation as it asks for the answer: it does not where it takes thoughts out,
            nor where it marks no end of an answer.
        text: added tokens that are text.
        stop: what ends an answer while it is generated, where that is not the end.
    """

    kind: str
    bos: str | None
    eos: str
    marks: list[AddedToken]
    template: str
    end: str
    header: str | None
    whole: bool = True
    adds_bos: bool = False
    text: tuple[str, ...] = ()
    stop: str | None = None


PHI = [  # white space behind most of these is eaten
    *marks("<s>", "<|endoftext|>"),
    mark("</s>", special=False, rstrip=True),
    *marks("<|assistant|>", "<|user|>", "<|system|>", "<|end|>", rstrip=True),
]
PHI_35 = (  # a conversation without a generation prompt ends with EOS, behind the end of the turn
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_3 = (  # the header of the answer belongs to the user's turn
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n<|assistant|>\n' }}"
    "{% else %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)
PHI_4 = marks("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", lstrip=True, rstrip=True)
SEPARATED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
LLAMA_3 = (  # the first one, which always writes the header of an answer
    "{% for m in messages %}{{ bos_token if loop.first }}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
DEEPSEEK = marks("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>") + marks(
    "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", special=False
)
DEEPSEEK_31 = (  # an answer without thoughts begins behind the end of a block that nothing opens
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜></think>"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜></think>{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>"
    "{{ m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
GLM = marks("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>")
GLM_4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
OLMO_2 = (  # BOS is EOS
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
    "{{ '\n' if not loop.last }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MINICPM = (
    "{% for m in messages %}{% if m.role == 'user' %}<用户>{{ m.content }}<AI>{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}"
)
NEMOTRON_MINI = (
    "<extra_id_0>System\n\n{% for m in messages %}<extra_id_1>{{ m.role.title() }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<extra_id_1>Assistant\n{% endif %}"
)
NEMO = (
    "{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
GPT_OSS = (  # an answer ends in another way where the conversation goes on
    "<|start|>system<|message|>You are ChatGPT, a large language model.<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}"
    "<|start|>{{ 'developer' if m.role == 'system' else m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
QWEN_15 = (  # the first one, which leaves the last turn open
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% if add_generation_prompt or not loop.last %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COMMAND = marks(
    "<BOS>", "<|END_OF_TURN|>", "<|START_OF_TURN|>", "<|SYSTEM|>", "<|USER|>", "<|CHATBOT|>", "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
)  # fmt: skip
COMMAND_R7B = (
    "{{ bos_token }}<|START_OF_TURN|><|SYSTEM|># System Preamble\nYou are in contextual safety mode.{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '\n# Developer Preamble\n' + m.content }}{% endif %}{% endfor %}"
    "<|END_OF_TURN|>{% for m in messages %}{% if m.role == 'user' %}"
    "<|START_OF_TURN|><|USER|>{{ m.content }}<|END_OF_TURN|>{% elif m.role == 'assistant' %}<|START_OF_TURN|><|CHATBOT|>"
    "<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|><|END_OF_TURN|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN|><|CHATBOT|><|START_RESPONSE|>{% endif %}"
)
APERTUS = (
    "{{ bos_token }}<|system_start|>"
    "{{ messages[0].content if messages[0].role == 'system' else 'You are Apertus.' }}<|system_end|>"
    "<|developer_start|>Deliberation: disabled<|developer_end|>"
    "{% for m in messages if m.role != 'system' %}<|{{ m.role }}_start|>"
    "{{ m.content }}<|{{ m.role }}_end|>{% endfor %}{% if add_generation_prompt %}<|assistant_start|>{% endif %}"
)
NEMOTRON_2 = (
    "<SPECIAL_10>System\n\n{% for m in messages %}<SPECIAL_11>{{ m.role.title() }}\n{{ m.content }}"
    "{{ '\n<SPECIAL_12>\n' if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<SPECIAL_11>Assistant\n<think></think>{% endif %}"
)
DIALOGPT = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"

LLAMA_3_SYSTEM = "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>" + LLAMA_3.replace(
    "{{ bos_token if loop.first }}", ""
)

PHI_HEADER = "<|end|>\n<|assistant|>\n"
LLAMA_HEADER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
SENTENCE = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
OF_LLAMA_3 = marks(
    "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>"
)
ROLES = ("system", "developer", "user", "assistant")
FAMILIES = {
    "Phi-3.5": Family("llama", "<s>", "<|endoftext|>", PHI, PHI_35, "<|end|>", PHI_HEADER),
    "Phi-3": Family("llama", "<s>", "<|endoftext|>", PHI, PHI_3, "<|end|>", PHI_HEADER),
    "Phi-3.5 unigram": Family("unigram", "<s>", "<|endoftext|>", PHI, PHI_35, "<|end|>", PHI_HEADER),
    "Phi-4-mini": Family(
        "byte-level", "<|endoftext|>", "<|endoftext|>", PHI, PHI_35.replace("\n", ""), "<|end|>", "<|end|><|assistant|>"
    ),
    "Phi-4": Family(
        "byte-level", "<|endoftext|>", "<|im_end|>", PHI_4, SEPARATED, "<|im_end|>", "<|im_end|><|im_start|>assistant<|im_sep|>"
    ),
    "Llama 3, first": Family(
        "byte-level", "<|begin_of_text|>", "<|end_of_text|>", OF_LLAMA_3, LLAMA_3, "<|eot_id|>", LLAMA_HEADER, adds_bos=True
    ),
    "Llama 3, with a system prompt": Family(
        "byte-level", "<|begin_of_text|>", "<|end_of_text|>", OF_LLAMA_3, LLAMA_3_SYSTEM, "<|eot_id|>", LLAMA_HEADER
    ),
    "DeepSeek-V3.1": Family(
        "byte-level", *SENTENCE, DEEPSEEK, DEEPSEEK_31, SENTENCE[1], f"{SENTENCE[1]}<｜Assistant｜></think>", adds_bos=True,
        text=("ö", "ü", "÷"),
    ),
    "DeepSeek-R1": Family(
        "byte-level", *SENTENCE, DEEPSEEK, DEEPSEEK_R1, SENTENCE[1],
        f"{SENTENCE[1]}<｜Assistant｜><think>\n\n</think>\n\n", whole=False, adds_bos=True,
    ),
    "GLM-4": Family(
        "byte-level", None, "<|endoftext|>", GLM, GLM_4, "<|endoftext|>", "<|endoftext|><|assistant|>\n", whole=False,
        stop="<|user|>",
    ),
    "OLMo 2": Family(
        "byte-level", "<|endoftext|>", "<|endoftext|>", marks("<|endoftext|>") + marks("|||EMAIL_ADDRESS|||", special=False),
        OLMO_2, "<|endoftext|>", "<|endoftext|><|assistant|>\n", text=("    ",),
    ),
    "MiniCPM": Family(
        "llama", "<s>", "</s>", marks("<s>", "</s>") + marks("<用户>", "<AI>", special=False), MINICPM, "</s>", "</s><AI>",
        whole=False, stop="<用户>",
    ),
    "Nemotron-Mini": Family(
        "byte-level", "<s>", "</s>", marks("<s>", "</s>", "<extra_id_0>", "<extra_id_1>"), NEMOTRON_MINI, "</s>", None,
        whole=False, stop="<extra_id_1>",
    ),
    "Mistral Nemo": Family(
        "byte-level", "<s>", "</s>", marks("<s>", "</s>", "[INST]", "[/INST]"), NEMO, "</s>", "</s>[/INST]", adds_bos=True
    ),
    "gpt-oss": Family(
        "byte-level", "<|startoftext|>", "<|return|>",
        marks("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"), GPT_OSS, "<|return|>",
        "<|return|><|start|>assistant<|channel|>final<|message|>",
    ),
    "Qwen1.5, first": Family(
        "byte-level", None, "<|im_end|>", marks("<|im_start|>", "<|im_end|>"), QWEN_15, "<|im_end|>",
        "<|im_end|>\n<|im_start|>assistant\n", whole=False,
    ),
    "Command R7B": Family(
        "byte-level", "<BOS>", "<|END_OF_TURN|>", COMMAND, COMMAND_R7B, "<|END_RESPONSE|><|END_OF_TURN|>",
        "<|END_RESPONSE|><|END_OF_TURN|><|START_OF_TURN|><|CHATBOT|><|START_RESPONSE|>", adds_bos=True,
    ),
    "Apertus": Family(
        "byte-level", "<s>", "</s>",
        marks("<s>", "</s>", *(f"<|{who}_{at}|>" for who in ROLES for at in ("start", "end"))),
        APERTUS, "<|assistant_end|>", "<|assistant_end|><|assistant_start|>", adds_bos=True,
    ),
    "Nemotron Nano 2": Family(
        "byte-level", "<s>", "<SPECIAL_12>",
        marks("<s>", "<SPECIAL_10>", "<SPECIAL_11>", "<SPECIAL_12>") + marks("<think>", "</think>", special=False), NEMOTRON_2,
        "\n<SPECIAL_12>", "\n<SPECIAL_12>\n<SPECIAL_11>Assistant\n<think></think>", whole=False,
    ),
    "DialoGPT": Family(
        "byte-level", "<|endoftext|>", "<|endoftext|>", marks("<|endoftext|>"), DIALOGPT, "<|endoftext|>", "<|endoftext|>"
    ),
}  # fmt: skip
_BUILT: dict[str, Any] = {}


def build(family: Family) -> Any:
    made = build_tokenizer(family.kind, control=["<pad>"], bos=None, eos="<pad>", template=family.template)
    made.add_tokens(family.marks)
    made.add_special_tokens({"extra_special_tokens": [token for token in family.marks if token.special]})
    made.add_tokens([AddedToken(text, special=False) for text in family.text])
    made.bos_token, made.eos_token = family.bos, family.eos
    if family.adds_bos:
        made._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, made.bos_token_id)]
        )
    for token in family.marks:
        kept = made.added_tokens_decoder[made.convert_tokens_to_ids(token.content)]
        assert (kept.special, kept.lstrip, kept.rstrip) == (token.special, token.lstrip, token.rstrip)
    return made


def tokenizer_of(name: str) -> Any:
    """The tokenizer of a family, built once."""
    if name not in _BUILT:
        _BUILT[name] = build(FAMILIES[name])
    return _BUILT[name]


def behind(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text behind a word."""
    word = tokenizer("x", add_special_tokens=False).input_ids
    ids: list[int] = tokenizer("x" + text, add_special_tokens=False).input_ids
    return ids[len(word) :]


def in_one_call(tokenizer: Any, messages: list[Any], generation: bool) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        messages, add_generation_prompt=generation, return_dict=False, **templates.ARGUMENTS
    )
    return ids


every = pytest.mark.parametrize("name", FAMILIES)


@every
@pytest.mark.parametrize("messages", [USER, TURNS], ids=["one turn", "many turns"])
def test_a_conversation_has_the_ids_that_the_template_gives(name: str, messages: list[Any]) -> None:
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    asked = in_one_call(tokenizer, messages, True)
    prompt = chat.prompt_ids(tokenizer, messages)
    assert prompt[: len(asked)] == asked
    row = chat.encode(tokenizer, messages, ANSWER).input_ids
    whole = in_one_call(tokenizer, [*messages, {"role": "assistant", "content": ANSWER}], False)
    answer = chat.response_ids(tokenizer, messages, ANSWER, end=False)
    if family.whole:
        assert row == whole[: len(row)]
    else:
        assert any(answer == whole[i : i + len(answer)] for i in range(len(whole)))
    context = chat.response_ids(tokenizer, messages, "Sure, here is", end=False)
    assert answer[: len(context)] == context
    assert chat.lead_ids(tokenizer, messages, "Sure, here is") == context


@every
def test_the_end_of_an_answer_is_that_of_its_turn(name: str) -> None:
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    ids = [label for label in chat.encode(tokenizer, TURNS, ANSWER).labels if label != IGNORE]
    end = behind(tokenizer, family.end)
    assert list(chat.check(tokenizer).end_ids) == end
    assert ids[-len(end) :] == end
    ends = {tokenizer.eos_token_id, end[-1]}
    assert ends_of((), tokenizer) == (ends | {tokenizer.convert_tokens_to_ids(family.stop)} if family.stop else ends)
    assert not ends_of((), tokenizer).intersection(ids[: -len(end)])


@every
def test_another_answer_is_opened_as_the_template_opens_one(name: str) -> None:
    tokenizer, header = tokenizer_of(name), FAMILIES[name].header
    if header is not None:
        assert chat.header_ids(tokenizer) == behind(tokenizer, header)


@every
def test_marks_are_no_text_and_text_is_no_mark(name: str) -> None:
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    control = chat.control_ids(tokenizer)
    assert {tokenizer.convert_tokens_to_ids(token.content) for token in family.marks} <= control
    assert control.isdisjoint(tokenizer.convert_tokens_to_ids(list(family.text)))
    said = chat.response_ids(tokenizer, USER, "".join(("Sure ", *family.text, "\nyes")), end=False)
    assert control.isdisjoint(said)


@pytest.mark.parametrize("name", ["Phi-3.5", "Phi-3", "Phi-3.5 unigram", "MiniCPM"])
def test_an_answer_behind_a_control_token_begins_as_a_text_does(name: str) -> None:
    """These tokenizers put a space before what follows a control token, so the model's first token is `▁Sure`."""
    tokenizer = tokenizer_of(name)
    first = chat.response_ids(tokenizer, USER, "the flour")[0]
    assert tokenizer.convert_ids_to_tokens(first).startswith("▁")
    prompt, context = chat.prompt_ids(tokenizer, USER), chat.response_ids(tokenizer, USER, "Mix", end=False)
    row = chat.encode(tokenizer, USER, "ing the flour", context_ids=context)
    assert row.input_ids[len(prompt) + len(context) :] == behind(tokenizer, "ing the flour" + FAMILIES[name].end)


def test_a_tokenizer_that_prefixes_the_first_text_alone_goes_on_without_a_space() -> None:
    """As SentencePiece's tokenizers do that are not called legacy."""
    from tokenizers import pre_tokenizers

    tokenizer = build(FAMILIES["Phi-3.5 unigram"])
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    row = chat.encode(tokenizer, USER, ANSWER).input_ids
    assert row == in_one_call(tokenizer, [*USER, {"role": "assistant", "content": ANSWER}], False)[: len(row)]
    assert not tokenizer.convert_ids_to_tokens(chat.response_ids(tokenizer, USER, "the flour")[0]).startswith("▁")


def test_a_system_prompt_that_stays_is_said() -> None:
    """Phi-4-reasoning leaves the user's system prompt out and writes its own."""
    tokenizer = build(FAMILIES["Phi-4"])
    tokenizer.chat_template = (
        "<|im_start|>system<|im_sep|>You are Phi, a language model.<|im_end|>"
        + SEPARATED.replace("in messages", "in messages if m.role != 'system'")
    )
    with pytest.raises(InputError, match="always writes words of its own"):
        chat.prompt_ids(tokenizer, chat.with_system(USER, "none"))


def test_a_servers_text_without_ids_begins_as_the_answer_does() -> None:
    tokenizer = tokenizer_of("Phi-3.5")
    prompt = tuple(chat.prompt_ids(tokenizer, USER))
    ids = tuple(chat.response_ids(tokenizer, USER, ANSWER, end=False))
    ask = Ask(Request(prompt, Decoding(max_new_tokens=200)), "phi", ends_of((), tokenizer), 0)
    reply = Reply(ANSWER, True, new_tokens=len(ids))
    assert answers.completion(tokenizer, ask, reply, len(tokenizer)).ids == ids


@pytest.mark.parametrize(
    "name", ["gpt-oss", "Command R7B", "Apertus", "Nemotron-Mini", "Nemotron Nano 2", "GLM-4", "Llama 3, first"]
)
def test_no_words_are_left_without_a_system_prompt(name: str) -> None:
    tokenizer = tokenizer_of(name)
    text = tokenizer.decode(chat.prompt_ids(tokenizer, chat.with_system(USER, "none")), skip_special_tokens=True)
    assert text.partition("How do I")[0].lower().split() in ([], ["user"], ["system", "user"])
    assert "Be brief." in tokenizer.decode(chat.prompt_ids(tokenizer, chat.with_system(USER, "Be brief.")))


def test_a_prompt_inside_a_thought_does_not_ask_for_none() -> None:
    """GLM-4.5 and Hunyuan write into the user's turn that no thoughts are wanted."""
    tokenizer = build(FAMILIES["GLM-4"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ '<think></think>\n' if m.role == 'assistant' }}{{ m.content }}"
        "{{ '/nothink' if m.role == 'user' and not enable_thinking }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{{ '\n<think></think>' if not enable_thinking }}{% endif %}"
    )
    assert tokenizer.decode(chat.prompt_ids(tokenizer, USER)).endswith("bread?/nothink<|assistant|>\n<think></think>\n")
    assert tokenizer.decode(chat.thinking_ids(tokenizer, USER)).endswith("bread?<|assistant|>\n<think>\n")


def test_an_answer_is_no_thought_where_the_template_makes_it_one() -> None:
    """Nemotron Nano 2 opens a block and leaves it open, whatever its arguments are, with an answer behind it too."""
    tokenizer = build(FAMILIES["Nemotron Nano 2"])
    tokenizer.chat_template = (
        "{% for m in messages %}<SPECIAL_11>{{ m.role.title() }}\n{{ '<think>\n\n' if m.role == 'assistant' and loop.last }}"
        "{{ m.content }}\n{{ '<SPECIAL_12>\n' if m.role == 'assistant' }}{% endfor %}"
        "{% if add_generation_prompt %}<SPECIAL_11>Assistant\n<think>\n\n{% endif %}"
    )
    prompt = chat.prompt_ids(tokenizer, TURNS)
    row = chat.encode(tokenizer, TURNS, ANSWER)
    assert tokenizer.decode(prompt).endswith("Assistant\n<think>\n\n\n</think>\n\n")
    assert tokenizer.decode(row.input_ids[len(prompt) :]) == f"{ANSWER}\n<SPECIAL_12>"
    assert row.labels[len(prompt) :] == row.input_ids[len(prompt) :]
    assert tokenizer.decode(chat.thinking_ids(tokenizer, USER)).endswith("Assistant\n<think>\n\n")


def test_a_block_that_is_closed_without_being_opened_is_opened_instead() -> None:
    tokenizer = tokenizer_of("DeepSeek-V3.1")
    assert tokenizer.decode(chat.thinking_ids(tokenizer, USER)).endswith("bread?<｜Assistant｜><think>")


def test_the_end_of_a_text_is_no_html_where_no_other_element_is_listed() -> None:
    tokenizer = build_tokenizer("byte-level", control=["<eos>"], bos=None, eos="<eos>", template="")
    tokenizer.add_tokens(marks("<s>", "</s>", special=False))
    struck = set(tokenizer.convert_tokens_to_ids(["<s>", "</s>"]))
    assert struck <= chat.control_ids(tokenizer)  # Phi-3
    tokenizer.add_tokens(marks("<table>", special=False))
    assert struck.isdisjoint(chat.control_ids(tokenizer))  # Gemma


@every
def test_a_text_behind_the_request_stands_in_the_open_prompt(name: str) -> None:
    tokenizer = tokenizer_of(name)
    before, after, spell = chat.open_prompt(tokenizer, TURNS)
    longer = [*TURNS[:-1], {"role": "user", "content": TURNS[-1]["content"] + " and salt"}]
    ids = spell([" and salt"])[0]
    assert ids == chat.prompt_ids(tokenizer, longer)
    assert ids[: len(before)] == before
    assert ids[len(ids) - len(after) :] == after
