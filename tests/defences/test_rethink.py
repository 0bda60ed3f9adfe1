"""The defence that lets a model begin its answer anew: where it looks, what stops it, and what it leaves as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import CONTROL, build_tokenizer, chatml
from tokendeep import chat
from tokendeep.chat.templates import read_template
from tokendeep.defences import DEFENCES, rethink
from tokendeep.defences.options import DefenceOptions
from tokendeep.engines import local
from tokendeep.engines.base import Completion, Request, TooLong
from tokendeep.errors import InputError
from tokendeep.types import Decoding, Message, Subject

ASKED: list[Message] = [{"role": "user", "content": "How do I bake bread?"}]
NO, YES = "I cannot help with that.", "Sure, mix the flour with water."


@dataclass
class Model:
    """Writes so many tokens, and refuses when asked anew behind one of some depths."""

    tokenizer: PreTrainedTokenizerFast
    length: int
    refuses_at: tuple[int, ...] = ()
    asked: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt = tuple(chat.prompt_ids(self.tokenizer, ASKED))
        self.header = tuple(chat.header_ids(self.tokenizer))

    async def __call__(self, request: Request) -> Completion:
        self.asked.append(request)
        depth = self.depth(request)
        if depth is None:
            return Completion(tuple(range(20, 20 + self.length)), "an answer", True, 1.0)
        return Completion((1, 2), NO if depth in self.refuses_at else YES, True, 0.5)

    def depth(self, request: Request) -> int | None:
        """The answer tokens before a check; None for the answer itself."""
        if request.ids[-len(self.header) :] != self.header or request.ids == self.prompt:
            return None
        return len(request.ids) - len(self.prompt) - len(self.header)

    def answer(self, given: int = 0, **options: int) -> Completion:
        """The defended model's answer behind so many given tokens."""
        ask = rethink.wrap(self, self.tokenizer, rethink.RethinkOptions(**options))
        request = Request((*self.prompt, *range(70, 70 + given)), Decoding(max_new_tokens=self.length), given=given)
        return asyncio.run(ask(request))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "length", "depths"),
    [(0, 24, []), (0, 25, [25]), (0, 60, [25, 50]), (10, 60, [10, 25, 50]), (25, 60, [25, 50, 75]), (30, 19, [30])],
)
def test_it_looks_behind_what_was_given_and_at_every_so_many_tokens(
    given: int, length: int, depths: list[int], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = Model(tiny_tokenizer, length)
    done = model.answer(given)
    assert [depth for depth, stopped in done.checks] == depths
    assert not any(stopped for _, stopped in done.checks)
    assert sorted(filter(None, map(model.depth, model.asked))) == depths
    assert (done.text, done.ids, done.truncated) == ("an answer", tuple(range(20, 20 + length)), True)
    assert done.seconds == 1.0 + 0.5 * len(depths)


def test_a_check_is_the_answer_so_far_then_the_header_and_greedy(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = Model(tiny_tokenizer, 30)
    model.answer(10, every=20, think_tokens=7)
    given, written = tuple(range(70, 80)), tuple(range(20, 50))
    first, answer, *others = model.asked
    assert first.ids == (*model.prompt, *given, *model.header)
    assert answer.ids == (*model.prompt, *given)
    assert [one.ids for one in others] == [
        (*model.prompt, *given, *written[: depth - 10], *model.header) for depth in (20, 40)
    ]
    assert {one.decoding for one in (first, *others)} == {Decoding(max_new_tokens=7)}


def test_a_refusal_stops_the_answer_and_a_canned_one_takes_its_place(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = Model(tiny_tokenizer, 60, refuses_at=(50,))
    done = model.answer(10)
    assert (done.text, done.truncated) == (rethink.REFUSAL, False)
    assert tiny_tokenizer.decode(done.ids) == rethink.REFUSAL
    assert done.checks == ((10, False), (25, False), (50, True))
    once = Model(tiny_tokenizer, 60, refuses_at=(10,))
    assert once.answer(10).checks == ((10, True),)
    assert len(once.asked) == 1, "nothing is written behind given tokens that are refused"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_that_is_never_stopped_is_the_undefended_one(temperature: float, tiny_subject: Subject) -> None:
    prompt = chat.prompt_ids(tiny_subject.tokenizer, ASKED)
    requests = [
        Request((*prompt, *range(30, 30 + given)), Decoding(temperature, max_new_tokens=40, seed=seed), given=given)
        for given in (0, 7, 10)
        for seed in (0, 1)
    ]
    plain = local.generate(tiny_subject, requests, batch_size=4)
    options = rethink.RethinkOptions(every=5, think_tokens=6)

    async def defended() -> list[Completion]:
        with local.LocalEngine(tiny_subject, 4) as engine:

            async def ask(request: Request) -> Completion:
                return await asyncio.wrap_future(engine.submit(request))

            wrapped = rethink.wrap(ask, tiny_subject.tokenizer, options)
            return list(await asyncio.gather(*map(wrapped, requests)))

    done = asyncio.run(defended())
    assert all(one.checks and not any(hit for _, hit in one.checks) for one in done)
    assert [replace(one, checks=()) for one in done] == plain


HEADERS = {
    "chatml": "<|im_end|>\n<|im_start|>assistant\n",
    "llama-3": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<end_of_turn>\n<start_of_turn>model\n",
    "llama-2": "</s><s> [/INST]",
    "mistral": "</s> [/INST]",
}


@pytest.mark.parametrize("name", HEADERS)
def test_the_header_is_what_the_template_writes_between_two_answers(name: str) -> None:
    marks = ["<s>", "</s>", *CONTROL, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<end_of_turn>"]
    template = chatml() if name == "chatml" else read_template(name)
    control = [*marks, "<start_of_turn>"]
    tokenizer = build_tokenizer("byte-level", control=control, bos="<s>", eos="</s>", template=template)
    assert tokenizer.decode(chat.header_ids(tokenizer)).replace(" </s>", "</s>") == HEADERS[name]


@pytest.mark.parametrize(
    ("end", "header", "written"),
    [
        ("\n", "assistant: ", "</s>\nassistant: "),  # the template marks no end of turn, so EOS does, as in rows
        ("", "<|im_start|>assistant\n", "</s><|im_start|>assistant\n"),
        (" END\n", "assistant: ", " END</s>\nassistant: "),
        ("<|im_end|>\n", "assistant: ", "<|im_end|>\nassistant: "),
        ("</s>", "assistant: ", "</s>assistant: "),
    ],
)
def test_an_answer_is_ended_before_another_one_begins(end: str, header: str, written: str) -> None:
    template = (
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + END }}{% endfor %}"
            "{% if add_generation_prompt %}HEADER{% endif %}"
        )
        .replace("HEADER", header.replace("\n", "{{ '\\n' }}"))
        .replace("END", repr(end))
    )
    if header.startswith("<"):
        template = template.replace("m['role'] + ': '", "'<|im_start|>' + m['role'] + '\\n'")
    control = ["<s>", "</s>", *CONTROL]
    tokenizer = build_tokenizer("byte-level", control=control, bos="<s>", eos="</s>", template=template)
    ids = chat.header_ids(tokenizer)
    assert "".join(tokenizer.decode([one]) for one in ids) == written
    answer = chat.response_ids(tokenizer, ASKED, "Mix it.")
    count = len(chat.response_ids(tokenizer, ASKED, "Mix it.", end=False))
    assert ids[: len(answer) - count] == list(answer)[count:], "an answer ends there as rows do"


def test_a_template_that_opens_no_answer_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = read_template("plain")
    with pytest.raises(InputError, match="writes nothing before an answer"):
        rethink.wrap(Model.__call__, tiny_tokenizer, rethink.RethinkOptions())  # type: ignore[arg-type]


def test_a_check_that_does_not_fit_says_what_it_adds(
    make_model: Callable[..., LlamaForCausalLM], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = Model(tiny_tokenizer, 30)

    async def ask(request: Request) -> Completion:
        if model.depth(request):
            raise TooLong("too long")
        return await model(request)

    defended = rethink.wrap(ask, tiny_tokenizer, rethink.RethinkOptions())
    with pytest.raises(InputError, match=r"rethink adds \d+ tokens behind an answer of 25"):
        asyncio.run(defended(Request(model.prompt, Decoding(max_new_tokens=30))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"defence": "retink"}, "Unknown defence 'retink'; did you mean rethink"),
        ({"defence": "rethink", "every": 0}, "--every is 0, but must be at least 1"),
        ({"think_tokens": 5}, "--think-tokens is for --defence rethink"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        DefenceOptions(**options).check_defence()  # type: ignore[arg-type]


def test_two_settings_are_called_differently() -> None:
    names = {
        DefenceOptions(defence="rethink", every=e, think_tokens=t).defence_name()
        for e, t in ((25, 20), (25, 9), (5, 20))
    }
    assert len(names) == 3
    assert DefenceOptions().defence_name() is None
    assert all(name == one.name for name, one in DEFENCES.items())
