"""How each kind of server is asked to continue or to score token ids, and where its answer has what.

All settings that pick tokens are written out, for servers have defaults of their own. Knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokendeep.engines.base import Request
from tokendeep.engines.server.client import Host
from tokendeep.engines.server.failures import Failed, Malformed
from tokendeep.errors import InputError

Ids = tuple[int, ...]
Body = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """What is asked: to continue a request, of the model of this name, up to one of `ends`."""

    request: Request
    model: str
    ends: frozenset[int]
    seed: int
    bias: int | None = None  # a token that is to be written first, to see what it does


@dataclass(frozen=True)
class Reply:
    """What a server says; None where it does not say."""

    text: str
    stopped: bool
    ids: Ids | None = None
    prompt: Ids | None = None  # the ids that it went on from
    prompt_tokens: int | None = None
    new_tokens: int | None = None


@dataclass(frozen=True)
class Dialect:
    """One way to ask."""

    address: Callable[[Host], str]
    body: Callable[[Ask], Body]
    read: Callable[[Mapping[str, Any]], Reply]
    score_body: Callable[[str, Ids, int], Body] | None = None
    read_scores: Callable[[Mapping[str, Any], Ids, int], list[float]] | None = None
    choosing: Callable[[Ids], Body] | None = None  # what asks for the log-probabilities of chosen next tokens as well
    next_body: Callable[[str, Ids, Ids], Body] | None = None
    read_next: Callable[[Mapping[str, Any], Ids], list[float]] | None = None


def parsed(read: Callable[[Any], T], answer: Any, url: str) -> T:
    """What an answer holds. Raises Malformed for one of another shape, Failed for one that was broken off."""
    try:
        return read(answer)
    except BrokenOff as error:
        raise Failed(f"{url} broke an answer off ({error})") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise Malformed(url, error) from None


class BrokenOff(Exception):
    """An answer that came to no end, and why."""


def _stopped(reason: Any, end: Sequence[str], length: str) -> bool:
    """Whether an answer came to its end, and not to its length. Raises BrokenOff where the server broke it off."""
    if reason != length and reason not in end:
        raise BrokenOff(reason)
    return bool(reason != length)


# --- completions, as vLLM has them --------------------------------------------------------------


def _completions_body(ask: Ask) -> Body:
    decoding = ask.request.decoding
    sampled = {"seed": ask.seed} if decoding.temperature > 0 else {}
    forced = {} if ask.bias is None else {"logit_bias": {str(ask.bias): 100}}
    return {
        "model": ask.model, "prompt": list(ask.request.ids), "max_tokens": decoding.max_new_tokens, "n": 1,
        "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k, "min_p": 0.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
        "stop_token_ids": sorted(ask.ends), "ignore_eos": True,  # the ends are ours alone
        "skip_special_tokens": False, "spaces_between_special_tokens": False, "return_token_ids": True,
        **sampled, **forced,
    }  # fmt: skip


def _read_completions(answer: Mapping[str, Any]) -> Reply:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    return Reply(
        str(choice["text"]),
        _stopped(choice.get("finish_reason"), ("stop",), "length"),
        _ids(choice.get("token_ids")),
        _ids(choice.get("prompt_token_ids")),
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
    )


def _completions_score(model: str, ids: Ids, start: int) -> Body:
    one = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "return_token_ids": True}
    return {"model": model, "prompt": list(ids), **one}


def _read_completions_scores(answer: Mapping[str, Any], ids: Ids, start: int) -> list[float]:
    scores = answer["choices"][0]["prompt_logprobs"]
    return [float(scores[i][str(ids[i])]["logprob"]) for i in range(start, len(ids))]


def _completions_choosing(tokens: Ids) -> Body:
    return {"logprobs": len(tokens), "logprob_token_ids": list(tokens), "return_tokens_as_token_ids": True}


def _completions_next(model: str, ids: Ids, tokens: Ids) -> Body:
    """Unlike scores of the prompt, those of what comes next let the server use the beginnings that it has read before."""
    plain = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 1}
    return {"model": model, "prompt": list(ids), **plain, **_completions_choosing(tokens)}


def _read_completions_next(answer: Mapping[str, Any], tokens: Ids) -> list[float]:
    told = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    return [float(told[f"token_id:{token}"]) for token in tokens]


# --- llama.cpp -----------------------------------------------------------------------------------


def _llamacpp_body(ask: Ask) -> Body:
    decoding = ask.request.decoding
    return {
        "prompt": list(ask.request.ids), "n_predict": decoding.max_new_tokens, "return_tokens": True, "cache_prompt": True,
        "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k, "min_p": 0.0,
        "samplers": ["temperature", "top_k", "top_p"],  # in the order of everybody else
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "repeat_penalty": 1.0, "seed": ask.seed,
        **({} if ask.bias is None else {"logit_bias": [[ask.bias, 100.0]]}),
    }  # fmt: skip


def _read_llamacpp(answer: Mapping[str, Any]) -> Reply:
    return Reply(
        str(answer["content"]),
        _stopped(answer.get("stop_type"), ("eos", "word"), "limit"),
        _ids(answer.get("tokens")),
        None,
        answer.get("tokens_evaluated"),
        answer.get("tokens_predicted"),
    )


# --- SGLang --------------------------------------------------------------------------------------


def _sglang_body(ask: Ask) -> Body:
    decoding = ask.request.decoding
    sampled = {"sampling_seed": ask.seed} if decoding.temperature > 0 else {}
    forced = {} if ask.bias is None else {"logit_bias": {str(ask.bias): 100}}
    return {
        "input_ids": list(ask.request.ids),
        "sampling_params": {
            "max_new_tokens": decoding.max_new_tokens, "temperature": decoding.temperature, "top_p": decoding.top_p,
            "top_k": decoding.top_k or -1, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "repetition_penalty": 1.0, "stop_token_ids": sorted(ask.ends), "skip_special_tokens": False,
            "spaces_between_special_tokens": False, "no_stop_trim": True, **sampled, **forced,
        },
    }  # fmt: skip


def _read_sglang(answer: Mapping[str, Any]) -> Reply:
    about = answer["meta_info"]
    return Reply(
        str(answer["text"]),
        _stopped((about.get("finish_reason") or {}).get("type"), ("stop",), "length"),
        _ids(answer.get("output_ids")),
        None,
        about.get("prompt_tokens"),
        about.get("completion_tokens"),
    )


def _sglang_score(model: str, ids: Ids, start: int) -> Body:
    one = {"max_new_tokens": 1, "temperature": 0.0}
    return {"input_ids": list(ids), "sampling_params": one, "return_logprob": True, "logprob_start_len": start - 1}


def _read_sglang_scores(answer: Mapping[str, Any], ids: Ids, start: int) -> list[float]:
    scores = answer["meta_info"]["input_token_logprobs"][start - len(ids) :]
    if [one[1] for one in scores] != list(ids[start:]):
        raise ValueError("other ids are scored than were sent")
    return [float(one[0]) for one in scores]


def _ids(given: Sequence[Any] | None) -> Ids | None:
    return None if given is None else tuple(map(int, given))


COMPLETIONS = Dialect(
    lambda host: f"{host.url}/completions", _completions_body, _read_completions, _completions_score,
    _read_completions_scores, _completions_choosing, _completions_next, _read_completions_next,
)  # fmt: skip
DIALECTS: dict[str, Dialect] = {
    "vllm": COMPLETIONS,
    "llamacpp": Dialect(lambda host: f"{host.root}/completion", _llamacpp_body, _read_llamacpp),
    "sglang": Dialect(
        lambda host: f"{host.root}/generate", _sglang_body, _read_sglang, _sglang_score, _read_sglang_scores
    ),
}  # by what its list of models says it is owned by; anything else is asked as vLLM is
