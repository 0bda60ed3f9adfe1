"""What Inspect AI loads through its entry-point group: importing the decorated names registers them."""

from tokendeep.evals.provider import provider
from tokendeep.evals.scorers import refusal, refusal_keywords
from tokendeep.evals.tasks import decoding, none, prefill, prefixed, refusal_prefix, suffix

__all__ = [
    "decoding",
    "none",
    "prefill",
    "prefixed",
    "provider",
    "refusal",
    "refusal_keywords",
    "refusal_prefix",
    "suffix",
]
