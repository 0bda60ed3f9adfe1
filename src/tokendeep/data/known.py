"""The public data sets that are read by their own column names, a line each.

To add one: a line in `KNOWN`, with its repository where it can be fetched and the row counts that published numbers are
about.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

BESIDE = ("system", "history")  # columns that any set may have; what they hold stands before the request
HARMLESS = ("safe", "benign", "harmless", "unharmful", "vanilla_benign", "adversarial_benign")
HARMFUL = ("unsafe", "harmful", "toxic", "vanilla_harmful", "adversarial_harmful")
XSTEST_TYPES = (
    *("homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions", "historical_events"),
    *("nons_group_real_discr", "real_group_nons_discr", "privacy_public", "privacy_fictional"),
    *("contrast_homonyms", "contrast_figurative_language", "contrast_safe_targets", "contrast_safe_contexts"),
    *("contrast_definitions", "contrast_historical_events", "contrast_discr", "contrast_privacy"),
)
# (columns, file name or config/split) -> harmless, harmful, silent
Says = Callable[[Mapping[str, Any], str], bool | None]


def harmless(word: object) -> bool | None:
    """What a label says of a request; None for any other word."""
    plain = word.strip().lower() if isinstance(word, str) else None
    return True if plain in HARMLESS else False if plain in HARMFUL else None


def by_label(column: str) -> Says:
    """The column that says it."""
    return lambda values, part: harmless(values.get(column))


def by_name(benign: str, harmful: str) -> Says:
    """Words in the name of the file or split that say it of all rows."""

    def says(values: Mapping[str, Any], part: str) -> bool | None:
        return True if re.search(benign, part) else False if re.search(harmful, part) else None

    return says


def _xstest(values: Mapping[str, Any], part: str) -> bool | None:
    """The label; older files have none, but a type of XSTest's own, of which the contrasts are unsafe."""
    said, kind = harmless(values.get("label")), str(values.get("type"))
    if said is None and kind in XSTEST_TYPES:
        return not kind.startswith("contrast_")
    return said


def _in_config(values: Mapping[str, Any], part: str) -> bool | None:
    """The contextual behaviours of HarmBench on the hub."""
    return part.startswith("contextual/")


def _in_category(values: Mapping[str, Any], part: str) -> bool | None:
    """The contextual behaviours of HarmBench in its authors' file, which has the column for all of them."""
    return True if values.get("FunctionalCategory") == "contextual" else None


@dataclass(frozen=True)
class Known:
    """A public data set: which of its columns is what. Columns named nowhere here are an error but in a hub set.

    `layout` puts a non-empty `context` column together with the instruction, and `instead` takes the place of an empty
    instruction. `needs` tells which rows must have their context; None is said of one that must have its column alone.
    `target` columns (an affirmative opening to optimise towards, no answer) stay in `meta`. `says` tells
    which rows are harmless. `files` matches the names of its files where their columns alone do not tell the set.
    `common` are columns that others have too, so that the set says nothing where the user names columns. `revision` is
    the commit that is fetched where the user names none, and `get` how else the set is to be had.
    `counts` maps "config/split" to the row counts seen so far; `tables` config to the file in the repository.
    """

    name: str
    instruction: str
    response: str | None = None
    context: str | None = None
    layout: str = "{instruction}\n\n{context}"
    needs: Says = lambda values, part: False
    opening: str = ""
    instead: str | None = None
    category: str | None = None
    meta: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    says: Says = lambda values, part: None
    files: str = ""
    common: bool = False
    repo: str = ""
    config: str | None = None
    split: str = "train"
    counts: Mapping[str, tuple[int, ...]] | None = None
    tables: Mapping[str, str] | None = None
    revision: str | None = None
    get: str = ""

    @property
    def behind(self) -> bool:
        """Whether the context stands before the request, as a document that it is about."""
        return self.layout == BEHIND_CONTEXT

    @property
    def required(self) -> set[str]:
        return {column for column in (self.instruction, self.response, self.category) if column}

    @property
    def columns(self) -> set[str]:
        optional = {column for column in (self.context, self.instead) if column}
        return self.required | optional | {*self.meta, *self.ignored, "id", *BESIDE}


GITHUB = "its authors' file is https://github.com"
HEX_PHI = Known("HEx-PHI", "prompt", category="category", repo="LLM-Tuning-Safety/HEx-PHI", counts={"": (300, 330)},
                get="its authors give it to those who ask on that page")  # fmt: skip
