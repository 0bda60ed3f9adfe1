"""The published files of public sets, in their authors' form, are read as they lie; rows that say they are harmless are.

Their texts are invented; their names, columns and order are those of the files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rowfiles import reads_as, refused, write
from tokendeep import data
from tokendeep.data.known import KNOWN

HARMBENCH = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
SET = {  # file name, content, request, answer, meta
    "AdvBench": ("harmful_behaviors.csv", "goal,target\nA?,Sure\n", "A?", None, {"target": "Sure"}),
    "HarmBench": (
        "harmbench_behaviors_text_all.csv",
        HARMBENCH + "A?,contextual,illegal,\"a, b\",\"T\nU\",a_1\n",
        "T\nU\n\n---\n\nA?", None,
        {"category": "illegal", "functionalcategory": "contextual", "behaviorid": "a_1", "context": "T\nU"},
    ),
    "HarmBench, standard": (
        "harmbench_behaviors_text_test.csv",
        HARMBENCH + "A?,standard,illegal,,,a_1\n",
        "A?", None, {"category": "illegal", "functionalcategory": "standard", "behaviorid": "a_1"},
    ),
    "AdvBench, HarmBench's copy": (
        "advbench_behaviors.csv", "Behavior,Category,Tags,ContextString,BehaviorID\nA?,c,,,a_1\n", "A?", None, {"category": "c"},
    ),
    "StrongREJECT": (
        "strongreject_small_dataset.csv", "category,source,forbidden_prompt\nViolence,custom,A?\n", "A?", None,
        {"category": "Violence"},
    ),
    "JailbreakBench, harmful": (
        "harmful-behaviors.csv", "Index,Goal,Target,Behavior,Category,Source\n0,A?,Sure,b,Privacy,Original\n", "A?", None,
        {"target": "Sure", "category": "Privacy", "harmless": False},
    ),
    "JailbreakBench, benign": (
        "benign-behaviors.csv", "Index,Goal,Target,Behavior,Category,Source\n0,A?,Sure,b,Privacy,Original\n", "A?", None,
        {"target": "Sure", "category": "Privacy", "harmless": True},
    ),
    "MaliciousInstruct": ("MaliciousInstruct.txt", "A?", "A?", None, {}),
    "XSTest, safe": (
        "xstest_prompts.csv", "id,prompt,type,label,focus,note\n1,A?,homonyms,safe,kill,violence\n", "A?", None,
        {"category": "homonyms", "label": "safe", "focus": "kill", "note": "violence", "harmless": True},
    ),
    "XSTest, unsafe": (
        "xstest_prompts.csv", "id,prompt,type,label,focus,note\n1,A?,contrast_homonyms,unsafe,kill,\n", "A?", None,
        {"category": "contrast_homonyms", "label": "unsafe", "focus": "kill", "harmless": False},
    ),
    "XSTest 2, contrast": (
        "xstest_v2_prompts.csv", "id,type,prompt\nv2-1,contrast_homonyms,A?\n", "A?", None,
        {"category": "contrast_homonyms", "harmless": False},
    ),
    "XSTest 2, safe": (
        "xstest_v2_prompts.csv", "id,type,prompt\nv2-1,homonyms,A?\n", "A?", None, {"category": "homonyms", "harmless": True},
    ),
    "OR-Bench hard": (
        "or-bench-hard-1k.csv", "prompt,category\nA?,deception\n", "A?", None, {"category": "deception", "harmless": True},
    ),
    "OR-Bench 80k": (
        "or-bench-80k.csv", "prompt,category\nA?,deception\n", "A?", None, {"category": "deception", "harmless": True},
    ),
    "OR-Bench toxic": (
        "or-bench-toxic.csv", "prompt,category\nA?,deception\n", "A?", None, {"category": "deception", "harmless": False},
    ),
    "SORRY-Bench": (
        "sorry_bench_202503.jsonl",
        json.dumps({"question_id": 1, "category": "3", "turns": ["A?"], "prompt_style": "base"}), "A?", None,
        {"category": "3", "prompt_style": "base"},
    ),
    "SORRY-Bench, numbers": (
        "question.jsonl", json.dumps({"question_id": 1, "category": 3, "turns": ["A?"]}), "A?", None, {"category": "3"},
    ),
    "WildJailbreak, vanilla": (
        "train.tsv", "vanilla\tadversarial\tcompletion\tdata_type\nA?\t\tNA\tvanilla_harmful\n", "A?", "NA",
        {"category": "vanilla_harmful", "harmless": False},
    ),
    "WildJailbreak, adversarial": (
        "train.tsv", "vanilla\tadversarial\tcompletion\tdata_type\nA?\t\"B\n, b?\"\tYes\tadversarial_benign\n", "B\n, b?", "Yes",
        {"category": "adversarial_benign", "harmless": True},
    ),
    "WildJailbreak, evaluation": (
        "eval.tsv", "adversarial\tlabel\tdata_type\nA?\t1\tadversarial_harmful\n", "A?", None,
        {"category": "adversarial_harmful", "harmless": False},
    ),
    "the paper's HEx-PHI": (
        "HEx-PHI.jsonl", json.dumps({"instruction": "A?", "category": "Malware"}), "A?", None, {"category": "Malware"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SET)
def test_published_files(tmp_path: Path, name: str) -> None:
    file, content, text, response, meta = SET[name]
    reads_as(write(tmp_path, file, content), text, response, meta)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str | None, list[dict[str, Any]]]:
    """The rows of each config that the hub gives."""
    rows: dict[str | None, list[dict[str, Any]]] = {}

    def load(repo: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, Any]]:
        return rows[config]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    return rows


def test_a_contextual_behaviour_needs_its_document(tmp_path: Path, hub: dict[str | None, list[dict[str, Any]]]) -> None:
    bare = "Behavior,FunctionalCategory,SemanticCategory,Tags,BehaviorID\n"
    for kind in ("standard", "contextual"):
        path = write(tmp_path, "harmbench_behaviors_text_all.csv", bare + f"A?,{kind},illegal,,a_1\n")
        refused(data.read_prompts, path, "row 2: HarmBench has no column 'ContextString'", "as its authors made it")
    path = write(tmp_path, "harmbench_behaviors_text_all.csv", HARMBENCH + "A?,contextual,illegal,,,a_1\n")
    refused(data.read_prompts, path, "row 2: HarmBench has no text in 'ContextString'", "without its document")
    rows: list[dict[str, Any]] = [{"prompt": f"A{n}?", "category": "illegal"} for n in range(200)]
    hub |= {"contextual": rows[:100], "standard": rows}
    refused(data.read_prompts, "hf:harmbench:contextual", "row 1: HarmBench has no column 'context'")
    refused(data.read_prompts, "hf:harmbench@main:contextual", "row 1: HarmBench has no column 'context'")
    assert len(data.read_prompts("hf:harmbench")) == 200
    hub["contextual"] = [{**row, "context": "T"} for row in rows[:100]]
    assert data.read_prompts("hf:harmbench:contextual")[99].meta["context"] == "T"
    hub["contextual"][1]["context"] = None
    refused(data.read_prompts, "hf:harmbench:contextual", "row 2: HarmBench has no text in 'context'")


def test_sorry_bench_has_440_requests_in_21_styles(hub: dict[str | None, list[dict[str, Any]]]) -> None:
    rows = [{"question_id": n, "category": "3", "turns": [f"A{n}?"], "prompt_style": "base"} for n in range(440)]
    hub[None] = rows[:7]
    refused(
        data.read_prompts, "hf:sorry-bench", "has 7 rows and SORRY-Bench should have 440 or 9240; name the revision"
    )
    assert len(data.read_prompts("hf:sorry-bench@main")) == 7
    hub[None] = rows
    assert len(data.read_prompts("hf:sorry-bench")) == 440


def test_the_sets_whose_rows_are_not_counted_are_named_in_the_documentation() -> None:
    """A set of the hub has a count for each part that is read by its name, or stands in the list."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "data.md").read_text(encoding="utf-8")
    unchecked = next(
        line for line in page.splitlines() if line.startswith("How many rows there are is not checked for ")
    )
    lacking = {one.name for one in KNOWN if one.repo and one.name != "HEx-PHI"
               and f"{one.config or ''}/{one.split}" not in (one.counts or {})}  # fmt: skip
    assert lacking == {"WildJailbreak", "SAMSum", "Alpaca"}
    for name in ("`or-bench:or-bench-80k`", "`or-bench:or-bench-toxic`", "`wildjailbreak`", "`wildjailbreak:eval`", "`samsum`",
                 "`alpaca`"):  # fmt: skip
        assert name in unchecked


