"""The public data sets that are read by their own column names, a line each.

To add one: a line in `KNOWN`, with its repository where it can be fetched and the row counts that published numbers are
about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """A public data set: which of its columns is what. Columns named nowhere here are an error but in a hub set.

    `layout` puts a non-empty `context` column together with the instruction. `target` columns (an affirmative opening
    to optimise towards, no answer) stay in `meta`. `counts` maps "config/split" to the row counts seen so far.
    """

    name: str
    instruction: str
    response: str | None = None
    context: str | None = None
    layout: str = "{instruction}\n\n{context}"
    opening: str = ""
    category: str | None = None
    meta: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    repo: str = ""
    config: str | None = None
    split: str = "train"
    counts: Mapping[str, tuple[int, ...]] | None = None

    @property
    def required(self) -> set[str]:
        return {column for column in (self.instruction, self.response, self.category) if column}

    @property
    def columns(self) -> set[str]:
        return self.required | {*self.meta, *self.ignored, "id"} | ({self.context} if self.context else set())


HEX_PHI = Known("HEx-PHI", "prompt", category="category", repo="LLM-Tuning-Safety/HEx-PHI", counts={"": (300, 330)})
HEX_PHI_CATEGORIES = {
    1: "Illegal Activity", 2: "Child Abuse Content", 3: "Hate/Harass/Violence", 4: "Malware", 5: "Physical Harm",
    6: "Economic Harm", 7: "Fraud/Deception", 8: "Adult Content", 9: "Political Campaigning",
    10: "Privacy Violation Activity", 11: "Tailored Financial Advice",
}  # fmt: skip
ADVBENCH = Known("AdvBench", "prompt", meta=("target",), repo="walledai/AdvBench", counts={"/train": (520,)})
KNOWN = (
    HEX_PHI,
    ADVBENCH,
    Known("AdvBench", "goal", meta=("target",)),  # the authors' CSV
    Known("HarmBench", "prompt", context="context", layout="{context}\n\n---\n\n{instruction}", category="category",
          repo="walledai/HarmBench", config="standard",
          counts={"standard/train": (200,), "contextual/train": (100,), "copyright/train": (100,)}),
    Known("StrongREJECT", "prompt", category="category", repo="walledai/StrongREJECT", counts={"/train": (313,)}),
    Known("StrongREJECT", "forbidden_prompt", category="category", ignored=("source",)),  # the authors' CSV
    Known("JailbreakBench", "Goal", category="Category", meta=("Target",), ignored=("Behavior", "Source", "Index"),
          repo="JailbreakBench/JBB-Behaviors", config="behaviors", split="harmful",
          counts={"behaviors/harmful": (100,), "behaviors/benign": (100,)}),
    Known("MaliciousInstruct", "prompt", repo="walledai/MaliciousInstruct", counts={"/train": (100,)}),
    Known("XSTest", "prompt", category="type", meta=("label", "focus", "note"), repo="walledai/XSTest", split="test",
          counts={"/test": (450,)}),
    Known("OR-Bench", "prompt", category="category", repo="bench-llm/or-bench", config="or-bench-hard-1k",
          counts={"or-bench-hard-1k/train": (1319,)}),
    Known("SAMSum", "dialogue", response="summary", opening="Summarize this dialogue:\n\n", repo="knkarthick/samsum"),
    Known("SQL-create-context", "question", response="answer", context="context", repo="b-mc2/sql-create-context",
          counts={"/train": (78577,)}),
    Known("GSM8K", "question", response="answer", repo="openai/gsm8k", config="main",
          counts={"main/train": (7473,), "main/test": (1319,)}),
    Known("Alpaca", "instruction", response="output", context="input", ignored=("text",), repo="tatsu-lab/alpaca"),
)  # fmt: skip
HEADERLESS = re.compile(r"advbench_harmful_behaviors\.csv|category_(?P<category>\d+)\.csv")
