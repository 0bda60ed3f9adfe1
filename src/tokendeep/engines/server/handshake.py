"""What a server is and can do, found out before anything is asked of it: a few questions that every model can be put.

Knows nothing of what the engine is used for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokendeep import chat, runs
from tokendeep.chat.ids import control_ids
from tokendeep.engines.base import Completion, Known, Request
from tokendeep.engines.options import FREE, NO_SERVER
from tokendeep.engines.server import answers, dialects
from tokendeep.engines.server.client import Client, Failed, Host, Refused
from tokendeep.engines.server.dialects import Ask, Dialect, Ids, Reply
from tokendeep.errors import InputError, did_you_mean
from tokendeep.types import Decoding

CANARIES = (
    "Name the three primary colours.",
    "Count from one to ten in words.",
    "What is the capital of France?",
    "Write one sentence about the sea.",
)
CANARY_TOKENS = 16
ALIKE = 0.5  # nats between two ways to the same log-probability, in whatever number format the server computes
CHOSEN = 20  # next tokens asked for at once, as many as servers tell of unasked
CHANCES = 3  # for the canary of a server that was gone: answers to others, which it still writes, can change it
SPREAD = 64  # words of the vocabulary that the server is asked to spell
BROKEN, CANNOT = 500, (400, 404, 405, 422, 501)  # statuses
VERSIONS = {
    "vllm": ("version", "version"),
    "sglang": ("get_server_info", "version"),
    "llamacpp": ("props", "build_info"),
}
SPELT = {"vllm": "prompt", "llamacpp": "content", "sglang": "text"}  # where the answer of /detokenize has the text


@dataclass(frozen=True)
class Handshake:
    """What is known of the servers; it stands in manifests.

    Attributes:
        context: tokens of prompt and answer together; None where it is not said.
        ids: whether answers come with token ids, or as texts.
        repeats: whether greedy answers are the same when asked again.
        stops: whether each end token ends an answer there; None where that cannot be seen.
        scores: whether log-probabilities of given tokens can be had.
        picks: whether those of chosen next tokens can be had as well, for which a server keeps what it has read.
        servers: how many there are.
        greedy: hash of the greedy answers, by which other weights of the same name are told; None where they do not repeat.
    """

    kind: str
    version: str | None
    model: str
    context: int | None
    ids: bool
    repeats: bool
    stops: bool | None
    scores: bool
    picks: bool = False
    servers: int = 1
    greedy: str | None = None

    def __str__(self) -> str:
        """In one line, for people."""
        more = f", {self.servers} servers" if self.servers > 1 else ""
        return f"{self.program}{more}, {self.model}, context {self.context or 'not said'}"

    @property
    def program(self) -> str:
        """What serves."""
        return f"{self.kind} {self.version or 'of unknown version'}"

    @property
    def shortcomings(self) -> list[str]:
        """What the servers cannot do, a sentence each."""
        wrong = {
            "greedy answers differ when asked again, so a run cannot be repeated exactly": not self.repeats,
            "answers come as texts without token ids, which are tokenised again and checked": not self.ids,
            "the answer goes on behind an end token; it is cut there, and the time for the rest is lost": self.stops
            is False,
            "the context is not said, so an answer that does not fit shows only when it is there": self.context is None,
        }
        return [sentence for sentence, true in wrong.items() if true]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells one server from another: the rest may change from one start to the next."""
        return {name: value for name, value in self.dump().items() if name not in FREE}

    def dump(self) -> dict[str, Any]:
        """As it stands in manifests."""
        return asdict(self)


def dialect(kind: str) -> Dialect:
    """How servers of a kind are asked."""
    return dialects.DIALECTS.get(kind, dialects.COMPLETIONS)


def _question(tokenizer: Any, text: str) -> Ids:
    """A question as a chat, or as it stands to a model without a chat template (a classifier of raw prompts)."""
    if tokenizer.chat_template is None:
        return tuple(tokenizer(text).input_ids)
    return tuple(chat.prompt_ids(tokenizer, [{"role": "user", "content": text}]))


def meet(client: Client, tokenizer: Any, known: Known, name: str | None) -> tuple[Handshake, Completion]:
    """Ask every server; all must be alike, down to the canaries. What is known of them, and the answer to the first canary.

    Raises:
        InputError: in this order, of each: not there; no server of completions; no such model; token ids are refused or
            changed; another tokenizer; another server that is unlike the first.
    """
    prompts = [_question(tokenizer, text) for text in CANARIES]
    first, answered = _meet(client, client.hosts[0], tokenizer, known, name, prompts)
    for host in client.hosts[1:]:
        other, again = _meet(client, host, tokenizer, known, name, prompts)
        alike = replace(other, greedy=first.greedy) == first
        if not alike or (first.repeats and again != answered):
            what = "answer the same question in different ways" if alike else "are not alike"
            raise InputError(
                f"The servers {client.hosts[0].url} ({first}) and {host.url} ({other}) {what}: start them with the same "
                "version, model and settings, or give one of them."
            )
    return Handshake(**{**asdict(first), "servers": len(client.hosts)}), answered[0]