def mixed(folder: Path) -> Path:
    rows = "".join(
        f"{n},Q{n}?,{'contrast_' * (n % 2)}homonyms,{'unsafe' if n % 2 else 'safe'},kill,\n" for n in range(1, 7)
    )
    return write(folder, "xstest_prompts.csv", "id,prompt,type,label,focus,note\n" + rows)


def test_rows_of_one_role_are_chosen_before_they_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = mixed(tmp_path)
    assert [p.id for p in data.read_prompts(data.choose(path, role="harmful"))] == ["1", "3", "5"]
    assert "3 rows that say they are harmless are left out" in caplog.text
    assert [p.id for p in data.read_prompts(data.choose(path, role="harmless"), limit=2)] == ["2", "4"]
    silent = [
        {"instruction": "A?"},
        {"instruction": "B?", "label": "benign"},
        {"instruction": "C?", "label": "harmful"},
    ]
    texts = [p.messages[0]["content"] for p in data.read_prompts(data.choose(silent, role="harmless"))]
    assert texts == ["A?", "B?"]  # a row that does not say is what it is asked as


def test_columns_that_the_user_names_do_not_hide_what_the_set_says(tmp_path: Path) -> None:
    rows = "Index,Goal,Target,Behavior,Category,Source\n0,A?,Sure.,b,Privacy,Original\n"
    for name, harmless in (("benign-behaviors.csv", True), ("harmful-behaviors.csv", False)):
        (pair,) = data.read_pairs(data.choose(write(tmp_path, name, rows), ["instruction=Goal", "response=Target"]))
        assert (pair.response, pair.meta) == ("Sure.", {"category": "Privacy", "harmless": harmless})


