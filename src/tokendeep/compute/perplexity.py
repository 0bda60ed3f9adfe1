"""How likely a model finds plain texts: the negative log-likelihood per token, over windows where a text is longer than one.

Every token is scored once, with all that stands before it in its window: in the first window of a text from its beginning
on, in later ones behind at least `window - stride` tokens. What the tokenizer puts before a text stands before every
window; where it puts nothing there, the first token of a text has nothing before it and is not scored.
"""

import math
from collections.abc import Sequence

import numpy as np

from tokendeep import chat, stats
from tokendeep.compute import scoring
from tokendeep.errors import InputError
from tokendeep.records import Perplexity
from tokendeep.runs.parts import Parts
from tokendeep.types import IGNORE, Encoded, Subject


def windows(front: Sequence[int], ids: Sequence[int], window: int, stride: int) -> list[Encoded]:
    """The windows of a text as rows, in which the tokens are supervised that no window before has scored."""
    room, scored = window - len(front), 0 if front else 1
    rows = []
    for start in range(0, len(ids), stride):
        stop = min(start + room, len(ids))
        if stop > scored:
            known = max(scored - start, 0)
            labels = [*[IGNORE] * (len(front) + known), *ids[start + known : stop]]
            rows.append(Encoded([*front, *ids[start:stop]], labels))
            scored = stop
        if stop == len(ids):
            break
    return rows


def measure(
    subject: Subject, texts: Sequence[str], window: int, stride: int, batch_size: int = 16, *,
    bootstrap: tuple[int, int] = (2000, 0), parts: Parts | None = None,
) -> Perplexity:  # fmt: skip
    """The perplexity of texts, with an interval over them.

    Args:
        window: tokens that a forward pass sees at most, those before the text among them.
        stride: tokens between the beginnings of two windows.
        bootstrap: how many resamples of the texts, and their seed.
        parts: windows that an earlier call finished, and where to keep those of this one.

    Raises:
        InputError: the stride leaves a token without others before it, no text has two tokens, or the model gives NaN.
    """
    encoded = [chat.document_ids(subject.tokenizer, text) for text in texts]
    longest = max(len(front) for front, _ in encoded)
    if not stride < window - longest:
        raise InputError(f"--stride is {stride}, but must be below {window - longest}, the room of a window for text.")
    rows = [windows(front, ids, window, stride) for front, ids in encoded]
    kept = [number for number, own in enumerate(rows) if own]
    if not kept:
        raise InputError("No text has two tokens, so that none can be scored; give longer ones.")
    flat = [row for own in rows for row in own]
    sums = iter(
        [(-float(one.double().sum()), len(one)) for one in scoring.token_logps(subject, flat, batch_size, parts)]
    )
    table = np.array(
        [np.sum([next(sums) for _ in rows[number]], axis=0) for number in kept]
    )  # (texts, nats and tokens)
    size = sum(_bytes(subject, texts[number], *encoded[number]) for number in kept)
    nll = _ratio(table[None])[0]
    low, high = stats.bootstrap(table, _ratio, *bootstrap, vectorized=True)
    ends = {} if math.isnan(low) else {"low": low, "high": high}
    return Perplexity.model_validate(
        {
            "nll": nll, "low": None, "high": None, **ends, "perplexity": math.exp(nll), "per_byte": table[:, 0].sum() / size,
            "texts": len(kept), "left_out": len(texts) - len(kept), "tokens": int(table[:, 1].sum()), "bytes": size,
            "window": window, "stride": stride, "begins": longest > 0,
        }
    )  # fmt: skip


def _bytes(subject: Subject, text: str, front: Sequence[int], ids: Sequence[int]) -> int:
    """Bytes of the tokens of a text that are scored: without those of the first one, where nothing stands before it."""
    first = "" if front else subject.tokenizer.decode(list(ids[:1]), clean_up_tokenization_spaces=False)
    return len(text.encode("utf-8", "surrogatepass")) - len(str(first).encode("utf-8"))


def _ratio(tables: np.ndarray) -> np.ndarray:
    """Nats per token of each resample (resamples, texts, 2): a ratio of sums."""
    nats: np.ndarray = tables[..., 0].sum(-1) / tables[..., 1].sum(-1)
    return nats