async def again(
    client: Client, host: Host, tokenizer: Any, known: Known, about: Handshake, answered: Completion
) -> None:
    """Make sure that a server which was gone is the same as before.

    Args:
        about: what is known of it.
        answered: its answer to the first canary then.

    Raises:
        InputError: it is another one.
    """
    try:
        cards = _cards(await client.fetch(host, "GET", f"{host.url}/models"))
    except Refused:
        cards = {}
    card = cards.get(about.model, {})
    now = {
        "model": about.model if card else ", ".join(sorted(cards)[:9]) or "none",
        "context": card.get("max_model_len"),
    }
    if card:
        now |= {"kind": str(card.get("owned_by", "unknown"))}
        address, field = VERSIONS.get(about.kind, VERSIONS["vllm"])
        with contextlib.suppress(Refused):  # it does not tell
            now |= {"version": _told(await client.fetch(host, "GET", f"{host.root}/{address}"), field)[0]}
    for name, then in about.dump().items():
        if None not in (then, found := now.get(name)) and then != found:
            raise InputError(_changed(host, f"its {name} was {then} and is {found}"))
    ask = Ask(
        Request(_question(tokenizer, CANARIES[0]), Decoding(max_new_tokens=CANARY_TOKENS)), about.model, known.ends, 0
    )
    how = dialect(about.kind)
    for _ in range(CHANCES if about.repeats else 0):
        told = await client.fetch(host, "POST", how.address(host), how.body(ask))
        if _canary(host, tokenizer, known, ask, dialects.parsed(how.read, told, host.url)) == answered:
            return
    if about.repeats:
        raise InputError(_changed(host, "it answers the same question in another way"))


def _changed(host: Host, how: str) -> str:
    return (
        f"{host.url} was gone and came back as another server ({how}): start it as it was, then call again to go on; what was "
        "answered is kept."
    )


def _meet(
    client: Client, host: Host, tokenizer: Any, known: Known, name: str | None, prompts: list[Ids]
) -> tuple[Handshake, list[Completion]]:
    card = _card(client, host, name)
    kind, model = str(card.get("owned_by", "unknown")), str(card["id"])
    how = dialect(kind)
    version, context = _version(client, host, kind)
    _check_tokenizer(client, host, tokenizer, kind, model)

    def asked(ids: Ids, longest: int, bias: int | None = None) -> tuple[Ask, Reply]:
        ask = Ask(Request(ids, Decoding(max_new_tokens=longest)), model, known.ends, 0, bias)
        return ask, dialects.parsed(how.read, client.post(host, how.address(host), how.body(ask)), host.url)

    rounds = [[_canary(host, tokenizer, known, *_first(host, model, asked, ids)) for ids in prompts] for _ in range(2)]
    _, reply = asked(prompts[0], 1)
    handshake = Handshake(
        kind,
        version,
        model,
        card.get("max_model_len") or context,
        reply.ids is not None,
        rounds[0] == rounds[1],
        _stops(known.ends, prompts[0], asked),
        (score := _score(client, host, how, model, prompts[0])) is not None,
        score is not None and _picks(client, host, how, model, prompts[0], score),
        greedy=runs.sha256_text(str([done.ids for done in rounds[0]]))[:12] if rounds[0] == rounds[1] else None,
    )
    return handshake, rounds[0]


def _card(client: Client, host: Host, name: str | None) -> Mapping[str, Any]:
    """What the server says of the model that is to be asked."""
    try:
        cards = _cards(client.get(host, f"{host.url}/models"))
    except Refused as refusal:
        if refusal.status in (401, 403) or not refusal.status:
            raise
        raise InputError(f"{host.url} has no list of models (status {refusal.status}): {NO_SERVER}.") from None
    if not cards:
        raise InputError(f"{host.url} lists no models, so it is no server of completions: {NO_SERVER}.")
    if name is None and len(cards) > 1:
        raise InputError(f"{host.url} serves {', '.join(sorted(cards)[:25])}: name one with --engine-model.")
    wanted = next(iter(cards)) if name is None else name
    if wanted not in cards:
        raise InputError(f"{host.url} serves no model {wanted}; {did_you_mean(wanted, cards)}: give --engine-model.")
    return cards[wanted]


def _cards(listed: Any) -> dict[str, Mapping[str, Any]]:
    """What a list of models says of each, by its name; nothing where it is none."""
    try:
        return {str(card["id"]): card for card in listed["data"]}
    except (KeyError, TypeError):
        return {}


def _version(client: Client, host: Host, kind: str) -> tuple[str | None, int | None]:
    """The version and the context of a kind that says so elsewhere; None for what is not told."""
    address, field = VERSIONS.get(kind, ("version", "version"))
    try:
        return _told(client.get(host, f"{host.root}/{address}"), field)
    except InputError as error:
        if not _cannot(error):
            raise
        return None, None


