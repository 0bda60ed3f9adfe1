"""The Inspect AI model provider `tokendeep`: local models, prefilled with exact token ids.

Knows how a conversation becomes a generation request and which other providers take a prefill as text. Knows nothing
of attacks or judges. Importing it loads no torch: tokenizer and weights come with the first request.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    get_model,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from tokendeep import chat, models, runs
from tokendeep.defences import DEFENCES, Ask
from tokendeep.defences.options import DefenceOptions
from tokendeep.engines.base import MOST_ROWS, Completion, Request
from tokendeep.engines.options import ANSWER, IN_FLIGHT, LOCAL, EngineOptions
from tokendeep.errors import InputError, did_you_mean
from tokendeep.evals.sentences import one_sentence
from tokendeep.models.options import ModelOptions
from tokendeep.types import Decoding, Message, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokendeep.engines.local import LocalEngine
    from tokendeep.engines.server.engine import ServerEngine
    from tokendeep.engines.server.handshake import Handshake

NAME = "tokendeep"
SERVING = frozenset({"vllm", "sglang", "sagemaker"})  # Inspect providers that need no prefix on our command line
CLOSED = (
    "closed"  # in the metadata of a final assistant message: the conversation is put as it stands, and not continued
)
EXACT, CHOICES = (
    "exact_ids",
    "choices",
)  # in the metadata of the last message: the prompt's ids; tokens to choose between
CLOSING = frozenset({"hf"})  # those that never go on from a final assistant message
MAX_CONNECTIONS = 4096  # requests under way at once: the engine orders its queue itself, so let it see all of it
QUEUED = 8  # batches of samples under way in each task: prefixes are shared, and the first batch starts at once
DEFAULT_MAX_TOKENS = 512
UNSUPPORTED = ("stop_seqs", "num_choices", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "best_of")
# How a model is loaded. Inspect knows a cut-off evaluation again by the arguments in their order, so it stays.
OPTIONS = ("dtype", "device", "device_map", "revision", "chat_template", "trust_remote_code", "allow_pickle", "date")
DEFENDED = tuple(field.name for field in fields(DefenceOptions))


class TokendeepAPI(ModelAPI):
    """Inspect's view of a model that is given token ids: `tokendeep/PATH`, `tokendeep/HUB_ID` or `tokendeep/smollm2`.

    A final assistant message is continued, not closed: from the token ids in its metadata's `prefix_ids` (a list, or
    text such as "12 7 88") where they are given, else from its text. The beginning-of-sequence token is there once, as
    the chat template puts it.

    Args:
        model_name: what `models.load` takes.
        subject: a loaded model to use instead (see `live_model`).
        batch_size: rows decoded together; 0 is what the memory holds.
        adapter_base: the base of an adapter, where it cannot be found by itself.
        engine: who answers: "local", or addresses of servers, as in `engines.options.EngineOptions`; also `engine_model`,
            `api_key_env`, `in_flight` and `answer_timeout`.
        max_retries: how often a server that fails is asked again.
        needs_template: False for a model that gets its prompts as token ids alone.
        options: fields of `config.ModelOptions`, for example `-M dtype=bfloat16`; and those of `DefenceOptions`, such as
            `-M defence=rethink`.

    Raises:
        InputError: an unknown option or a model that cannot be there.
    """

    @one_sentence
    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (Inspect's own default)
        *,
        subject: Subject | None = None,
        batch_size: int = 0,
        adapter_base: str | None = None,
        engine: str | list[str] = LOCAL,
        engine_model: str | None = None,
        api_key_env: str | None = None,
        in_flight: int = IN_FLIGHT,
        answer_timeout: int = ANSWER,
        max_retries: int = 6,
        needs_template: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        self.batch_size = batch_size
        self.adapter_base = adapter_base
        self.needs_template = needs_template
        self.defence = DefenceOptions(**{name: options.pop(name) for name in DEFENDED if name in options})
        self.defence.check_defence()
        self.options = _model_options(options)
        self.subject = subject
        self._tokenizer = subject.tokenizer if subject else None
        where = engine if isinstance(engine, str) else ",".join(engine)  # Inspect makes a list where there are commas
        self.place = EngineOptions(
            engine=where,
            engine_model=engine_model,
            api_key_env=api_key_env,
            in_flight=in_flight,
            answer_timeout=answer_timeout,
        )
        self.place.check_engine(self.options)
        self.max_retries = max_retries
        self._engine: LocalEngine | ServerEngine | None = None
        self._defended: Ask = self._ask
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        if self.served:
            models.check_tokenizer(model_name, self.options, base=adapter_base, needs_template=needs_template)
        elif subject is None:
            models.check_spec(model_name, self.options, base=adapter_base, needs_template=needs_template)

    @property
    def served(self) -> bool:
        """Whether a server has the weights."""
        return self.place.served

    @property
    def queue(self) -> int:
        """How many requests it is good to have waiting: prefixes are shared here, and no server runs dry."""
        if self.served:
            return 2 * self.place.in_flight * len(self.place.engine.split(","))
        return QUEUED * (self.batch_size or MOST_ROWS)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The victim's tokenizer, loaded without the weights."""
        if self._tokenizer is None:
            needs = self.needs_template
            self._tokenizer = models.load_tokenizer(
                self.model_name, self.options, base=self.adapter_base, needs_template=needs
            )
        return self._tokenizer

    def max_tokens(self) -> int | None:
        return DEFAULT_MAX_TOKENS

    def max_connections(self) -> int:
        return MAX_CONNECTIONS

    def connection_key(self) -> str:
        return f"{self.model_name}:{id(self)}"

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Continue the conversation; the row waits for its place in a batch without blocking others.

        Raises:
            InputError: tools or sampling settings this provider does not have, a prompt longer than the context, or
                logits that are NaN or infinite.
        """
        _check_request(tools, config)
        if self._failure is not None:
            raise self._failure
        if self._engine is None:
            await anyio.to_thread.run_sync(self.start)
        decoding = decoding_of(config)
        prompt, prefix = self._ids(input)
        choices = (input[-1].metadata or {}).get(CHOICES, ()) if input else ()
        request = Request((*prompt, *prefix), decoding, tuple(choices), len(prefix))
        completion = await self._defended(request)
        return self._output(prompt, prefix, decoding, completion)

    async def _ask(self, request: Request) -> Completion:
        return await asyncio.shield(asyncio.wrap_future(self._running().submit(request)))

    def check(self, input: Sequence[ChatMessage]) -> None:
        """Raises InputError for a conversation that the chat template cannot render."""
        self._ids(input)

    def close(self) -> None:
        """Stop the engine; the next request starts another one."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def fail(self, error: Exception) -> None:
        """Give up: every request that waits or comes later ends with `error`."""
        self._failure = error
        self.close()

    async def aclose(self) -> None:
        self.close()

    def load(self) -> Subject:
        """The model with its weights, loaded once. Raises InputError where a server has them."""
        if self.served:
            raise InputError(f"The weights of {self.model_name} are on a server: leave --engine out to load them here.")
        if self.subject is None:
            needs = self.needs_template
            self.subject = models.load(
                self.model_name, base=self.adapter_base, options=self.options, needs_template=needs
            )
            self._tokenizer = self.subject.tokenizer
        return self.subject

    def about(self) -> dict[str, Any]:
        """What the model is known by, found out without loading it; of one on a server what the server says."""
        if self.served:
            known: dict[str, Any] = {"engine": self.serving()}
        elif (loaded := self.subject) is None:
            known = models.facts(self.model_name, self.options, base=self.adapter_base)
        else:
            known = {"revision": loaded.revision, "adapter": loaded.adapter, "dtype": loaded.dtype}
        template = chat.template_hash(self.tokenizer) if self.needs_template else None
        return {**known, "template": template, "date": str(chat.date_of(self.tokenizer))}

    def serving(self) -> dict[str, Any]:
        """What the handshake has found out of the server. Raises InputError where there is none that can be used."""
        return self._met().dump()

    @property
    def picks(self) -> bool:
        """Whether the chances of chosen tokens can be had."""
        return not self.served or self._met().picks

    def _met(self) -> Handshake:
        self.start()
        about: Handshake = self._running().about  # type: ignore[union-attr]
        return about

    @functools.cached_property
    def known(self) -> str:
        """Its name with a hash of weights and template, which tell verdicts of one grader from those of another."""
        about = self.about()
        if self.served:
            facts = [str(self._met().identity), str(about["template"])]
        else:
            facts = [str(about.get(name)) for name in ("revision", "adapter", "dtype", "template")]
        return f"{NAME}/{self.model_name} ({runs.sha256_text(' '.join(facts))[:8]})"

    def start(self) -> None:
        """Start the engine once for all tasks; a failure is kept, and every waiting request gets it."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._engine is not None:
                return
            try:
                if self.defence.defence:  # first, for it can say that a template is of no use to it
                    one = DEFENCES[self.defence.defence]
                    self._defended = one.wrap(self._ask, self.tokenizer, one.of(self.defence))
                self._engine = self._open()
            except Exception as error:
                self._failure = error
                raise

    def _open(self) -> LocalEngine | ServerEngine:
        if self.served:
            from tokendeep.engines.server.engine import connect

            needs = self.needs_template
            known = models.outline(self.model_name, self.options, base=self.adapter_base, needs_template=needs)
            return connect(self.place, self.tokenizer, known, self.max_retries)
        from tokendeep.engines.local import LocalEngine

        return LocalEngine(self.load(), self.batch_size)

    def _ids(self, input: Sequence[ChatMessage]) -> tuple[list[int], list[int]]:
        """Token ids of the prompt (generation prompt included) and of the answer prefix."""
        if input and (given := (input[-1].metadata or {}).get(EXACT)) is not None:
            return list(given), []
        last = input[-1] if input and isinstance(input[-1], ChatMessageAssistant) else None
        messages = [Message(role=message.role, content=message.text) for message in (input[:-1] if last else input)]
        if last is not None and (last.metadata or {}).get(CLOSED):
            return chat.closed_ids(self.tokenizer, [*messages, Message(role="assistant", content=last.text)]), []
        inside = last is not None and (last.metadata or {}).get("thinking")
        prompt = (chat.thinking_ids if inside else chat.prompt_ids)(self.tokenizer, messages)
        if last is None:
            return prompt, []
        exact = (last.metadata or {}).get("prefix_ids")
        if exact is None:
            exact = chat.response_ids(self.tokenizer, messages, last.text, end=False)
        return prompt, [int(token) for token in (exact.split() if isinstance(exact, str) else exact)]

    def _running(self) -> LocalEngine | ServerEngine:
        if self._engine is None:
            raise self._failure or RuntimeError("the provider was closed while requests were waiting")
        return self._engine

    def _output(self, prompt: list[int], prefix: list[int], decoding: Decoding, completion: Completion) -> ModelOutput:
        """The continuation alone, spelled so that prefix and continuation put together are the whole answer."""
        text, whole = completion.text, None
        if prefix:
            head = chat.decode(self.tokenizer, prefix)
            whole = chat.decode(self.tokenizer, [*prefix, *completion.ids])
            if whole.startswith(head):
                text = whole[len(head) :]
        message = ChatMessageAssistant(content=text, source="generate", model=self.model_name)
        stop: Literal["max_tokens", "stop"] = "max_tokens" if completion.truncated else "stop"
        seconds = None if self.served else completion.seconds
        given, new = len(prompt) + len(prefix), len(completion.ids)
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason=stop)],
            usage=ModelUsage(input_tokens=given, output_tokens=new, total_tokens=given + new),
            metadata={
                "seed": decoding.seed, "prefix_tokens": len(prefix), "answer": whole, "seconds": seconds,
                **({CHOICES: completion.chances} if completion.chances else {}),
                **({"checks": completion.checks} if self.defence.defence else {}),
            },
        )  # fmt: skip


@modelapi(name=NAME)
def provider() -> type[ModelAPI]:
    """The provider under its name in Inspect."""
    return TokendeepAPI


def live_model(subject: Subject, *, batch_size: int = 0, defended: Mapping[str, Any] | None = None) -> Model:
    """An Inspect model around one that is already in memory. It is never memoised, and its log names it only."""
    more = {"subject": subject, "batch_size": batch_size, **(defended or {})}
    model = get_model(f"{NAME}/{subject.name}", memoize=False, **more)
    for name in ("subject", "batch_size"):
        model.model_args.pop(name)
    return model


def prefill_route(model: Model, continues: bool = False) -> Literal["ids", "text"]:
    """How `model` takes a prefill: as token ids (ours) or as the text of a final assistant message.

    Whether a server does continue that message is asked before the first prefill (`evals.served`).

    Args:
        continues: the user says that this provider's server does continue a final assistant message.

    Raises:
        InputError: it takes none: the prefill would be lost without a word.
    """
    provider = str(model).split("/")[0]
    if isinstance(model.api, TokendeepAPI):
        if continues:
            raise InputError("continues is for models that run elsewhere: leave it out, a local model always does.")
        return "ids"
    if provider in CLOSING and not continues:
        raise InputError(
            f"The provider '{provider}' closes a final assistant message, so the prefill would be lost: use {NAME}/PATH."
        )
    return "text"


def _model_options(options: dict[str, Any]) -> ModelOptions:
    for name in options:
        if name == "system":
            raise InputError("The system prompt is a setting of the task, not of the model: give -T system=TEXT.")
        if name not in OPTIONS:
            raise InputError(f"Unknown model option '{name}'; {did_you_mean(name, (*OPTIONS, *DEFENDED))}.")
    if "date" in options:  # Inspect's command line reads it as one
        options = {**options, "date": str(options["date"])}
    return ModelOptions(**options)


def _check_request(tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
    if tools:
        raise InputError(f"The {NAME} provider has no tools: run this task without them.")
    for name in UNSUPPORTED:
        if getattr(config, name, None):
            raise InputError(f"The {NAME} provider does not know the setting {name}: leave it out.")


def decoding_of(config: GenerateConfig) -> Decoding:
    """Greedy unless a temperature is given."""
    return Decoding(
        temperature=config.temperature or 0.0,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        max_new_tokens=config.max_tokens or DEFAULT_MAX_TOKENS,
        seed=config.seed or 0,
    )
