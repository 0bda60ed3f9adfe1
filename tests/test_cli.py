"""The command line: flags, lists, YAML and folders become settings, and each mistake is one sentence and exit code 2."""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from killed import forget_runs
from tokendeep import cli, runs
from tokendeep.errors import InputError
from tokendeep.verbs import options as config

SOURCE = Path(cli.__file__).parents[1]
NEEDED = {
    "demo": [],
    "measure": ["--model", "m", "--data", "d", "--out", "o"],
    "attack": ["--model", "m", "--data", "d", "--out", "o"],
    "deepen": ["--model", "m", "--data", "d", "--utility", "u", "--out", "o"],
    "finetune": ["--model", "m", "--data", "d", "--out", "o"],
    "poison": ["--model", "m", "--data", "d", "--test", "t", "--out", "o"],
    "gcg": ["--model", "m", "--data", "d", "--out", "o"],
    "report": ["one"],
}
SETTINGS = [(verb, field) for verb, (settings, _, _) in cli.VERBS.items() for field in fields(settings)]
SAMPLES = {  # type of a setting: what is written on the command line, and what the verb gets
    "str": ("some text", "some text"),
    "str | None": ("-5: it's {a}, [b]", "-5: it's {a}, [b]"),
    "int": ("7", 7),
    "int | None": ("7", 7),
    "float": ("0.25", 0.25),
    "bool": ("true", True),
    "list[int]": ("3,4", [3, 4]),
    "list[float]": ("0.5,2,1e-5", [0.5, 2.0, 1e-5]),
    "list[str]": ("sft", ["sft"]),
    "list[str] | None": ("I can't, no", ["I can't, no"]),
}
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "inspect_ai", "matplotlib", "numpy", "scipy", "jinja2")