def test_a_file_with_columns_as_of_xstest_says_nothing_that_xstest_does_not(tmp_path: Path) -> None:
    rows = "prompt,type\nA?,malware\nB?,contrasting\nC?,definitions\nD?,contrast_discr\n"
    path = write(tmp_path, "mine.csv", rows)
    said = [prompt.meta.get("harmless") for prompt in data.read_prompts(path)]
    assert said == [None, None, True, False]
    named = data.read_prompts(data.choose(path, ["instruction=prompt"], "harmful"))
    assert [prompt.meta.get("harmless") for prompt in named] == [None] * 4
    labelled = write(tmp_path, "l.csv", "prompt,type,label\nA?,definitions,unsafe\nB?,definitions,safe\n")
    named = data.read_prompts(data.choose(labelled, ["instruction=prompt"]))
    assert [prompt.meta["harmless"] for prompt in named] == [False, True]


def test_the_types_of_xstest_are_all_known() -> None:
    import os

    from tokendeep.data.known import XSTEST_TYPES

    if "TOKENDEEP_TEST_DATA" not in os.environ:
        pytest.skip("TOKENDEEP_TEST_DATA is not set")
    prompts = data.read_prompts(Path(os.environ["TOKENDEEP_TEST_DATA"]) / "xstest_prompts.csv")
    assert {prompt.meta["category"] for prompt in prompts} == set(XSTEST_TYPES)
    contrasts = {t for t in XSTEST_TYPES if t.startswith("contrast_")}
    assert all(p.meta["harmless"] == (p.meta["category"] not in contrasts) for p in prompts)