def _told(page: Any, field: str) -> tuple[str | None, int | None]:
    """The version and the context on a page of a server."""
    if not isinstance(page, dict):
        return None, None
    context = (page.get("default_generation_settings") or {}).get("n_ctx")
    return page.get(field) and str(page[field]), context


def _check_tokenizer(client: Client, host: Host, tokenizer: Any, kind: str, model: str) -> None:
    """Have words from all over the vocabulary spelt, where the server can: its tokenizer must be ours."""
    if (field := SPELT.get(kind)) is None:
        return
    words, size = [], len(tokenizer)
    for token in range(0, size, max(1, size // (4 * SPREAD))):
        if token not in control_ids(tokenizer) and tokenizer.decode([token]).strip().isascii():
            words.append(token)
    words = [words[place * (len(words) - 1) // SPREAD] for place in range(1, SPREAD + 1)] if words else []
    try:
        told = client.post(host, f"{host.root}/detokenize", {"model": model, "tokens": words})
        spelt = told[field]
    except Refused as refusal:
        if refusal.status not in (400, 422):  # an older one, or one that keeps it closed
            return
        raise InputError(
            f"{host.url} does not know token ids that --model has (status {refusal.status}): it serves a model of another "
            "tokenizer."
        ) from None
    except (KeyError, TypeError):
        return
    answers.check_text(tokenizer, tuple(words), str(spelt))


def _first(host: Host, model: str, asked: Callable[[Ids, int], tuple[Ask, Reply]], ids: Ids) -> tuple[Ask, Reply]:
    """Ask a canary; what a server says to it may be quoted, for it holds nothing of the user's."""
    try:
        return asked(ids, CANARY_TOKENS)
    except Refused as refusal:
        if refusal.status == 404:
            raise InputError(f"{host.url} does not complete with {model} (status 404): {NO_SERVER}.") from None
        if refusal.status in (400, 422):
            raise InputError(
                f"{host.url} does not take a prompt of token ids (status {refusal.status}: {refusal.said.rstrip('.')}): serve "
                "the model with vLLM, SGLang or llama.cpp."
            ) from None
        raise


def _canary(host: Host, tokenizer: Any, known: Known, ask: Ask, reply: Reply) -> Completion:
    """The answer to a canary, checked more closely than others."""
    if reply.prompt is None and reply.prompt_tokens is None:
        raise InputError(
            f"{host.url} does not say how many tokens it went on from, so it may add some unseen: serve the model with vLLM, "
            "SGLang or llama.cpp."
        )
    try:
        return answers.completion(tokenizer, ask, reply, known.vocabulary)
    except InputError as error:
        raise InputError(f"{host.url}: {error}") from error


def _stops(ends: frozenset[int], ids: Ids, asked: Callable[[Ids, int, int], tuple[Ask, Reply]]) -> bool | None:
    """Whether every end token ends an answer that it is forced into; None where it cannot be forced."""
    seen = True
    for end in sorted(ends):
        try:
            _, reply = asked(ids, 4, end)
        except Refused as refusal:
            if not _cannot(refusal):
                raise
            return None
        if reply.ids is None or reply.ids[:1] not in ((end,), ()):
            return None
        seen &= len(reply.ids) <= 1 and reply.stopped
    return seen


def _score(client: Client, host: Host, how: Dialect, model: str, ids: Ids) -> float | None:
    """The log-probability of the last of some tokens; None where a server does not tell it."""
    if how.score_body is None or how.read_scores is None:
        return None
    read, start = how.read_scores, len(ids) - 1
    try:
        told = client.post(host, how.address(host), how.score_body(model, ids, start))
        return dialects.parsed(lambda answer: read(answer, ids, start), told, host.url)[0]
    except InputError as error:
        if not _cannot(error):
            raise
        return None


def _cannot(error: InputError) -> bool:
    """Whether a server says that it cannot do what it was asked; it may also not have been reached, or have been busy."""
    if isinstance(error, Failed):
        return error.status == BROKEN  # however often it is asked, and it does answer other requests
    return not isinstance(error, Refused) or error.status in CANNOT


def _picks(client: Client, host: Host, how: Dialect, model: str, ids: Ids, score: float) -> bool:
    """Whether the log-probability of a chosen next token can be had, and is one: servers can be set to tell logits."""
    if how.next_body is None or how.read_next is None:
        return False
    read, last = how.read_next, ids[-1]
    tokens = (last, *(token for token in range(CHOSEN) if token != last))[:CHOSEN]  # as many as are asked for later
    try:
        told = client.post(host, how.address(host), how.next_body(model, ids[:-1], tokens))
        return abs(dialects.parsed(lambda answer: read(answer, tokens), told, host.url)[0] - score) < ALIKE
    except InputError as error:
        if not _cannot(error):
            raise
        return False