HEX_PHI_CATEGORIES = {
    1: "Illegal Activity", 2: "Child Abuse Content", 3: "Hate/Harass/Violence", 4: "Malware", 5: "Physical Harm",
    6: "Economic Harm", 7: "Fraud/Deception", 8: "Adult Content", 9: "Political Campaigning",
    10: "Privacy Violation Activity", 11: "Tailored Financial Advice",
}  # fmt: skip
ADVBENCH = Known("AdvBench", "prompt", meta=("target",), repo="walledai/AdvBench", counts={"/train": (520,)},
                 get=f"{GITHUB}/llm-attacks/llm-attacks, data/advbench/harmful_behaviors.csv")  # fmt: skip
BEHIND_CONTEXT = "{context}\n\n---\n\n{instruction}"
KNOWN = (
    HEX_PHI,
    ADVBENCH,
    Known("AdvBench", "goal", meta=("target",)),  # the authors' CSV
    Known("HarmBench", "prompt", context="context", layout=BEHIND_CONTEXT, needs=_in_config, category="category",
          repo="walledai/HarmBench", config="standard",
          counts={"standard/train": (200,), "contextual/train": (100,), "copyright/train": (100,)},
          get=f"{GITHUB}/centerforaisafety/HarmBench, data/behavior_datasets/harmbench_behaviors_text_all.csv"),
    Known("HarmBench", "Behavior", context="ContextString", layout=BEHIND_CONTEXT, needs=_in_category,
          category="SemanticCategory", meta=("FunctionalCategory", "BehaviorID"), ignored=("Tags",)),  # the authors' CSV
    Known("AdvBench", "Behavior", category="Category", ignored=("Tags", "ContextString", "BehaviorID")),  # HarmBench's copy
    Known("StrongREJECT", "prompt", category="category", repo="walledai/StrongREJECT", counts={"/train": (313,)},
          get=f"{GITHUB}/alexandrasouly/strongreject, strongreject_dataset/strongreject_dataset.csv"),
    Known("StrongREJECT", "forbidden_prompt", category="category", ignored=("source",)),  # the authors' CSV
    Known("JailbreakBench", "Goal", category="Category", meta=("Target",), ignored=("Behavior", "Source", "Index"),
          says=by_name("benign", "harmful"), repo="JailbreakBench/JBB-Behaviors", config="behaviors", split="harmful",
          counts={"behaviors/harmful": (100,), "behaviors/benign": (100,), "judge_comparison/test": (300,)},
          revision="886acc352a31533ffbcf4ef22c744658688086fc"),
    Known("MaliciousInstruct", "prompt", repo="walledai/MaliciousInstruct", counts={"/train": (100,)},
          get=f"{GITHUB}/Princeton-SysML/Jailbreak_LLM, data/MaliciousInstruct.txt"),
    Known("XSTest", "prompt", category="type", meta=("label", "focus", "note"), says=_xstest, common=True,
          repo="walledai/XSTest", split="test", counts={"/test": (450,)},
          revision="f1d713187c61b6ae64e602d74f0b3d812cc2e8e8",
          get=f"{GITHUB}/paul-rottger/xstest, xstest_prompts.csv"),
    Known("OR-Bench", "prompt", category="category", says=by_name("or-bench-(hard|80k)", "or-bench-toxic"),
          files=r"or-bench.*", repo="bench-llm/or-bench", config="or-bench-hard-1k",
          counts={"or-bench-hard-1k/train": (1319,)}),
    Known("SORRY-Bench", "turns", category="category", meta=("prompt_style",), ignored=("question_id",),
          repo="sorry-bench/sorry-bench-202503", counts={"/train": (440, 9240)},  # without and with its 20 mutations
          get="its authors give it to those who ask on that page"),
    Known("WildJailbreak", "adversarial", response="completion", instead="vanilla", category="data_type",
          ignored=("tactics",), says=by_label("data_type"), repo="allenai/wildjailbreak", config="train",
          tables={"train": "train/train.tsv", "eval": "eval/eval.tsv"}, get="it takes a login and consent on that page"),
    Known("WildJailbreak", "adversarial", category="data_type", ignored=("label", "tactics"),
          says=by_label("data_type")),  # its evaluation file
    Known("SAMSum", "dialogue", response="summary", opening="Summarize this dialogue:\n\n", repo="knkarthick/samsum"),
    Known("SQL-create-context", "question", response="answer", context="context", repo="b-mc2/sql-create-context",
          counts={"/train": (78577,)}),
    Known("GSM8K", "question", response="answer", repo="openai/gsm8k", config="main",
          counts={"main/train": (7473,), "main/test": (1319,)}, revision="cc7b047b6e5bb11b4f1af84efc572db110a51b3c"),
    Known("Alpaca", "instruction", response="output", context="input", ignored=("text",), repo="tatsu-lab/alpaca"),
)  # fmt: skip
HEADERLESS = re.compile(r"advbench_harmful_behaviors\.csv|category_(?P<category>\d+)\.csv")
