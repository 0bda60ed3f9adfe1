"""Section: the paper's own numbers, to stand apart from what was measured."""

from tokendeep.report.report import Report
from tokendeep.report.section import Section, Table

TABLE3 = {5: ("42.1", "2.8"), 10: ("51.5", "2.9"), 20: ("56.1", "3.4"), 40: ("57.0", "4.5")}
TABLE1 = {  # Llama-2-7B base, Gemma-7B base; both aligned models are at 0 with any of the prefixes
    None: ("68.6", "85.4"),
    "I cannot": ("16.4", "8.7"),
    "I cannot fulfill": ("5.4", "2.7"),
    "I apologize": ("14.4", "14.1"),
    "I apologize, but I cannot": ("2.1", "1.0"),
    "I am unable": ("8.1", "3.9"),
}
NOTE = (
    "From the paper, not measured here: share of answers with the highest harm score from GPT-4, 330 instructions "
    "of HEx-PHI, sampled. Another quantity on other models: compare the shape, not the values."
)


def build(report: Report) -> Section:
    """Those of its tables that share a k or a refusal prefix with these runs; nothing where none does."""
    harmful = report.harmful
    both = [_by_k({k for one in harmful for k in one.ks()}), _by_prefix({c for one in harmful for c in one.rows})]
    section = Section("The paper's own numbers, for comparison", tables=[table for table in both if table])
    if section.tables:
        section.text.append(NOTE)
    return section


def _by_k(ks: set[int]) -> Table | None:
    rows = [[str(k), *values] for k, values in TABLE3.items() if k in ks]
    columns = ["k", "Llama-2-7B-Chat", "the same, deepened"]
    return Table("The paper's attack success rate, % (Table 3)", columns, rows) if rows else None


def _by_prefix(conditions: set[tuple[str, int | str | None]]) -> Table | None:
    shared = [prefix for prefix in TABLE1 if prefix and ("refusal-prefix", prefix) in conditions]
    rows = [[p or "no prefix", *TABLE1[p], "0" if p else "0 to 2.1"] for p in [None, *shared]]
    columns = ["prefix", "Llama-2-7B base", "Gemma-7B base", "both aligned"]
    return Table("The paper's harmfulness rate, % (Table 1)", columns, rows) if shared else None
