"""The judges that tell from a completion's text what became of the request, by name in `JUDGES`.

To add one: a file of its own here, and one line below. Evaluations, reports and the command line know judges through this
dict alone.
"""

from tokendeep.judges import (
    classifiers,
    finetuned,
    harmbench,
    keywords,
    llamaguard,
    qwen3guard,
    rubric,
    strongreject,
    wildguard,
)
from tokendeep.judges.base import HITS, JUDGED, OUTCOMES, SCORED, Judge
from tokendeep.judges.keywords import judge_keywords
from tokendeep.judges.rule import verdict
from tokendeep.judges.rule.verdict import judge_refusal
from tokendeep.records import Verdict

__all__ = ["HITS", "JUDGED", "JUDGES", "OUTCOMES", "SCORED", "Judge", "Verdict", "judge_keywords", "judge_refusal",
           "of_harm"]  # fmt: skip

JUDGES = {
    "refusal": verdict.JUDGE,
    "refusal-keywords": keywords.JUDGE,
    "rubric": rubric.JUDGE,
    "strongreject-rubric": strongreject.JUDGE,
    "qwen3guard": qwen3guard.LOOSE,
    "qwen3guard-strict": qwen3guard.STRICT,
    "llama-guard-3": llamaguard.JUDGE,
    "harmbench": harmbench.LLAMA,
    "harmbench-val": harmbench.VALIDATION,
    "wildguard": wildguard.JUDGE,
    "strongreject-ft": finetuned.JUDGE,
    "hf-refusal": classifiers.REFUSAL,
    "hf-harm": classifiers.HARM,
}


def of_harm(name: str) -> bool:
    """Whether a judge tells harm, and so nothing of refusals; one that is not known does not."""
    return name in JUDGES and JUDGES[name].harm