@pytest.fixture(scope="module", autouse=True)
def one_parser():
    """Building the parser takes most of the time of parsing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "build_parser", cache(cli.build_parser))
        yield


@pytest.fixture(autouse=True)
def forget_open_runs():
    yield
    forget_runs()


def settings(*words: str):
    """The settings of a command line, whose verb gets what it needs besides."""
    verb, *rest = words
    return cli.parse([verb, *NEEDED[verb], *rest])[1]


def refused(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        cli.parse(words)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------- flags and settings


def test_the_verbs_and_flags_of_the_contract():
    """What README, recipes and other people's scripts rely on."""
    promised = {
        "demo": {"out", "seed"},
        "measure": {"model", "base", "data", "out"},
        "attack": {"model", "attack", "data", "judge", "out"},
        "deepen": {"model", "data", "utility", "out"},
        "finetune": {"model", "data", "objective", "out"},
        "poison": {"model", "kind", "data", "test", "objectives", "seeds", "out"},
        "gcg": {"model", "data", "target", "steps", "restarts", "out"},
        "report": {"out", "show_text"},
    }
    assert promised.keys() == cli.VERBS.keys()
    for verb, names in promised.items():
        common = {"config", "debug"}
        if verb not in ("demo", "report"):
            common |= {"chat_template", "system", "overwrite"}
        assert names | common <= cli.known_types(verb).keys()


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_lists_every_setting_and_no_other(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    listed = set(re.findall(r"^  (?:-h, )?--(\w+)", shown, re.MULTILINE))
    own = {field.name for field in fields(cli.VERBS[verb][0])} - {"dirs"}
    assert listed - {"help", "print_config"} == own | {"config", "debug"}
    assert "\n  dirs" in shown or verb != "report"


@pytest.mark.parametrize(
    ("verb", "field"), [(v, f) for v, f in SETTINGS if f.name != "dirs"], ids=lambda x: getattr(x, "name", x)
)
def test_every_flag_sets_its_own_setting(verb, field):
    written, meant = SAMPLES[field.type]
    plain = settings(verb)
    for words in (
        [f"--{field.name}", written],
        [f"--{field.name}={written}"],
        [f"--{field.name.replace('_', '-')}", written],
        [f"--{field.name.replace('_', '-')}={written}"],
    ):
        found = settings(verb, *words)
        assert getattr(found, field.name) == meant
        others = [f.name for f in fields(found) if f.name != field.name]
        assert [getattr(found, name) for name in others] == [getattr(plain, name) for name in others]


def test_defaults_are_those_of_the_dataclasses():
    assert settings("attack") == config.AttackConfig(model="m", data="d", out="o")
    assert cli.parse(["demo"]) == ("demo", config.DemoConfig())


@pytest.mark.parametrize(("verb", "field"), [(v, f) for v, f in SETTINGS if f.type == "bool"])
def test_switches_need_no_value(verb, field):
    flag = "--" + field.name.replace("_", "-")
    for words, expected in (
        ([flag], True),
        ([flag, "true"], True),
        ([flag, "false"], False),
        ([flag + "=false"], False),
    ):
        assert getattr(settings(verb, *words), field.name) is expected


@pytest.mark.parametrize(
    "words",
    [
        ["--k", "0,5,10"],
        ["--k=0,5,10"],
        ["--k", "0", "5", "10"],
        ["--k", "0,", "5,", "10"],
        ["--k", "0, 5, 10"],
        ["--k=0, 5 ,10,"],
        ["--k", "[0,5,10]"],
        ["--k", "[0,", "5,", "10]"],
        ["--k=[0, 5, 10]"],
    ],
)
def test_lists_of_numbers(words):
    for verb in ("measure", "attack"):
        assert settings(verb, *words, "--seed", "3").k == [0, 5, 10]
        assert settings(verb, "--seed=3", *words).seed == 3


def test_single_values_and_negative_numbers_of_a_list():
    assert settings("attack", "--k=5").k == settings("attack", "--k", "5").k == [5]
    assert settings("attack", "--k", "-5").k == settings("attack", "--k=-5").k == [-5]
    assert settings("attack", "--k", "0", "-5", "--limit", "3").k == [0, -5]
    assert settings("attack", "--k+=50").k == [*config.AttackConfig().k, 50]


def test_lists_of_texts():
    assert settings("attack", "--prefixes", "I cannot").prefixes == ["I cannot"]
    assert settings("attack", "--prefixes=I'm sorry, but").prefixes == ["I'm sorry, but"]
    two = settings("attack", "--prefixes", "I cannot", "Non, désolé 😀\t", "--seed", "1")
    assert (two.prefixes, two.seed) == (["I cannot", "Non, désolé 😀\t"], 1)
    assert settings("attack", "--prefixes", '["a", "b, c"]').prefixes == ["a", "b, c"]
    assert settings("attack", "--prefixes", "-- no", "5").prefixes == ["-- no", "5"]
    assert settings("attack", "--prefixes", "null").prefixes is None


def test_a_value_is_a_value_whatever_it_looks_like():
    assert settings("measure", "--system", "--be nice").system == "--be nice"
    assert settings("measure", "--system", "-be-nice=very").system == "-be-nice=very"
    assert settings("measure", "--system", "").system == ""
    assert settings("measure", "--system", "a=b --out c").system == "a=b --out c"
    assert settings("measure", "--system=--out").system == "--out"
    assert settings("measure", "--label", "report").label == "report"
    assert settings("measure", "--limit", "-3").limit == -3


def test_a_forgotten_value_is_told_of():
    assert "--model has no value; write --model=--data if" in refused("measure", "--model", "--data", "d")
    assert "--out has no value; write --out=--batch-size=3" in refused("measure", "--out", "--batch-size=3")
    assert refused("measure", "--out") == "--out has no value; add it."
    assert "--k has no value" in refused("measure", "--k", "--out", "o")


@pytest.mark.parametrize(
    "words",
    [
        ["a", "b", "--out", "x.html", "--show-text"],
        ["--show-text", "a", "--out", "x.html", "b"],
        ["a", "--show-text", "b", "--out=x.html"],
        ["--out", "x.html", "--show-text", "a", "b"],
    ],
)
def test_folders_of_a_report_and_flags_mix(words):
    assert cli.parse(["report", *words])[1] == config.ReportConfig(["a", "b"], out="x.html", show_text=True)


def test_a_yaml_file_is_overridden_by_flags(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("model: there\nk: [1, 2]\nsystem: be brief\noverwrite: true\ntemperature: 0.5\nlimit: 4\n")
    needed = ["--data", "d", "--out", "o"]
    _, found = cli.parse(["attack", "--config", str(path), *needed])
    expected = config.AttackConfig("auto", system="be brief", model="there", data="d", out="o", k=[1, 2])
    expected.overwrite, expected.temperature, expected.limit = True, 0.5, 4
    assert found == expected
    _, found = cli.parse(["attack", *needed, f"--config={path}", "--k", "7", "--model", "here", "--overwrite=false"])
    assert (found.k, found.model, found.overwrite, found.temperature) == ([7], "here", False, 0.5)


def test_the_recipes_are_settings():
    recipes = sorted((SOURCE.parent / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        verb = path.name.split("-")[0]
        assert cli.parse([verb, "--config", str(path), *NEEDED[verb]])[0] == verb
    for path in sorted((SOURCE.parent / "recipes" / "smollm2").glob("*.yaml")):
        command = re.search(rf"tokendeep (\w+) --config recipes/smollm2/{path.name}", path.read_text())
        assert command, f"{path.name} does not say how it is run"
        assert cli.parse([command[1], "--config", str(path), *NEEDED[command[1]]])[0] == command[1]


# ------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["No verb", "demo, measure"]),
        (["mesure", "--model", "m"], ["no verb 'mesure'", "did you mean measure"]),
        (["mesure", "--help"], ["did you mean measure"]),
        (["zzz"], ["no verb 'zzz'", "the known ones are demo, measure, attack, gcg, deepen, finetune, poison, report"]),
        (["--model", "m", "measure"], ["--model stands where the verb should", "tokendeep VERB --model"]),
        (["measure", "--modle", "m"], ["measure has no setting --modle", "did you mean --model"]),
        (["measure", "--max-new-tokens", "3"], ["no setting --max-new-tokens"]),
        (["attack", "--max-new-token=3"], ["no setting --max-new-token;", "did you mean --max_new_tokens"]),
        (["measure", "-o", "x"], ["no setting -o", "did you mean --out"]),
        (["measure", "-out", "x"], ["no setting -out", "did you mean --out"]),
        (["report", "--dirs", "a"], ["no setting --dirs", "known ones are --out"]),
        (["measure", "data.jsonl", "--model", "m"], ["'data.jsonl'", "by its name"]),
        (["attack", "--k", "1", "two"], ["--k is '1 two'", "whole numbers"]),
        (["attack", "--k", "1.5"], ["--k is '1.5'", "whole numbers"]),
        (["attack", "--k", ""], ["--k is ''", "whole numbers"]),
        (["attack", "--k", "[a]"], ["--k is a", "whole numbers"]),
        (["attack", "--limit", "many"], ["--limit is many", "a whole number"]),
        (["attack", "--seed", "1.5"], ["--seed is 1.5", "a whole number"]),
        (["attack", "--temperature=hot"], ["--temperature is hot", "a number"]),
        (["attack", "--overwrite=maybe"], ["--overwrite is maybe", "true or false"]),
        (["attack", "--model", "m"], ["attack needs --data", "--help"]),
        (["deepen", "--model", "m", "--data", "d", "--out", "o"], ["deepen needs --utility"]),
        (["report"], ["report needs a run folder"]),
        (["attack", "--config", "nowhere.yaml"], ["There is no file", "nowhere.yaml", "--config"]),
    ],
)
def test_mistakes_on_the_command_line(words, parts, capsys):
    message = refused(*words)
    for part in parts:
        assert part in message, (part, message)
    assert cli.main(words) == 2
    assert capsys.readouterr() == ("", f"tokendeep: {message}\n")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"modle: m", ["s.yaml", "attack has no setting modle", "did you mean model"]),
        (b"max-new-tokens: 3", ["s.yaml", "did you mean max_new_tokens"]),
        (b"k: 5", ["--k is 5", "[0, 5, 10]"]),
        (b"label: 5", ["--label is 5", "in quotes"]),
        (b"limit: x", ["--limit is x", "a whole number"]),
        (b"", ["s.yaml", "seed: 1"]),
        (b"- a", ["s.yaml", "seed: 1"]),
        (b"a: [", ["s.yaml, line", "seed: 1"]),
        (b"\xff\xfe", ["s.yaml", "UTF-8"]),
        (b'{"instruction": "boil an egg"}\n{"instruction": "boil an egg"}\n', ["s.yaml", "seed: 1"]),
    ],
)
def test_mistakes_in_a_yaml_file(tmp_path, content, parts):
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    message = refused("attack", *NEEDED["attack"], "--config", str(path))
    for part in parts:
        assert part in message, (part, message)
    assert "boil" not in message


