"""The attacks as Inspect tasks: `tokendeep/none`, `/prefill`, `/refusal-prefix`, `/decoding`, `/suffix`.

Knows how attacked prompts become samples and how a prefill reaches the model. All attacks share one solver and one
way to build a task; what an attack does to a prompt is in `tokendeep.attack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    get_model,
)
from inspect_ai.scorer import grouped, mean
from inspect_ai.solver import Generate, Solver, TaskState, solver

from tokendeep import chat, data, models, runs
from tokendeep.attacks import decoding as sampling
from tokendeep.attacks import prefill as attacks
from tokendeep.attacks import suffix as endings
from tokendeep.errors import InputError
from tokendeep.evals import session as _session
from tokendeep.evals.provider import TokendeepAPI, one_sentence, prefill_route
from tokendeep.evals.scorers import judge_named
from tokendeep.evals.session import current_model
from tokendeep.judges import JUDGES
from tokendeep.types import Decoding, Message, Pair, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_KS = (0, 5, 10, 20, 40)


@dataclass(frozen=True)
class Settings:
    """What every attack task shares: how rows are read, how answers are sampled and who judges them."""

    judge: str = "refusal"
    judged: str = "continuation"
    system: str = "default"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    samples: int = 1
    seed: int = 0
    limit: int | None = None

    def decoding(self) -> Decoding:
        """The sampling settings. Raises InputError where one is out of range."""
        for wrong, message in (
            (self.temperature < 0, f"temperature = {self.temperature} is below 0: 0 is greedy"),
            (not 0 < self.top_p <= 1, f"top_p = {self.top_p} is not between 0 and 1: 1 is off"),
            (self.top_k < 0, f"top_k = {self.top_k} is below 0: 0 is off"),
            (self.max_new_tokens < 1, f"max_new_tokens = {self.max_new_tokens} is below 1"),
            (self.samples < 1, f"samples = {self.samples} is below 1"),
            (self.limit is not None and self.limit < 1, f"limit = {self.limit} is below 1: leave it out for all rows"),
        ):
            if wrong:
                raise InputError(message)
        return Decoding(self.temperature, self.top_p, self.top_k, self.max_new_tokens, self.seed)


@task
@one_sentence
def none(
    data: str,
    judge: str = "refusal",
    judged: str = "continuation",
    system: str = "default",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    samples: int = 1,
    seed: int = 0,
    limit: int | None = None,
) -> Task:
    """The plain request.

    Args:
        data: prompts or pairs (JSONL, JSON or CSV).
        judge: refusal or refusal-keywords.
        judged: continuation, or full to judge prefill and continuation together.
        system: a system prompt, none or default (what the chat template does by itself).
        temperature: 0 is greedy.
        top_p: nucleus sampling; 1 is off.
        top_k: 0 is off.
        max_new_tokens: answer length limit.
        samples: answers a prompt, with seeds seed, seed + 1, ...
        seed: first seed.
        limit: use the first so many rows only.
    """
    settings = Settings(judge, judged, system, temperature, top_p, top_k, max_new_tokens, samples, seed, limit)
    return build("none", data, attacks.none(read_prompts(data, settings)), settings)


@task
@one_sentence
def prefill(
    data: str,
    k: int | str | list[int] | list[str] = list(DEFAULT_KS),  # noqa: B006  (Inspect wants JSON defaults; never changed)
    tokenizer: str | None = None,
    continues: bool = False,
    lead: str = "",
    thinking: bool = False,
    judge: str = "refusal",
    judged: str = "continuation",
    system: str = "default",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    samples: int = 1,
    seed: int = 0,
    limit: int | None = None,
) -> Task:
    """The first k tokens of a harmful answer are given in advance.

    Args:
        data: pairs of harmful instruction and harmful answer (JSONL, JSON or CSV).
        k: how many tokens: a number, a list or comma-separated.
        tokenizer: whose tokens are counted, for providers that take the prefill as text; their model's by default.
        continues: this provider's server is known to continue a final assistant message.
        lead: text before the k tokens, such as a refusal that has begun.
        thinking: put them inside the thinking block that the chat template opens answers with.
        judge: see `none`, as for all arguments that follow.
    """
    settings = Settings(judge, judged, system, temperature, top_p, top_k, max_new_tokens, samples, seed, limit)
    ks = attacks.check_ks(parse_ks(k))
    settings.decoding()
    pairs = read_pairs(data, settings)
    model = current_model()
    given = bool(ks[-1] or lead or thinking)
    by_text = given and prefill_route(model, continues) == "text"
    if thinking and by_text:
        raise InputError("thinking needs the exact tokens of the prompt: it is for models that tokendeep loads itself")
    counting = victim_tokenizer(model, tokenizer) if given else None
    prompts, skipped = attacks.prefill(pairs, ks, counting, as_text=by_text, lead=lead, thinking=thinking)
    return build("prefill", data, prompts, settings, skipped=skipped, group="k", continues=continues)


@task(name="refusal-prefix")
@one_sentence
def refusal_prefix(
    data: str,
    prefixes: str | list[str] | None = None,
    continues: bool = False,
    judge: str = "refusal",
    judged: str = "continuation",
    system: str = "default",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    samples: int = 1,
    seed: int = 0,
    limit: int | None = None,
) -> Task:
    """The opening of a refusal is given in advance (Table 1 of the paper).

    What follows is the rest of a sentence that declines or turns away from declining, so the judge `refusal` always
    sees both as one text, whatever `judged` says. `refusal-keywords` would find its keywords in the openings
    themselves and always sees the continuation alone. Logs and asr.json say which under `judged`.

    Args:
        data: prompts or pairs (JSONL, JSON or CSV).
        prefixes: the openings; the paper's five when left out.
        continues: this provider's server is known to continue a final assistant message.
        judge: see `none`, as for all arguments that follow.
    """
    settings = Settings(judge, judged, system, temperature, top_p, top_k, max_new_tokens, samples, seed, limit)
    settings.decoding()
    judge_named(judge, judged)
    settings = replace(settings, judged=JUDGES[judge].behind_prefix)
    prompts = read_prompts(data, settings)
    model = current_model()
    exact = victim_tokenizer(model, None) if prefill_route(model, continues) == "ids" else None
    openings = [prefixes] if isinstance(prefixes, str) else prefixes
    attacked = attacks.refusal_prefix(prompts, openings, exact)
    return build("refusal-prefix", data, attacked, settings, group="prefix", continues=continues)


@task
@one_sentence
def decoding(
    data: str,
    grid: str | list[str] = "paper",
    judge: str = "refusal",
    judged: str = "continuation",
    system: str = "default",
    max_new_tokens: int = 512,
    samples: int = 1,
    seed: int = 0,
    limit: int | None = None,
) -> Task:
    """The plain request, sampled with many settings.

    Args:
        data: prompts or pairs (JSONL, JSON or CSV).
        grid: settings, a list or comma-separated: greedy, temperature=T, top_p=P, top_k=K, or paper for its 50.
        judge: see `none`, as for all arguments that follow.
    """
    settings = Settings(judge, judged, system, 0.0, 1.0, 0, max_new_tokens, samples, seed, limit)
    names = grid.split(",") if isinstance(grid, str) else grid
    attacked = sampling.decoding(read_prompts(data, settings), sampling.parse_grid(names), settings.decoding())
    return build("decoding", data, attacked, settings, group="setting")


@task
@one_sentence
def suffix(
    data: str,
    suffixes: str,
    judge: str = "refusal",
    judged: str = "continuation",
    system: str = "default",
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    samples: int = 1,
    seed: int = 0,
    limit: int | None = None,
) -> Task:
    """A text behind the request, such as GCG finds.

    Args:
        data: prompts or pairs (JSONL, JSON or CSV).
        suffixes: the folder that `tokendeep gcg` wrote, or a file with rows {"suffix": ...}.
        judge: see `none`, as for all arguments that follow.
    """
    settings = Settings(judge, judged, system, temperature, top_p, top_k, max_new_tokens, samples, seed, limit)
    settings.decoding()
    attacked = endings.suffix(read_prompts(data, settings), endings.load(suffixes))
    return build("suffix", data, attacked, settings, group="suffix")


def build(
    attack: str,
    source: str,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    skipped: dict[int, int] | None = None,
    group: str | None = None,
    continues: bool = False,
) -> Task:
    """One task from attacked prompts.

    Args:
        source: where the rows are from; its hash tells evaluations on different data apart.
        skipped: answers too short for each k, kept in the log's metadata.
        group: the parameter whose values get a rate each in Inspect's own summary.

    Raises:
        InputError: unknown judge or view, or a sampling setting out of range.
    """
    decoding = settings.decoding()
    ours = isinstance(current_model().api, TokendeepAPI)
    config = GenerateConfig(
        temperature=decoding.temperature,
        top_p=decoding.top_p if decoding.top_p < 1 else None,  # an API may refuse a setting that is merely off
        top_k=decoding.top_k or None,
        max_tokens=decoding.max_new_tokens,
        seed=decoding.seed,
        max_connections=current_model().api.max_connections() if ours else None,
    )
    return Task(
        dataset=MemoryDataset([_sample(prompt) for prompt in prompts], name=attack),
        solver=prefixed(seed=settings.seed, continues=continues),
        scorer=judge_named(settings.judge, settings.judged),
        metrics=[grouped(mean(), group, all=False)] if group else None,
        epochs=Epochs(settings.samples, ["mean", "max"] if settings.samples > 1 else "mean"),
        config=config,
        metadata={
            "attack": attack,
            "judge": settings.judge,
            "judged": settings.judged,
            "system": runs.system_name(settings.system),
            "data": runs.hash_input("data", data.identity(source)),
            "skipped": {str(k): count for k, count in (skipped or {}).items()},
        },
    )


@solver
def prefixed(seed: int = 0, continues: bool = False) -> Solver:
    """Put the prefill in place as a final assistant message and let the model go on from it.

    Sample e of a prompt uses seed + e - 1. A seed given to Inspect itself (--seed) comes before the task's.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        ids, text = state.metadata["prefix_ids"], state.metadata["prefix_text"]
        thinking = bool(state.metadata.get("thinking"))
        if text or ids or thinking:
            prefill_route(model, continues)
            how = {"prefix_ids": ids, "thinking": thinking}
            state.messages.append(ChatMessageAssistant(content=text, metadata=how))
        first = seed if model.config.seed is None else model.config.seed
        own = state.metadata.get("decoding") or {}  # a sample's own setting comes before the task's
        try:
            drawn = first + state.epoch - 1
            return await generate(
                state, seed=sampling.seed_of(state.metadata["setting"], drawn) if own else drawn, **own
            )
        except Exception as error:
            row = state.metadata["prompt_id"]
            if isinstance(error, InputError):  # a prompt too long or bad logits, say: name the row
                error = InputError(f"row {row}: {error}")
            if (session := _session.current()) is not None:
                session.fail(_failure(error, model, row))
            raise error

    return solve


