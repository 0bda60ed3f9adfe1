"""A model whose log-probabilities are asked for, in memory or on a server, and what can be measured of one on a server.

Knows nothing of curves and figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from tokendeep import models, runs
from tokendeep.depth.recovery import Score
from tokendeep.errors import InputError, flag
from tokendeep.types import Subject

KL = (
    "is for the KL divergence, which takes the probabilities of the whole vocabulary at every position, and no server tells "
    "these: leave it out for the recovery profile"
)
LARGE = "or load the model here, a large one over several GPUs with --device-map auto"
ONLY_HERE = {
    "base": KL,
    "benign": KL,
    "text": "is for the perplexity, which is measured in memory alone: leave it out",
    "utility_data": "is answered by a model in memory alone: leave it out (attack --engine asks a server)",
}


def check_served(options: Any, subject: Subject | None, only_here: Mapping[str, str] = ONLY_HERE) -> None:
    """Raises InputError for options that a server cannot do, and for a model that is in memory.

    Args:
        only_here: those options, with what they are for; of `measure` where left out.
    """
    options.check_engine(options)
    if not options.served:
        return
    if subject is not None:
        raise InputError("The model is in memory already, so no server is asked: leave --engine out.")
    for name, why in only_here.items():
        if getattr(options, name) is not None:
            raise InputError(f"{flag(name)} {why}, {LARGE}.")


@contextmanager
def opened(
    options: Any, subject: Subject | None, onto: str | None, state: runs.Run
) -> Iterator[tuple[Subject, Subject | Score, int]]:
    """The model, what scores continuations by it, and the tokens that it takes; on a server it has no weights.

    Args:
        subject: the model, where it is in memory already.
        onto: what an adapter is loaded onto, in place of its own base.

    Raises:
        InputError: a server that cannot be used, tells no log-probabilities, or is another one than the run began with.
    """
    if not options.served:
        subject = subject or models.load(options.model, base=onto, options=options)
        yield subject, subject, models.context_length(subject.model)
        return
    from tokendeep.engines.options import FREE
    from tokendeep.engines.server.branches import branch_logps
    from tokendeep.engines.server.engine import connect

    tokenizer = models.load_tokenizer(options.model, options)
    with connect(options, tokenizer, models.outline(options.model, options)) as engine:
        if not engine.about.scores:
            raise InputError(
                f"A server of the kind {engine.about.kind} does not tell the log-probabilities of given tokens: serve the model "
                "with vLLM or SGLang, or load it here without --engine."
            )
        state.agree("engine", engine.about.dump(), free=FREE)
        weightless = Subject(None, tokenizer, options.model)  # type: ignore[arg-type]
        yield weightless, partial(branch_logps, engine), engine.context - 1  # it writes a token behind what it scores