# ------------------------------------------------------------------------------------------- exit codes


@pytest.fixture
def verb_that(monkeypatch):
    """Replaces what a verb does by an error."""

    def set_up(error: BaseException | None) -> None:
        def run(settings):
            if error is not None:
                raise error

        monkeypatch.setattr(cli.importlib, "import_module", lambda *names: SimpleNamespace(run=run))

    return set_up


def no_space(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/data/out/x.eval")


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (None, 0, []),
        (KeyboardInterrupt(), 130, ["interrupted", "same command goes on"]),
        (InputError("pairs.jsonl, row 3:\n is wrong; mend it."), 2, ["pairs.jsonl, row 3: is wrong; mend it."]),
        (no_space(errno.ENOSPC), 2, ["/data/out/x.eval is full", "free some space"]),
        (no_space(errno.EDQUOT), 2, ["/data/out/x.eval is full", "free some space"]),
        (no_space(errno.EACCES), 2, ["no permission", "/data/out/x.eval", "--out"]),
        (no_space(errno.EROFS), 2, ["no permission", "/data/out/x.eval", "--out"]),
        (OSError(errno.ENOSPC, "full"), 2, ["the output folder is full"]),
    ],
)
def test_exit_codes(verb_that, capsys, error, code, parts):
    verb_that(error)
    assert cli.main(["demo"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == (0 if error is None else 1)
    for part in parts:
        assert part in shown.err, (part, shown.err)


def test_a_warning_is_seen_whatever_a_library_does_to_the_root_logger(monkeypatch, capsys):
    root = logging.getLogger()
    before = root.level

    def run(settings):
        root.setLevel(logging.ERROR)
        logging.getLogger("tokendeep.locate").warning("using %s instead", "another")

    monkeypatch.setattr(importlib.import_module("tokendeep.verbs.measure"), "run", run)
    try:
        for _ in range(2):  # said once in each call
            assert cli.main(["measure", *NEEDED["measure"]]) == 0
            assert capsys.readouterr().err == "tokendeep: using another instead\n"
    finally:
        root.setLevel(before)


@pytest.mark.parametrize("words", [["demo", "--debug"], ["--debug", "demo"]])
def test_debug_shows_the_traceback(verb_that, words):
    for error in (InputError("wrong"), no_space(errno.ENOSPC)):
        verb_that(error)
        with pytest.raises(type(error)):
            cli.main(words)


def test_other_errors_are_bugs_and_keep_their_traceback(verb_that):
    for error in (OSError(errno.EIO, "broken"), KeyError("x")):
        verb_that(error)
        with pytest.raises(type(error)):
            cli.main(["demo"])


@pytest.mark.parametrize("words", [["--help"], ["measure", "--help"], ["--version"], ["measure", "--modle"]])
def test_help_and_mistakes_answer_at_once_and_load_nothing_heavy(words):
    code = (
        "import sys, tokendeep.cli\n"
        "try:\n    tokendeep.cli.main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('heavy:', sorted(set(sys.modules) & set({HEAVY})))"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)}
    )
    assert time.monotonic() - start < 10  # under one second on an idle machine
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "heavy: []"), done.stderr