def _failure(error: Exception, model: Model, row: str) -> Exception:
    """What the user is told: of a server's error the class alone, for its message can quote the prompt."""
    if isinstance(error, InputError) or isinstance(model.api, TokendeepAPI):
        return error
    return InputError(
        f"row {row}: {model} failed with {type(error).__name__}: check that the server runs, serves a model of that "
        "name and has room for the prompt and max_new_tokens in its context, then call again to go on"
    )


def victim_tokenizer(model: Model, name: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that counts prefill tokens: the model's own, or the one named for a model that runs elsewhere."""
    if isinstance(model.api, TokendeepAPI):
        if name is not None:
            raise InputError("tokenizer is only for models that run elsewhere: a local model's own one is used")
        return model.api.tokenizer
    return models.load_tokenizer(name or model.api.model_name)


def read_prompts(source: str, settings: Settings) -> list[Prompt]:
    """Plain requests, whatever else the rows hold."""
    prompts = data.read_prompts(source, limit=settings.limit)
    return [replace(prompt, messages=_with_system(prompt.messages, settings.system)) for prompt in prompts]


def read_pairs(source: str, settings: Settings) -> list[Pair]:
    """Instructions with a harmful answer."""
    pairs = data.read_pairs(source, limit=settings.limit)
    return [replace(pair, messages=_with_system(pair.messages, settings.system)) for pair in pairs]


def parse_ks(k: int | str | Sequence[int | str]) -> list[int]:
    """k as a number, a list or a comma-separated text. Raises InputError for what is no whole number."""
    parts: Sequence[Any] = k.split(",") if isinstance(k, str) else k if isinstance(k, list | tuple) else [k]
    try:
        if any(isinstance(part, bool | float) for part in parts):
            raise ValueError
        return [int(part) for part in parts]
    except ValueError:
        raise InputError(f"k = {k} is no list of whole numbers: write it like 0,5,10") from None


def _with_system(messages: Sequence[Message], system: str) -> tuple[Message, ...]:
    return tuple(chat.with_system(list(messages), system))


def _sample(prompt: Prompt) -> InspectSample:
    roles = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    messages: list[ChatMessage] = [roles[message["role"]](content=message["content"]) for message in prompt.messages]
    return InspectSample(
        id=prompt.id,
        input=messages,
        metadata={
            "prompt_id": prompt.meta["prompt_id"],
            "attack": prompt.meta["attack"],
            "params": prompt.meta["params"],
            "category": prompt.meta.get("category"),
            "prefix_ids": " ".join(map(str, prompt.prefix_ids)),  # a list would be copied number by number, often
            "prefix_text": prompt.prefix_text,
            **({"decoding": _own_decoding(prompt.decoding)} if prompt.meta["attack"] == "decoding" else {}),
            **prompt.meta["params"],
        },
    )


def _own_decoding(decoding: Decoding) -> dict[str, Any]:
    """What a sample changes of its task's sampling settings, in which top_p and top_k are off."""
    off = Decoding()
    own = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    return {name: value for name, value in own.items() if name == "temperature" or value != getattr(off, name)}