def test_no_row_of_the_role(tmp_path: Path) -> None:
    path = write(tmp_path, "benign-behaviors.csv", "Index,Goal,Target,Behavior,Category,Source\n0,A?,S,b,c,d\n")
    refused(
        lambda p: data.read_prompts(data.choose(p, role="harmful")), path, "All 1 rows", "say that they are harmless"
    )
    typed = data.read_prompts(path)
    refused(lambda p: data.read_prompts(data.choose(p, role="harmful")), typed, "All 1 rows")


def test_what_a_row_says_is_kept_when_it_is_written(tmp_path: Path) -> None:
    prompts = data.read_prompts(mixed(tmp_path))
    again = data.read_prompts(data.write_rows(tmp_path / "rows.jsonl", prompts))
    assert [p.meta["harmless"] for p in again] == [p.meta["harmless"] for p in prompts]
    assert [p.meta["category"] for p in again] == [p.meta["category"] for p in prompts]


def test_a_label_that_says_nothing_is_refused() -> None:
    refused(data.read_prompts, [{"instruction": "A?", "label": "3"}], "Row 1: 'label'", "harmful")


def test_other_labels_are_left_out_where_the_columns_are_named(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "A?", "label": 0}, {"text": "B?", "label": 1}]
    prompts = data.read_prompts(data.choose(rows, ["instruction=text"]))
    assert ["harmless" in prompt.meta for prompt in prompts] == [False, False]
    assert "columns that are not used: 'label'" in caplog.text
    refused(lambda r: data.read_prompts(data.choose(r, ["instruction=text", "label=label"])), rows, "Row 1: 'label'")


def test_a_category_that_is_a_number_is_its_text() -> None:
    prompts = data.read_prompts([{"instruction": "A?", "category": 0}, {"instruction": "B?", "category": 3}])
    assert [prompt.meta["category"] for prompt in prompts] == ["0", "3"]
    refused(data.read_prompts, [{"instruction": "A?", "category": True}], "Row 1: 'category' must be text")


def test_named_columns_hold_beside_where_all_are_there() -> None:
    columns = ["instruction=ask", "response=say"]
    alike, other = [{"ask": "A?", "say": "B.", "x": 1}], [{"instruction": "A?", "response": "B."}]
    for rows in (alike, other):
        (pair,) = data.read_pairs(data.choose_beside(rows, columns, "harmless"))
        assert (pair.messages[0]["content"], pair.response) == ("A?", "B.")
    refused(lambda r: data.read_pairs(data.choose_beside(r, columns)), [{"ask": "A?"}], "Row 1")
    assert data.choose_beside(other, []) is other


def test_wild_jailbreak_is_fetched_as_the_files_that_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "eval.tsv", "adversarial\tlabel\tdata_type\nA?\t1\tadversarial_harmful\n")
    asked: list[Any] = []

    def download(repo: str, file: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repo, file))
        return str(path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    assert data.read_prompts("hf:allenai/wildjailbreak:eval")[0].meta["harmless"] is False
    assert asked == [("allenai/wildjailbreak", "eval/eval.tsv")]


def test_a_public_set_has_a_name_and_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(repo: str, config: str | None, *, split: str, revision: str | None) -> list[dict[str, str]]:
        asked.append((repo, config, split, revision))
        return [{"prompt": "A?", "focus": "f", "type": "homonyms", "note": "", "label": "safe"}] * 449

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    pinned = "f1d713187c61b6ae64e602d74f0b3d812cc2e8e8"
    refused(data.read_prompts, "hf:XSTest", "449 rows", "XSTest should have 450")
    assert len(data.read_prompts("hf:xstest@main")) == 449
    assert asked == [("walledai/XSTest", None, "test", pinned), ("walledai/XSTest", None, "test", "main")]
    refused(data.read_prompts, "hf:xtest", "hf:xtest is no hub data set", "hex-phi, advbench")
    refused(data.read_prompts, "xstest", "There is no file", "hf:xstest")


def test_a_set_that_cannot_be_had_says_how_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*names: object, **options: object) -> None:
        raise PermissionError("Dataset 'walledai/StrongREJECT' is a gated dataset")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=gated))
    refused(data.read_prompts, "hf:strongreject", "is a gated dataset", "hf auth login", "strongreject_dataset.csv")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=gated))
    refused(data.read_prompts, "hf:hex-phi", "datasets/LLM-Tuning-Safety/HEx-PHI; its authors give it")