# ------------------------------------------------------------------------------------------- bad input, by every verb

PAIR = '{"instruction": "How do I boil an egg?", "response": "Put it into boiling water for a few minutes, then peel it."}\n'
TRIPLE = '{"instruction": "How do I boil an egg?", "harmful": "Put it into water.", "refusal": "I cannot say."}\n'
VERBS_WITH_DATA = {
    "measure": ["measure", "--model", "MODEL", "--data", "DATA", "--out", "OUT"],
    "measure benign": ["measure", "--model", "MODEL", "--data", "GOOD", "--benign", "DATA", "--out", "OUT"],
    "attack": ["attack", "--model", "MODEL", "--data", "DATA", "--out", "OUT"],
    "deepen": ["deepen", "--model", "MODEL", "--data", "DATA", "--utility", "CHATS", "--out", "OUT"],
    "finetune": ["finetune", "--model", "MODEL", "--data", "DATA", "--out", "OUT"],
    "finetune probe": ["finetune", "--model", "MODEL", "--data", "GOOD", "--probe", "DATA", "--out", "OUT"],
    "poison": ["poison", "--model", "MODEL", "--data", "DATA", "--test", "GOOD", "--out", "OUT"],
    "gcg": ["gcg", "--model", "MODEL", "--data", "DATA", "--out", "OUT"],
    "poison test": ["poison", "--model", "MODEL", "--data", "GOOD", "--test", "DATA", "--out", "OUT"],
    "deepen utility": ["deepen", "--model", "MODEL", "--data", "GOOD", "--utility", "DATA", "--out", "OUT"],
}
BAD_FILES = {  # name: content (None: no such file), what the message must hold
    "missing file": (None, ["There is no file"]),
    "empty file": (b"", ["is empty", "at least one row"]),
    "no JSON": (PAIR.encode() + b"boil an egg\n", ["row 2", "is not JSON", "one JSON object a line"]),
    "missing field": (PAIR.encode() + b'{"response": "Boil."}\n', ["row 2", "no field 'instruction'", "add"]),
    "mistyped field": (PAIR.encode() + b'{"instruction": 3, "response": "a"}\n', ["row 2", "'instruction'", "text"]),
    "mistyped answer": (PAIR.encode() + b'{"instruction": "a", "response": [1]}\n', ["row 2", "'response'", "text"]),
    "empty instruction": (PAIR.encode() + b'{"instruction": " ", "response": "a"}\n', ["row 2", "'instruction' is"]),
    "empty answer": (PAIR.encode() + b'{"instruction": "a", "response": ""}\n', ["row 2", "'response' is empty"]),
    "invalid UTF-8": (PAIR.encode() + b'{"instruction": "a\xff"}\n', ["row 2", "not valid UTF-8", "save the file"]),
    "a row of 10 MB": (
        PAIR.encode() + b'{"instruction": "' + b"a" * 10_000_000 + b'"}\n',
        ["row 2", "1,000,000", "shorten"],
    ),
    "duplicate ids": (
        b'{"id": "x", "instruction": "a", "response": "b"}\n' * 2,
        ["row 2", "also that of row 1", "its own id"],
    ),
    "unknown column": (PAIR.encode() + b'{"instruktion": "a"}\n', ["row 2", "did you mean 'instruction'", "rename"]),
}


