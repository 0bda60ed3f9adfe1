"""What files become, and that each mistake in a file is one sentence with file, row and fix."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rowfiles import SECRET, reads_as, refused, write
from tokendeep import data
from tokendeep.data import fields, files

USER = {"role": "user", "content": "How do I boil an egg?"}
ANSWER = {"role": "assistant", "content": "Put it into boiling water."}
SYSTEM = {"role": "system", "content": "Be brief."}


# ------------------------------------------------------------------------------------------- what loads


def test_pairs(tmp_path):
    rows = [
        {"instruction": "Name a river.", "response": " The Rhine.\n", "category": "geography", "meta": {"level": 1}},
        {"id": "b", "messages": [SYSTEM, USER], "response": "Boil it."},
        {"id": 7, "messages": [USER, ANSWER, USER, ANSWER]},
        {"prompt": "Say hi.", "completion": "Hi."},
        {"instruction": "Say no.", "harmful": "Yes.", "refusal": "No."},
    ]
    pairs = data.read_pairs(write(tmp_path, "pairs.jsonl", rows))
    assert [pair.response for pair in pairs] == [" The Rhine.\n", "Boil it.", ANSWER["content"], "Hi.", "Yes."]
    assert pairs[0].messages == ({"role": "user", "content": "Name a river."},)
    assert pairs[0].meta == {"level": 1, "category": "geography"}
    assert pairs[1].messages == (SYSTEM, USER)
    assert pairs[2].messages == (USER, ANSWER, USER)
    assert [pair.id for pair in pairs[1:3]] == ["b", "7"]


def test_triples_chats_and_prompts(tmp_path):
    triples = write(tmp_path, "t.jsonl", [{"instruction": "Say no.", "harmful": "Yes.", "refusal": "No."}])
    (triple,) = data.read_triples(triples)
    assert (triple.harmful, triple.refusal, triple.messages[0]["content"]) == ("Yes.", "No.", "Say no.")
    chats = write(tmp_path, "c.jsonl", [{"messages": [SYSTEM, USER, ANSWER]}, {"prompt": "A?", "completion": "B."}])
    first, second = data.read_chats(chats)
    assert first.messages == (SYSTEM, USER, ANSWER)
    assert [(m["role"], m["content"]) for m in second.messages] == [("user", "A?"), ("assistant", "B.")]
    prompts = data.read_prompts(chats)
    assert [prompt.messages for prompt in prompts] == [(SYSTEM, USER), ({"role": "user", "content": "A?"},)]
    assert prompts[0].prefix_ids == ()
    assert prompts[0].meta == {"prompt_id": prompts[0].id}
    assert [p.id for p in prompts] == [c.id for c in (first, second)]


def test_ids_are_hashes_of_the_content_and_repeats_stay_apart(tmp_path):
    rows = [{"instruction": "A?"}, {"instruction": "B?"}, {"instruction": "A?"}, {"instruction": "A?"}]
    ids = [prompt.id for prompt in data.read_prompts(write(tmp_path, "p.jsonl", rows))]
    digest = hashlib.sha256(b'{"instruction": "A?"}').hexdigest()[:12]
    assert [ids[0], ids[2], ids[3]] == [digest, f"{digest}-2", f"{digest}-3"]
    assert len(set(ids)) == 4
    assert ids == [prompt.id for prompt in data.read_prompts(write(tmp_path, "p.csv", "instruction\nA?\nB?\nA?\nA?\n"))]
    chats = write(tmp_path, "c.jsonl", [{"messages": [USER, ANSWER]}])
    assert data.read_prompts(chats)[0].id == data.read_pairs(chats)[0].id == data.read_chats(chats)[0].id


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path, "p.jsonl", '{"instruction": "A?"}\n{"instruction": "B?"}\nbroken\n')
    assert len(data.read_prompts(path, limit=2)) == 2
    refused(lambda p: data.read_prompts(p, limit=3), path, "row 3")
    refused(lambda p: data.read_prompts(p, limit=0), path, "limit", "1 or more")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", '[{"instruction": "Ä?"},\n {"instruction": "B, c"}]'),
        ("p.json", '{"instruction": "Ä?"}\n\n{"instruction": "B, c"}\n'),
        ("p.jsonl", '\ufeff{"instruction": "Ä?"}\r\n\r\n{"instruction": "B, c"}'),
        ("p.csv", '\ufeffinstruction\r\nÄ?\r\n\r\n"B, c"\r\n'),
        ("p.CSV", 'id,instruction,category\n1,Ä?,x\n2,"B, c",\n'),
        ("p.txt", "Ä?\n\nB, c\n"),
    ],
)
def test_formats(tmp_path, name, content):
    prompts = data.read_prompts(str(write(tmp_path, name, content)))
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["Ä?", "B, c"]


def test_csv_keeps_line_breaks_and_names_the_line_a_record_starts_on(tmp_path):
    path = write(tmp_path, "p.csv", 'instruction,response\n"A\nB, C",x\n"D\nE",\n')
    assert data.read_pairs(path, limit=1)[0].messages[0]["content"] == "A\nB, C"
    refused(data.read_pairs, path, "p.csv, row 4", "'response' is empty")


def test_a_home_folder_and_an_unknown_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "p.txt", "A?")
    assert len(data.read_prompts("~/p.txt")) == 1
    refused(data.read_prompts, "~nobody-of-that-name/p.txt", "There is no file")


def test_kind(tmp_path):
    def kind(row):
        return data.kind(write(tmp_path, "k.jsonl", [row]))

    assert kind({"instruction": "A?"}) == "prompts"
    assert kind({"messages": [USER]}) == "prompts"
    assert kind({"messages": [USER, ANSWER]}) == "chats"
    assert kind({"prompt": "A?", "completion": "B."}) == "chats"
    assert kind({"instruction": "A?", "response": "B."}) == "pairs"
    assert kind({"messages": [USER], "response": "B."}) == "pairs"
    assert kind({"instruction": "A?", "harmful": "B."}) == "pairs"
    assert kind({"instruction": "A?", "harmful": "B.", "refusal": "C."}) == "triples"
    assert kind({"question": "A?", "answer": "B."}) == "pairs"


def test_what_deepen_writes_loads_again(tmp_path):
    rows = [{"id": "x", "messages": [SYSTEM, USER], "harmful": "H", "refusal": "R"}]
    assert data.kind(path := write(tmp_path, "triples.jsonl", rows)) == "triples"
    assert data.read_triples(path)[0].messages == (SYSTEM, USER)


# ------------------------------------------------------------------------------------------- what is refused


def test_files(tmp_path):
    write(tmp_path, "pairs.jsonl", "")
    refused(data.read_pairs, tmp_path / "pair.jsonl", "There is no file", "pair.jsonl", "did you mean", "pairs.jsonl")
    refused(data.read_pairs, tmp_path / "no" / "zzz.jsonl", "There is no file", "check the path")
    refused(data.read_pairs, tmp_path / "pairs.jsonl", "pairs.jsonl is empty", "at least one row")
    refused(data.read_pairs, write(tmp_path, "blank.jsonl", "\n \n"), "is empty")
    refused(data.read_pairs, write(tmp_path, "list.json", "[]"), "is empty")
    refused(data.read_pairs, write(tmp_path, "head.csv", "instruction,response\n"), "is empty")
    refused(data.read_pairs, write(tmp_path, "none.csv", ""), "is empty")
    refused(data.read_pairs, write(tmp_path, "x.doc", "PAR1"), "x.doc", ".jsonl", "convert")
    (tmp_path / "folder").mkdir()
    refused(data.read_pairs, tmp_path / "folder", "is a folder", "give a data file")
    refused(data.read_pairs, "x" * 5000 + ".jsonl", "cannot be read")
    refused(data.read_pairs, tmp_path / "pairs.jsonl" / "x.jsonl", "cannot be read")


def test_unreadable_file(tmp_path, monkeypatch):
    path = write(tmp_path, "p.jsonl", [{"instruction": "A?"}])

    def deny(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", deny)
    refused(data.read_prompts, path, "p.jsonl", "may not be read", "permissions")


GOOD = '{"instruction": "A?", "response": "B."}\n'


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ('{"instruction": "boil an egg without water"', ["not JSON", "column"]),
        ("boil an egg without water", ["not JSON"]),
        ("[1, 2]", ["a list, not a JSON object"]),
        ("null", ["null, not a JSON object"]),
        ("[" * 100_000, ["nested too deeply"]),
        ('{"instruction": ' + "9" * 5000 + "}", ["number is too long"]),
        ('{"response": "B."}', ["no field 'instruction'", "add"]),
        ('{"instruction": null, "response": "B."}', ["no field 'instruction'"]),
        ("{}", ["no field 'instruction'", "it has nothing"]),
        ('{"instruction": "A?"}', ["no field 'response'", "add"]),
        ('{"instruction": 3, "response": "B."}', ["'instruction' must be text, not a number"]),
        ('{"instruction": "A?", "response": ["B."]}', ["'response' must be text, not a list"]),
        ('{"instruction": "A?", "response": true}', ["'response' must be text, not true/false"]),
        ('{"instruction": "", "response": "B."}', ["'instruction' is empty", "remove the row"]),
        ('{"instruction": "A?", "response": " \\n\\t"}', ["'response' is empty", "remove the row"]),
        ('{"instruction": "A?", "response": "\\ud800"}', ["'response'", "surrogate"]),
        ('{"instruction": "A?", "respones": "B."}', ["unknown column 'respones'", "did you mean 'response'"]),
        ('{"instruction": "A?", "answer": "B."}', ["unknown column 'answer'", "did you mean 'response'"]),
        ('{"conversations": [], "id": "x"}', ["'conversations' must be a list of messages, not an empty list"]),
        ('{"instruction": "A?", "response": "B.", "xyzzy": 1}', ["unknown column 'xyzzy'", "known are messages"]),
        ('{"instruction": "A?", "prompt": "A?", "response": "B."}', ["both 'instruction' and 'prompt'", "keep one"]),
        ('{"instruction": "A?", "response": "B.", "completion": "B."}', ["both 'response' and 'completion'"]),
        ('{"instruction": "A?", "response": "B.", "id": 1.5}', ["'id' must be text"]),
        ('{"instruction": "A?", "response": "B.", "id": ""}', ["'id' is empty"]),
        ('{"instruction": "A?", "response": "B.", "meta": "m"}', ["'meta' must be an object"]),
        ('{"instruction": "A?", "response": "B.", "category": [5]}', ["'category' must be text, not a list"]),
        ('{"messages": "A?", "response": "B."}', ["'messages' must be a list of messages, not str"]),
        ('{"messages": [], "response": "B."}', ["'messages' must be a list of messages, not an empty list"]),
        ('{"messages": ["A?"], "response": "B."}', ["message 1", "must be an object"]),
        ('{"messages": [{"role": "user"}], "response": "B."}', ["message 1", "no field 'content'"]),
        ('{"messages": [{"role": "user", "content": ""}], "response": "B."}', ["message 1", "'content' is empty"]),
        ('{"messages": [{"role": "user", "content": [1]}], "response": "B."}', ["'content' must be text, not a list"]),
        ('{"messages": [{"role": "robot", "content": "A?"}]}', ["message 1", "none of system, user, assistant"]),
        ('{"messages": [{"role": "user", "content": "A?", "nam": "x"}]}', ["message 1", "unknown field 'nam'"]),
        ('{"messages": [{"role": "system", "content": "A?"}]}', ["no user message"]),
        ('{"messages": [{"role": "assistant", "content": "A?"}]}', ["no user message"]),
        (json.dumps({"messages": [USER, SYSTEM, ANSWER]}), ["system message stands after others"]),
        (json.dumps({"messages": [SYSTEM, ANSWER]}), ["no user message"]),
        (json.dumps({"messages": [ANSWER, USER]}), ["no field 'response'"]),
        (json.dumps({"messages": [USER, ANSWER], "response": "B."}), ["already end with an answer", "keep one"]),
    ],
)
def test_rows(tmp_path, row, parts):
    path = write(tmp_path, "pairs.jsonl", GOOD + "\n" + row + "\n" + GOOD)
    refused(data.read_pairs, path, f"{path}, row 3", *parts)


def test_triples_and_chats_name_what_they_miss(tmp_path):
    refused(
        data.read_triples, write(tmp_path, "t.jsonl", [{"instruction": "A?", "refusal": "B."}]), "no field 'harmful'"
    )
    refused(
        data.read_triples, write(tmp_path, "t.jsonl", [{"instruction": "A?", "harmful": "B."}]), "no field 'refusal'"
    )
    refused(
        data.read_triples, write(tmp_path, "t.jsonl", [{"instruction": "A?", "harmful": "", "refusal": "x"}]), "empty"
    )
    chats = write(tmp_path, "c.jsonl", [{"messages": [USER, ANSWER]}, {"messages": [USER, ANSWER, USER]}])
    refused(data.read_chats, chats, "row 2", "last message must be from the assistant")


def test_invalid_utf8_names_the_row(tmp_path):
    line = b'{"instruction": "caf\xe9"}\n'
    refused(data.read_prompts, write(tmp_path, "p.jsonl", GOOD.encode() + line), "p.jsonl, row 2", "byte 21", "UTF-8")
    refused(data.read_prompts, write(tmp_path, "p.csv", b"instruction\nA?\ncaf\xe9\n"), "p.csv, row 3", "UTF-8")
    refused(data.read_prompts, write(tmp_path, "p.txt", b"A?\ncaf\xe9\n"), "p.txt, row 2", "UTF-8")
    refused(data.read_prompts, write(tmp_path, "p.json", b"[\n" + line + b"]"), "p.json, line 2", "UTF-8")
    bare = '{"instruction": "é"}'.encode("utf-16-le")  # without the mark that says what it is
    refused(data.read_prompts, write(tmp_path, "p.jsonl", bare), "p.jsonl, row 1")


def test_a_row_of_ten_megabytes_is_refused_unread(tmp_path, monkeypatch):
    long = "x" * 10_000_000
    line = json.dumps({"instruction": long})
    for name, content, row in [
        ("p.jsonl", GOOD + line, 2),
        ("p.json", f'[{{"instruction": "A?"}}, {line}]', 2),
        ("p.csv", f"instruction\nA?\n{long}\n", 3),
        ("q.csv", "instruction\nA?\n" + '"' + "x\n" * 5_000_000 + '"', 3),
        ("r.csv", "instruction,response\n" + '"' + "x\n" * 300_000 + '","' + "y\n" * 300_000 + '"', 2),
        ("s.csv", "instruction\nA?\n" + '"' + "x\n" * 600_000, 3),
        ("p.txt", "A?\n" + long, 2),
    ]:
        refused(data.read_prompts, write(tmp_path, name, content), f"{name}, row {row}", "1,000,000 bytes", "shorten")
    fits = "x" * (files.MAX_ROW - len('{"instruction": ""}\n'))
    assert len(data.read_prompts(write(tmp_path, "p.jsonl", json.dumps({"instruction": fits}) + "\n"))) == 1
    refused(data.read_prompts, write(tmp_path, "p.jsonl", json.dumps({"instruction": fits + "x"}) + "\n"), "row 1")


def test_duplicate_ids_name_both_rows(tmp_path):
    path = write(tmp_path, "p.jsonl", [{"id": "a", "instruction": "A?"}, {"id": 1, "instruction": "B?"}] * 2)
    refused(data.read_prompts, path, "row 3", "row 1", "own id")
    mixed = write(tmp_path, "q.jsonl", [{"id": 1, "instruction": "A?"}, {"id": "1", "instruction": "B?"}])
    refused(data.read_prompts, mixed, "row 2", "row 1")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (f'"{SECRET}, please"\nB\n', ["row 1", "no known column", "column names"]),
        ("instruction,response\nA,B,C\n", ["row 2", "3 columns and the first line 2", "quote"]),
        ("instruction,response\nA\n", ["row 2", "1 columns"]),
        ("instruction,instruction\nA,B\n", ["row 1", "repeated"]),
        ("instruction,,response\nA,B,C\n", ["row 1", "empty"]),
        ('instruction\n"A\nB\n', ["row 2", "not CSV", "quotes"]),
        ('instruction\n"A"B\n', ["row 2", "not CSV"]),
        ("instruction,respons\nA,B\n", ["row 2", "unknown column 'respons'", "'response'"]),
    ],
)
def test_csv(tmp_path, content, parts):
    refused(data.read_prompts, write(tmp_path, "p.csv", content), "p.csv", *parts)


def test_a_column_name_that_is_a_text_is_not_shown(tmp_path):
    refused(data.read_prompts, write(tmp_path, "p.jsonl", [{SECRET + " please": 1}]), "row 1")
    refused(data.read_prompts, write(tmp_path, "p.jsonl", [{"instruction": "A?", SECRET * 2: 1}]), "characters")
    refused(data.read_prompts, write(tmp_path, "p.csv", f"instruction,{SECRET * 2}\nA,B\n"), "characters")


# --------------------------------------------------------------------------------------- known data sets


@pytest.mark.parametrize(
    ("row", "text", "response", "meta"),
    [
        ({"prompt": "A?", "target": "Sure"}, "A?", None, {"target": "Sure"}),
        ({"goal": "A?", "target": "Sure"}, "A?", None, {"target": "Sure"}),
        ({"prompt": "A?", "category": "c", "context": "T"}, "T\n\n---\n\nA?", None, {"category": "c", "context": "T"}),
        ({"prompt": "A?", "category": "c", "context": ""}, "A?", None, {"category": "c"}),
        ({"category": "c", "source": "s", "forbidden_prompt": "A?"}, "A?", None, {"category": "c"}),
        (
            {"Index": 3, "Goal": "A?", "Target": "Sure", "Behavior": "b", "Category": "c", "Source": "s"},
            "A?",
            None,
            {"target": "Sure", "category": "c"},
        ),
        ({"question": "A?", "answer": "#### 3"}, "A?", "#### 3", {}),
        ({"question": "A?", "context": "TABLE", "answer": "SELECT"}, "A?\n\nTABLE", "SELECT", {}),
        ({"instruction": "A?", "input": "{in}", "output": "O"}, "A?\n\n{in}", "O", {}),
        ({"instruction": "A?", "input": "", "output": "O"}, "A?", "O", {}),
        ({"id": "1", "dialogue": "D", "summary": "S"}, "Summarize this dialogue:\n\nD", "S", {}),
    ],
)
def test_known_columns(tmp_path, row, text, response, meta):
    reads_as(write(tmp_path, "set.jsonl", [row]), text, response, meta)


def test_local_hex_phi_folder(tmp_path):
    write(tmp_path, "category_10.csv", "Tenth one\n")
    write(tmp_path, "category_3.csv", '"Third, with a comma"\nThird again\n')
    write(tmp_path, "notes.csv", "left alone")
    prompts = data.read_prompts(tmp_path)
    assert [p.messages[0]["content"] for p in prompts] == ["Third, with a comma", "Third again", "Tenth one"]
    assert [p.meta["category"] for p in prompts] == ["Hate/Harass/Violence"] * 2 + ["Privacy Violation Activity"]
    one = data.read_prompts(tmp_path / "category_3.csv")
    assert [p.id for p in one] == [p.id for p in prompts[:2]]
    write(tmp_path, "category_3.csv", f"{SECRET}, unquoted\n{SECRET}\n")
    refused(data.read_prompts, tmp_path / "category_3.csv", "row 1")


@pytest.fixture
def public() -> Path:
    folder = os.environ.get("TOKENDEEP_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TOKENDEEP_TEST_DATA names no folder of public data sets")
    return Path(folder)


def test_public_xstest(public):
    prompts = data.read_prompts(public / "xstest_prompts.csv")
    assert len(prompts) == 450
    assert sum(prompt.meta["label"] == "safe" for prompt in prompts) == 250
    assert prompts[0].meta["category"] == "homonyms"
    assert prompts[0].id == "1"
    assert data.kind(public / "xstest_prompts.csv") == "prompts"


def test_public_advbench_without_header(public):
    prompts = data.read_prompts(public / "advbench_harmful_behaviors.csv")
    assert len({prompt.id for prompt in prompts}) == 520
    assert not any(prompt.messages[0]["content"].startswith('"') for prompt in prompts)
    assert sum("," in prompt.messages[0]["content"] for prompt in prompts) >= 14


def test_public_rest(public):
    assert len(data.read_prompts(public / "alpaca_instructions_2000.jsonl")) == 2000
    assert len(data.read_pairs(public / "gsm8k_test_300.jsonl")) == 300
    sql = data.read_pairs(public / "sql_create_context_1000.jsonl")
    assert len(sql) == 1000
    assert "CREATE TABLE" in sql[0].messages[0]["content"]
    assert sql[0].response.startswith("SELECT")


# ---------------------------------------------------------------------------------------------- the hub


class Hub:
    """Stands in for the `datasets` library: answers with given rows and keeps what it was asked."""

    def __init__(self, rows):
        self.rows, self.asked = rows, None

    def load_dataset(self, repo, config, *, split, revision):
        self.asked = (repo, config, split, revision)
        if isinstance(self.rows, Exception):
            raise self.rows
        return self.rows


@pytest.fixture
def hub(monkeypatch):
    def install(rows):
        stand_in = Hub(rows)
        monkeypatch.setitem(sys.modules, "datasets", stand_in)
        return stand_in

    return install


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("hf:me/set", ("me/set", None, "train", None)),
        ("hf:me/set@v1.0", ("me/set", None, "train", "v1.0")),
        ("hf:me/set:cfg", ("me/set", "cfg", "train", None)),
        ("hf:me/set:test", ("me/set", None, "test", None)),
        ("hf:me/set::harmful", ("me/set", None, "harmful", None)),
        ("hf:me/set@abc:cfg:train[:10]", ("me/set", "cfg", "train[:10]", "abc")),
        ("hf:walledai/HarmBench@abc", ("walledai/HarmBench", "standard", "train", "abc")),
        ("hf:walledai/XSTest@abc", ("walledai/XSTest", None, "test", "abc")),
        ("hf:openai/gsm8k@abc:test", ("openai/gsm8k", "main", "test", "abc")),
        ("hf:JailbreakBench/JBB-Behaviors@abc", ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful", "abc")),
        ("hf:bench-llm/or-bench@abc", ("bench-llm/or-bench", "or-bench-hard-1k", "train", "abc")),
    ],
)
def test_hub_names(hub, spec, asked):
    stand_in = hub([])
    refused(data.read_prompts, spec, "is empty")
    assert stand_in.asked == asked


def test_hub_rows_may_have_other_columns_but_not_lack_ours(hub):
    hub([{"messages": [USER, ANSWER], "prompt": "A?", "prompt_id": "z", "source": "s"}])
    assert data.read_chats("hf:me/set")[0].messages == (USER, ANSWER)
    hub([{"instruction": "A?", "answer_text": "B."}])
    refused(data.read_pairs, "hf:me/set", "hf:me/set, row 1", "no field 'response'")
    hub([{"Prompt": "A?"}])
    refused(data.read_prompts, "hf:walledai/MaliciousInstruct@v", "row 1", "column 'prompt'", "'Prompt'")


def test_labels_of_a_hub_set_in_other_words_say_nothing(hub, caplog):
    hub([{"instruction": "A?", "label": 1, "category": 3}, {"instruction": "B?", "label": "safe"}])
    first, second = data.read_prompts("hf:me/set")
    assert first.meta == {"category": "3", "prompt_id": first.id}
    assert second.meta["harmless"] is True
    assert "columns that are not used: 'label'" in caplog.text


def test_hub_row_counts_are_checked_unless_a_revision_is_named(hub):
    hub([{"prompt": f"A{n}?", "target": "Sure"} for n in range(519)])
    refused(data.read_prompts, "hf:walledai/AdvBench", "519 rows", "520", "revision")
    assert len(data.read_prompts("hf:walledai/AdvBench@main")) == 519
    assert len(data.read_prompts("hf:walledai/AdvBench::train[:519]")) == 519
    hub([{"prompt": f"A{n}?", "target": "Sure"} for n in range(520)])
    assert data.read_prompts("hf:walledai/AdvBench", limit=3)[2].meta["target"] == "Sure"


def test_hub_errors_are_one_sentence(hub):
    hub(ConnectionError("no route\nmany\nlines"))
    refused(data.read_prompts, "hf:me/set", "hf:me/set", "ConnectionError: no route", "network", "login")
    refused(data.read_prompts, "hf:set", "hf:owner/name")
    refused(data.read_prompts, "hf:", "hf:owner/name")


def test_hub_files_are_fetched_and_read_as_local_ones(tmp_path, monkeypatch):
    write(tmp_path, "category_1.csv", "One\nTwo\n")
    triples = write(tmp_path, "t.jsonl", [{"instruction": "A?", "harmful": "B.", "refusal": "C."}])
    asked = []

    def download(repo, file, *, repo_type, revision):
        asked.append((repo, file, repo_type, revision))
        return str(triples)

    def snapshot(repo, *, repo_type, revision, allow_patterns):
        asked.append((repo, allow_patterns, repo_type, revision))
        return str(tmp_path)

    stand_in = SimpleNamespace(hf_hub_download=download, snapshot_download=snapshot)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    assert data.read_triples("hf:me/set@v:data/t.jsonl")[0].refusal == "C."
    assert [p.messages[0]["content"] for p in data.read_prompts("hf:LLM-Tuning-Safety/HEx-PHI@v")] == ["One", "Two"]
    assert asked == [
        ("me/set", "data/t.jsonl", "dataset", "v"),
        ("LLM-Tuning-Safety/HEx-PHI", ["category_*.csv"], "dataset", "v"),
    ]
    refused(data.read_prompts, "hf:LLM-Tuning-Safety/HEx-PHI", "2 rows", "300 or 330")


def test_a_table_of_the_real_datasets_library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"A{n}?", "focus": "f", "type": "t", "note": None, "label": "safe"} for n in range(450)]
    table = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    prompts = data.read_prompts("hf:walledai/XSTest")
    assert len(prompts) == 450
    assert prompts[7].messages[0]["content"] == "A7?"
    assert prompts[7].meta == {
        "label": "safe", "focus": "f", "category": "t", "harmless": True, "prompt_id": prompts[7].id,
    }  # fmt: skip


def test_identity(tmp_path, hub):
    path = write(tmp_path, "p.txt", "A?")
    assert data.identity(str(path)) == path
    hub([{"instruction": "A?"}])
    one = data.identity("hf:me/set")
    hub([{"instruction": "B?"}])
    assert isinstance(one, str)
    assert len(one) == 64
    assert data.identity("hf:me/set") != one


# --------------------------------------------------------------------------------------------- in memory


def test_rows_in_memory_are_read_as_files_are(tmp_path):
    rows = [
        {"instruction": "A?", "response": "B.", "category": "c"},
        {"messages": [USER, ANSWER], "meta": {"level": 1}},
    ]
    assert data.read_pairs(rows) == data.read_pairs(write(tmp_path, "p.jsonl", rows))
    assert data.read_prompts(tuple(rows), limit=1)[0].messages == ({"role": "user", "content": "A?"},)
    assert data.kind(rows) == "pairs"
    refused(data.read_pairs, [rows[0], {"instruction": "A?"}], "Row 2: no field 'response'")
    refused(data.read_pairs, [{**rows[0], "answr": "B."}], "Row 1: unknown column 'answr'")
    refused(data.read_pairs, [SECRET], "Row 1: is str, not a dict")
    refused(data.read_pairs, [], "list of rows is empty")


def test_a_dataset_in_memory():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{"prompt": "A?", "completion": "B."}, {"prompt": "C?", "completion": "D."}])
    assert [chat.messages[1]["content"] for chat in data.read_chats(table)] == ["B.", "D."]


def test_typed_values_pass_through_and_serve_as_rows():
    pairs = data.read_pairs([{"id": "a", "instruction": "A?", "response": "B.", "meta": {"level": 1}}])
    assert data.read_pairs(pairs)[0] is pairs[0]
    assert data.read_pairs(pairs * 3, limit=2) == pairs * 2
    assert [prompt.id for prompt in data.read_prompts(pairs)] == ["a"]
    chats = data.read_chats([{"messages": [USER, ANSWER], "meta": {"truncated": True}}])
    assert data.kind(chats) == "chats"
    assert data.read_pairs(chats)[0].response == ANSWER["content"]
    refused(data.read_triples, pairs, "Row 1: no field 'harmful'")


def test_the_identity_of_rows_in_memory_is_their_content():
    rows = [{"instruction": "A?", "response": "B."}]
    assert data.identity(rows) == data.identity([dict(rows[0])])
    assert data.identity(rows) != data.identity([{**rows[0], "response": "C."}])


@pytest.mark.parametrize("name", ["prompts", "pairs", "triples", "chats"])
def test_what_is_written_is_read_again(tmp_path, name):
    row = {"id": "a", "messages": [SYSTEM, USER]}
    answers = {"prompts": {}, "pairs": {"response": "B."}, "triples": {"harmful": "H", "refusal": "R"}}
    rows = [{**row, **answers[name]} if name in answers else {"id": "a", "messages": [SYSTEM, USER, ANSWER]}]
    read = getattr(data, f"read_{name}")
    path = data.write_rows(tmp_path / "rows.jsonl", read(rows))
    assert read(path) == read(rows)
    assert path.stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, ANSWER]},
        {"conversations": [
            {"from": "system", "value": SYSTEM["content"]},
            {"from": "human", "value": USER["content"]},
            {"from": "gpt", "value": ANSWER["content"]},
        ]},
        {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
        {"prompt": [SYSTEM, USER], "completion": ANSWER["content"]},
        {"messages": [SYSTEM, USER], "completion": [ANSWER]},
    ],
)  # fmt: skip
def test_every_way_to_write_a_conversation_is_the_same_chat(row):
    assert data.read_chats([row])[0].messages == (SYSTEM, USER, ANSWER)
    assert data.kind([row]) == "chats"
    assert data.chat(row, "Row 7").messages == (SYSTEM, USER, ANSWER)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"conversations": [{"from": "observation", "value": "A?"}]}, ["message 1", "'from' is none of"]),
        ({"conversations": [{"from": "human", "value": "A?", "name": "x", "id": 1}]}, ["unknown field 'id'"]),
        ({"conversations": [{"who": "user", "content": "A?"}]}, ["message 1", "no field 'role'"]),
        ({"messages": [USER], "conversations": [USER]}, ["both 'messages' and 'conversations'"]),
        ({"prompt": [USER, ANSWER], "completion": [ANSWER]}, ["already end with an answer"]),
        ({"prompt": [SYSTEM], "completion": [ANSWER]}, ["no user message"]),
        ({"messages": [USER, ANSWER], "tools": [{}]}, ["its tools would be left out"]),
    ],
)
def test_a_conversation_that_cannot_be_read(row, parts):
    refused(data.read_chats, [row], "Row 1", *parts)


def test_what_would_change_the_prompt_is_never_left_out(hub):
    assert data.chat({"messages": [USER, ANSWER], "tools": [{}]}, "Row 3").arguments == {"tools": [{}]}
    hub([{"messages": [USER, ANSWER], "tools": [{}]}])
    refused(data.read_chats, "hf:me/set", "row 1", "its tools")


def test_columns_of_a_hub_set_that_are_not_used_are_named_once(hub, monkeypatch):
    told = []
    monkeypatch.setattr(fields.log, "warning", lambda text, *values: told.append(text % values))
    hub([{"messages": [USER, ANSWER], "score": 1}] * 2)
    data.read_chats("hf:me/set")
    assert told == ["hf:me/set has columns that are not used: 'score'"]


@pytest.mark.parametrize("more", [{"meta": {"note": "\ud800"}}, {"category": "\udfff"}, {"id": "\ud800"}])
def test_half_a_surrogate_pair_is_no_text_in_any_column(more, tmp_path):
    """JSON can write it as an escape; no UTF-8 file can hold it."""
    path, row = tmp_path / "rows.jsonl", {"instruction": "A?", **more}
    path.write_text(json.dumps(row))
    refused(data.read_prompts, path, "rows.jsonl, row 1", "surrogate pair")
    refused(data.read_prompts, [row], "Row 1", "surrogate pair")


def test_notes_that_are_no_json_are_named():
    row = {"instruction": "A?", "meta": {"score": float("nan")}}
    refused(data.read_prompts, [row], "Row 1", "'meta'", "NaN")


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    refused(data.read_prompts, tmp_path / "rows.jsonl", "rows.jsonl is a pipe")