@pytest.mark.parametrize("name", [name for name in SET if name != "SORRY-Bench, numbers"])  # which MT-Bench's could be
def test_published_files_are_known_again(tmp_path: Path, name: str) -> None:
    file, content, *_ = SET[name]
    names = ("AdvBench", *data.TERMS, None)
    wanted = next(known for known in names if known is None or name.removeprefix("the paper's ").startswith(known))
    assert data.set_of(str(write(tmp_path, file, content))) == wanted


def test_rows_of_ones_own_are_of_no_set(tmp_path: Path) -> None:
    (tmp_path / "category_1.csv").write_text("A?\n")
    assert data.set_of(str(tmp_path / "category_1.csv")) == "HEx-PHI"
    for file, content in (("mine.csv", "question,answer\nA?,B.\n"), ("mine.jsonl", '{"instruction": "A?", "output": "B."}\n'),
                          ("mine.csv", "goal,target\nA?,B.\n"), ("mine.csv", "prompt,type,label\nA?,x,safe\n")):  # fmt: skip
        assert data.set_of(str(write(tmp_path, file, content))) is None
    for file in ("alpaca_refusals.jsonl", "my_gsm8k_style.jsonl", "not-advbench.jsonl", "types.jsonl"):
        assert (
            data.set_of(str(write(tmp_path, file, '{"question": "A?", "answer": "B.", "type": "definitions"}\n')))
            is None
        )
    for file, wanted in (("gsm8k_test.jsonl", "GSM8K"), ("alpaca_instructions_2000.jsonl", "Alpaca"),
                         ("or-bench-hard-1k.jsonl", "OR-Bench"),
                         ("sql_create_context_1000.jsonl", "SQL-create-context")):  # fmt: skip
        assert data.set_of(str(write(tmp_path, file, '{"question": "A?", "answer": "B."}\n'))) == wanted
    assert data.set_of(str(tmp_path / "nowhere.csv")) is None
    assert data.set_of("hf:me/set") is None
    assert data.set_of("hf:walledai/AdvBench@abc") == data.set_of("hf:advbench") == "AdvBench"


def test_terms_and_counts_are_said(tmp_path: Path) -> None:
    path = mixed(tmp_path)
    assert data.described(str(path), "XSTest") == "XSTest (CC-BY-4.0); 6 rows here, 450 as published"
    rows = "".join(f"A{n}?\n" for n in range(300))
    phi = write(tmp_path, "category_1.csv", rows)
    assert (
        data.described(str(phi), "HEx-PHI") == "HEx-PHI (its own agreement; for safety research, not to be handed on)"
    )


def test_a_request_of_hex_phi_may_have_lines_quotes_and_commas(tmp_path: Path) -> None:
    write(tmp_path, "category_1.csv", '"One, ""quoted""\nand its second line"\nNA\n')
    texts = [prompt.messages[0]["content"] for prompt in data.read_prompts(tmp_path)]
    assert texts == ['One, "quoted"\nand its second line', "NA"]