@pytest.fixture
def fill(tmp_path, monkeypatch):
    """Puts files in the place of the capital words of a command line."""
    good, chats = tmp_path / "good.jsonl", tmp_path / "chats.jsonl"
    good.write_text(PAIR)
    chats.write_text('{"prompt": "Say hi.", "completion": "Hi."}\n')
    places = {"OUT": tmp_path / "out", "GOOD": good, "CHATS": chats, "DATA": tmp_path / "data.jsonl", "HERE": tmp_path}

    def words(line: list[str], **more: Path) -> list[str]:
        known = {**places, **more}
        return [str(known.get(word, word)) for word in line]

    return words


def one_line(words: list[str], capfd) -> str:
    """Run a command line that must be refused with exit code 2 and one line; return that."""
    capfd.readouterr()
    assert cli.main(words) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("tokendeep: "), shown.err
    assert shown.err.count("\n") == 1, shown.err
    assert "boil" not in shown.err
    return shown.err


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("command", VERBS_WITH_DATA)
def test_bad_data(command, case, fill, tiny_folder, tmp_path, capfd):
    content, parts = BAD_FILES[case]
    if content is not None:
        (tmp_path / "data.jsonl").write_bytes(content)
    message = one_line(fill(VERBS_WITH_DATA[command], MODEL=tiny_folder), capfd)
    for part in ["data.jsonl", *parts]:
        assert part in message, (part, message)
    assert not (tmp_path / "out").exists()


def without(folder: Path, *names: str) -> Path:
    for name in names:
        for path in folder.glob(name):
            path.unlink()
    return folder


BAD_MODELS = {  # what is done to the model's folder, what the message must hold
    "no such folder": (shutil.rmtree, ["no model at", "tiny-model"]),
    "no weights": (lambda folder: without(folder, "*.safetensors"), ["holds no weights", "model.safetensors"]),
    "no tokenizer": (lambda folder: without(folder, "tokenizer*"), ["holds no tokenizer", "tokenizer.json"]),
    "no template": (lambda folder: without(folder, "*.jinja"), ["no chat template", "--chat-template"]),
    "no config": (lambda folder: without(folder, "config.json"), ["holds no model", "config.json"]),
    "pickled weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        ["pickled", "pytorch_model.bin", "--allow-pickle"],
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
@pytest.mark.parametrize("command", ["measure", "attack", "deepen", "gcg"])
def test_bad_models(command, case, fill, tiny_folder, tmp_path, capfd):
    spoil, parts = BAD_MODELS[case]
    spoil(tiny_folder)
    (tmp_path / "data.jsonl").write_text(PAIR)
    message = one_line(fill(VERBS_WITH_DATA[command], MODEL=tiny_folder), capfd)
    for part in ["tiny-model", *parts]:
        assert part in message, (part, message)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["measure", "--k", "-1"], ["--k is [-1]", "none below 0"]),
        (["attack", "--k", "0,-1"], ["-1"]),
        (["measure", "--batch-size", "0"], ["batch_size is 0", "at least 1"]),
        (["attack", "--batch-size", "0"], ["batch_size = 0"]),
        (["measure", "--limit", "0"], ["limit", "1 or more"]),
        (["attack", "--limit", "-1"], ["limit = -1"]),
        (["attack", "--attack", "prefil"], ["prefil", "prefill"]),
        (["attack", "--attack", ","], ["no attack", "prefill"]),
        (["attack", "--judge", "refusals"], ["refusals", "refusal"]),
        (["attack", "--judged", "all"], ["all", "continuation"]),
        (["attack", "--role", "harmless"], ["'harmless'", "did you mean"]),
        (["attack", "--temperature", "-1"], ["temperature"]),
        (["attack", "--top-p", "2"], ["top_p"]),
        (["attack", "--samples", "0"], ["samples"]),
        (["attack", "--max-new-tokens", "0"], ["max_new_tokens"]),
        (["attack", "--attack", "refusal-prefix", "--prefixes", ""], ["prefix"]),
        (["attack", "--attack", "decoding", "--grid", "hot"], ["no decoding setting 'hot'", "greedy"]),
        (["attack", "--attack", "decoding", "--grid", "top_p=3"], ["top_p=3", "at most 1"]),
        (["attack", "--attack", "suffix"], ["suffix needs --suffixes"]),
        (["attack", "--attack", "suffix", "--suffixes", "nowhere.jsonl"], ["nowhere.jsonl", "cannot be read"]),
        (["attack", "--attack", "rank-prefill", "--rank-budget", "0"], ["rank_budget is 0", "at least 1"]),
        (["attack", "--attack", "rank-prefill", "--rank-base", "nowhere/at/all"], ["nowhere/at/all"]),
        (["gcg", "--steps", "0"], ["steps is 0", "at least 1"]),
        (["gcg", "--target", "harm"], ["target is 'harm'", "opening, refusal"]),
        (["gcg", "--target-tokens", "400"], ["the target has", "400 are asked for"]),
        (["measure", "--dtype", "int3"], ["dtype int3", "bfloat16"]),
        (["measure", "--chat-template", "alpacca"], ["alpacca", "alpaca"]),
        (["measure", "--openings", "HERE"], ["openings file", "cannot be read"]),
        (["measure", "--device", "cpu", "--device-map", "auto"], ["device", "give one"]),
        (["deepen", "--alpha", "2"], ["alpha is 2", "between 0 and 1"]),
        (["deepen", "--normalise", "row"], ["normalise", "rows"]),
        (["deepen", "--epochs", "0"], ["epochs", "at least 1"]),
        (["deepen", "--seed", "-1"], ["seed is -1", "at least 0"]),
        (["deepen", "--max-steps", "-1"], ["max_steps is -1"]),
        (["deepen", "--warmup-steps", "-1"], ["warmup_steps is -1"]),
        (["deepen", "--lora", "-1"], ["lora is -1"]),
        (["deepen", "--lr", "-1"], ["lr is -1"]),
        (["deepen", "--schedule", "cosin"], ["schedule", "linear, constant"]),
        (["measure", "--seed", "-1"], ["seed is -1"]),
        (["deepen", "--micro-batch", "7"], ["micro_batch", "multiple"]),
    ],
)
def test_bad_values(words, parts, fill, tiny_folder, tmp_path, capfd):
    (tmp_path / "data.jsonl").write_text(TRIPLE if words[0] == "deepen" else PAIR)
    message = one_line(fill([*VERBS_WITH_DATA[words[0]], *words[1:]], MODEL=tiny_folder), capfd)
    for part in parts:
        assert part in message, (part, message)


@pytest.mark.parametrize("command", ["measure", "attack", "deepen"])
def test_an_out_folder_with_a_different_finished_run(command, fill, tiny_folder, tmp_path, capfd):
    (tmp_path / "data.jsonl").write_text(PAIR)
    runs.open_run(tmp_path / "out", command, {"seed": 5}).finish()
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    message = one_line(fill(VERBS_WITH_DATA[command], MODEL=tiny_folder), capfd)
    for part in (str(tmp_path / "out"), f"a finished {command} run", "seed", "another --out", "--overwrite"):
        assert part in message, (part, message)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("command", ["measure", "attack", "deepen"])
def test_an_out_that_is_a_file(command, fill, tiny_folder, tmp_path, capfd):
    (tmp_path / "data.jsonl").write_text(PAIR)
    message = one_line(fill(VERBS_WITH_DATA[command], MODEL=tiny_folder, OUT=tmp_path / "good.jsonl"), capfd)
    assert "good.jsonl is a file" in message
    assert "another --out" in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("command", ["measure", "attack", "deepen"])
def test_an_out_that_may_not_be_written(command, fill, tiny_folder, tmp_path, capfd):
    (tmp_path / "data.jsonl").write_text(PAIR)
    (tmp_path / "locked").mkdir(mode=0o500)
    message = one_line(fill(VERBS_WITH_DATA[command], MODEL=tiny_folder, OUT=tmp_path / "locked" / "out"), capfd)
    assert "may not be written" in message


def test_an_attacks_folder_with_a_readme_of_the_users_own(fill, tiny_folder, tmp_path, capfd):
    (tmp_path / "data.jsonl").write_text(PAIR)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.txt").write_text("mine")
    message = one_line(fill(VERBS_WITH_DATA["attack"], MODEL=tiny_folder), capfd)
    assert "README.txt was not written" in message
    assert (tmp_path / "out" / "README.txt").read_text() == "mine"


def report_of(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "words", "parts"),
    [
        ({}, ["no-such-folder"], ["no-such-folder"]),
        ({}, ["RUN"], ["run"]),
        ({"manifest": "{", "profile": "{}"}, ["RUN"], ["manifest.json"]),
        ({"asr": "[{]"}, ["RUN"], ["asr.json"]),
        ({"profile": json.dumps({"kl": 3})}, ["RUN"], ["profile.json"]),
        ({}, ["RUN", "--out", "report.txt"], ["report.txt", "HTML"]),
    ],
)
def test_bad_folders_for_a_report(files, words, parts, fill, tmp_path, capfd):
    run = report_of(tmp_path / "run", **files)
    out = [] if "--out" in words else ["--out", str(tmp_path / "report.html")]
    message = one_line(fill(["report", *words, *out], RUN=run), capfd)
    for part in parts:
        assert part in message, (part, message)
    assert not (tmp_path / "report.html").exists()
