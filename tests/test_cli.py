"""The command line: flags, lists, YAML and folders become options, and each mistake is one sentence and exit code 2."""

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
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from killed import forget_runs
from tokendeep import cli, runs
from tokendeep.errors import InputError
from tokendeep.verbs import VERBS

SOURCE = Path(cli.__file__).parents[1]
NEEDED = {
    "demo": [],
    "measure": ["--model", "m", "--data", "d", "--out", "o"],
    "pairs": ["--model", "m", "--data", "d", "--out", "o"],
    "attack": ["--model", "m", "--data", "d", "--out", "o"],
    "deepen": ["--model", "m", "--data", "d", "--utility", "u", "--out", "o"],
    "audit": ["--model", "m", "--data", "d", "--out", "o"],
    "finetune": ["--model", "m", "--data", "d", "--out", "o"],
    "mend": ["--model", "m", "--data", "d", "--out", "o"],
    "poison": ["--model", "m", "--data", "d", "--test", "t", "--out", "o"],
    "gcg": ["--model", "m", "--data", "d", "--out", "o"],
    "judge": ["--run", "r"],
    "calibrate": ["--labels", "l", "--out", "o"],
    "compare": ["--before", "a", "--after", "b"],
    "gate": ["--before", "a", "--after", "b"],
    "overlap": ["--first", "a", "--second", "b"],
    "parity": ["--model", "m", "--data", "d"],
    "report": ["one"],
}
HINTS = {verb: get_type_hints(cli.options_of(verb)) for verb in VERBS}
OPTIONS = [(verb, name) for verb in VERBS for name in HINTS[verb] if name not in ("dirs", "labels")]
SAMPLES = {  # type of an option: what is written on the command line, and what the verb gets
    str: ("some text", "some text"),
    str | None: ("5: it's {a}, [b]", "5: it's {a}, [b]"),
    int: ("-7", -7),
    int | None: ("7", 7),
    float: ("0.25", 0.25),
    float | None: ("0.5", 0.5),
    bool: ("true", True),
    list[int]: ("3,4", [3, 4]),
    list[float]: ("0.5,2,1e-5", [0.5, 2.0, 1e-5]),
    list[str]: ("sft", ["sft"]),
    list[str] | None: ("I can't, no", ["I can't, no"]),
}
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "inspect_ai", "matplotlib", "scipy", "pandas")


@pytest.fixture(scope="module", autouse=True)
def one_look_at_types():
    """Reading the types of a verb's options takes most of the time of parsing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "get_type_hints", cache(get_type_hints))
        yield


@pytest.fixture(autouse=True)
def forget_open_runs():
    yield
    forget_runs()


def parse(*words: str):
    """The options of a whole command line."""
    _, bound = cli.parse(words)
    bound.apply_defaults()
    return bound.arguments["options"]


def options(verb: str, *words: str):
    """The options of a command line, whose verb gets what it needs besides."""
    return parse(verb, *NEEDED[verb], *words)


def refused(*words: str) -> str:
    with pytest.raises(InputError) as caught:
        cli.parse(words)
    message = str(caught.value)
    assert "\n" not in message
    return message


def sample(verb: str, name: str):
    """What is written for an option, and what the verb gets."""
    hint = HINTS[verb][name]
    if get_origin(hint) is Literal:
        return get_args(hint)[-1], get_args(hint)[-1]
    return SAMPLES[hint]


def shown_help(verb: str, capsys) -> str:
    assert cli.main([verb, "--help"]) == 0
    return capsys.readouterr().out


# ------------------------------------------------------------------------------------------- flags and options


def test_the_verbs_and_flags_of_the_contract():
    """What README, recipes and other people's scripts rely on."""
    promised = {
        "demo": {"out", "seed"},
        "pairs": {"model", "base", "data", "out"},
        "measure": {"model", "base", "data", "out"},
        "attack": {"model", "attack", "data", "judge", "out"},
        "deepen": {"model", "data", "utility", "out"},
        "audit": {"model", "data", "score", "cut", "probe", "labels", "out"},
        "finetune": {"model", "data", "objective", "out"},
        "mend": {"model", "aligned", "data", "safety", "out"},
        "poison": {"model", "kind", "data", "test", "objectives", "seeds", "out"},
        "gcg": {"model", "data", "target", "steps", "restarts", "out"},
        "judge": {"run", "judge", "judged", "grader"},
        "calibrate": {"judge", "labels", "text", "out", "overwrite"},
        "compare": {"before", "after", "allow", "out"},
        "gate": {
            "before",
            "after",
            "max_asr_rise",
            "max_refusal_rise",
            "max_utility_drop",
            "undecided",
            "allow",
            "out",
        },
        "overlap": {"first", "second", "threshold", "out"},
        "parity": {"model", "engine", "data", "k", "out"},
        "report": {"out", "show_text"},
    }
    assert promised.keys() == VERBS.keys()
    for verb, names in promised.items():
        common = (
            set()
            if verb in ("demo", "judge", "calibrate", "compare", "gate", "overlap", "parity", "report")
            else {"chat_template", "system", "overwrite"}
        )
        assert names | common <= HINTS[verb].keys()


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_every_option_and_no_other(verb, capsys):
    listed = set(re.findall(r"^│ (?:\* )? *(?:[A-Z]+ )?--([\w-]+)", shown_help(verb, capsys), re.MULTILINE))
    assert {name.replace("-", "_") for name in listed if not name.startswith("no-")} == (
        HINTS[verb].keys() | {"config", "dry_run", "debug"}
    )


def test_help_before_a_verb_and_a_shells_completion(tmp_path, monkeypatch, capsys):
    assert cli.main(["--help", "measure"]) == cli.main(["-h"]) == 0
    assert capsys.readouterr().out.count("Verbs") == 2
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["--install-completion", "--shell", "bash"]) == 0
    (script,) = tmp_path.rglob("completions/tokendeep")
    assert "--opening-tokens" in script.read_text()
    assert "did you mean --shell" in refused("--install-completion", "--shel", "bash")


@pytest.mark.parametrize("verb", VERBS)
def test_help_stands_under_headings_and_the_common_part_fits_two_screens(verb, capsys):
    text = shown_help(verb, capsys)
    headings = re.findall(r"^╭─ (.*?) ─", text, re.MULTILINE)
    assert headings[-2:] == ["Output", "Advanced"]
    assert len(text.partition("╭─ Advanced")[0].splitlines()) <= 2 * 50
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(("verb", "name"), OPTIONS)
def test_every_flag_sets_its_own_option(verb, name):
    written, meant = sample(verb, name)
    plain = options(verb)
    dashed = name.replace("_", "-")
    for words in (
        [f"--{name}", written],
        [f"--{name}={written}"],
        [f"--{dashed}", written],
        [f"--{dashed}={written}"],
    ):
        given = options(verb, *words)
        assert getattr(given, name) == meant
        others = [field.name for field in fields(given) if field.name != name]
        assert [getattr(given, other) for other in others] == [getattr(plain, other) for other in others]


def test_defaults_are_those_of_the_dataclasses():
    assert options("measure") == cli.options_of("measure")(model="m", data="d", out="o")
    assert parse("demo") == cli.options_of("demo")()


@pytest.mark.parametrize(("verb", "name"), [(v, n) for v, n in OPTIONS if HINTS[v][n] is bool])
def test_switches_need_no_value(verb, name):
    flag = "--" + name.replace("_", "-")
    for words, expected in (
        ([flag], True),
        ([flag, "true"], True),
        ([flag, "false"], False),
        ([flag + "=false"], False),
        (["--no-" + flag[2:]], False),
    ):
        assert getattr(options(verb, *words), name) is expected


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
        assert options(verb, *words, "--seed", "3").k == [0, 5, 10]
        assert options(verb, "--seed=3", *words).seed == 3


def test_single_values_and_negative_numbers_of_a_list():
    assert options("attack", "--k=5").k == options("attack", "--k", "5").k == [5]
    assert options("attack", "--k", "-5").k == options("attack", "--k=-5").k == [-5]
    assert options("attack", "--k", "0", "-5", "--limit", "3").k == [0, -5]


@pytest.mark.parametrize(("line", "expected"), [("k: 5", [5]), ("k: 0,5", [0, 5]), ("k: '0, 5'", [0, 5])])
def test_a_list_of_a_yaml_file_may_be_written_as_on_the_command_line(tmp_path, line, expected):
    path = tmp_path / "options.yaml"
    path.write_text(line)
    assert parse("measure", "--config", str(path), "--model", "m", "--data", "d", "--out", "o").k == expected


@pytest.mark.parametrize(
    ("verb", "line", "expected"),
    [
        ("attack", "columns: instruction=Goal,response=Target", ["instruction=Goal", "response=Target"]),
        ("attack", "columns: [instruction=Goal, response=Target]", ["instruction=Goal", "response=Target"]),
        ("overlap", "columns: instruction=Goal, id=Nr", ["instruction=Goal", "id=Nr"]),
        ("attack", "grid: greedy,temperature=0.7", ["greedy", "temperature=0.7"]),
        ("attack", "grid: '[\"greedy\"]'", ["greedy"]),
        ("compare", "allow: dtype,engine", ["dtype", "engine"]),
        ("compare", "allow: dtype", ["dtype"]),
        ("audit", "score: margin, gradient", ["margin", "gradient"]),
        ("attack", "prefixes: I'm sorry, but", ["I'm sorry, but"]),  # a comma is part of a text
        ("attack", "prefixes: null", None),
        ("calibrate", "labels: a,b.csv", ["a,b.csv"]),
        ("report", "dirs: '2024'", ["2024"]),
    ],
)
def test_names_of_a_yaml_file_may_have_commas_between_them(tmp_path, verb, line, expected):
    path = tmp_path / "options.yaml"
    path.write_text(line)
    name = line.partition(":")[0]
    needed = [] if verb in ("calibrate", "report") else NEEDED[verb]
    needed = ["--out", "o"] if verb == "calibrate" else needed
    assert getattr(parse(verb, *needed, "--config", str(path)), name) == expected


def test_lists_of_texts():
    assert options("attack", "--prefixes", "I cannot").prefixes == ["I cannot"]
    assert options("attack", "--prefixes=I'm sorry, but").prefixes == ["I'm sorry, but"]
    two = options("attack", "--prefixes", "I cannot", "Non, désolé 😀\t", "--seed", "1")
    assert (two.prefixes, two.seed) == (["I cannot", "Non, désolé 😀\t"], 1)
    assert options("attack", "--prefixes", '["a", "b, c"]').prefixes == ["a", "b, c"]
    assert options("attack", "--prefixes=-- no").prefixes == ["-- no"]


def test_a_value_is_a_value_whatever_it_looks_like():
    assert options("measure", "--system=--be nice").system == "--be nice"
    assert options("measure", "--system=-be-nice=very").system == "-be-nice=very"
    assert options("attack", "--lead=-x").lead == "-x"
    assert options("measure", "--system", "").system == ""
    assert options("measure", "--system", "a=b --out c").system == "a=b --out c"
    assert options("measure", "--system=--out").system == "--out"
    assert options("measure", "--label", "report").label == "report"
    assert options("measure", "--limit", "-3").limit == -3
    assert options("measure", "--seed", "1", "--seed", "2").seed == 2


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
    assert parse("report", *words) == cli.options_of("report")(["a", "b"], out="x.html", show_text=True)


def test_a_yaml_file_is_overridden_by_flags(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(
        "model: there\nk: [1, 2]\nsystem: be brief\noverwrite: true\nseed: 5\nbatch-size: 4\ndtype: float16\n"
    )
    needed = ["--data", "d", "--out", "o"]
    expected = {"model": "there", "data": "d", "out": "o", "k": [1, 2], "system": "be brief", "overwrite": True}
    expected |= {"seed": 5, "batch_size": 4, "dtype": "float16"}
    assert parse("measure", "--config", str(path), *needed) == cli.options_of("measure")(**expected)
    given = parse("measure", *needed, f"--config={path}", "--k", "7", "--model", "here", "--overwrite=false")
    assert (given.k, given.model, given.overwrite, given.seed) == ([7], "here", False, 5)


def test_numbers_of_a_yaml_file_may_have_an_exponent_and_no_point(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("lr: 2e-5\nbeta_head: [1e-1, 2E+0, 5]\nsystem: '1e3'\n")
    options = parse("finetune", "--config", str(path), "--model", "m", "--data", "d", "--out", "o")
    assert (options.lr, options.beta_head, options.system) == (2e-5, [0.1, 2.0, 5], "1e3")
    path.write_text("lr: 1.5e-5\nbeta_head: [1.5e1, .5, 2., -1, +3, 1_000]\nsystem: 010\nlabel: 1:30\n")
    options = parse("finetune", "--config", str(path), "--model", "m", "--data", "d", "--out", "o")
    assert (options.lr, options.beta_head) == (1.5e-5, [15.0, 0.5, 2.0, -1, 3, 1000])
    assert (options.system, options.label) == ("010", "1:30")
    path.write_text("lr: 1:30.5\n")
    assert "lr is '1:30.5', but must be a number." in refused("finetune", *NEEDED["finetune"], "--config", str(path))


def test_null_is_no_value_where_an_option_may_have_none():
    options = parse("measure", "--model", "m", "--data", "d", "--out", "o", "--base", "null", "--limit", "null")
    assert (options.base, options.limit) == (None, None)
    assert parse("measure", "--model", "m", "--data", "d", "--out", "o", "--system", "null").system == "null"


@pytest.mark.parametrize("text", ["-x", "-- yes", "--be kind", "-5", "-", "--"])
def test_a_text_may_begin_with_a_dash(text):
    options = parse("gcg", "--model", "m", "--data", "d", "--out", "o", "--opening", text, "--stop", "false")
    assert (options.opening, options.stop) == (text, False)


def test_the_recipes_are_options():
    recipes = sorted((SOURCE.parent / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        verb = path.name.split("-")[0]
        assert parse(verb, "--config", str(path), *NEEDED[verb])
    for path in sorted((SOURCE.parent / "recipes" / "smollm2").glob("*.yaml")):
        line = re.search(rf"tokendeep (\w+) --config recipes/smollm2/{path.name}", path.read_text())
        assert line, f"{path.name} does not say how it is run"
        assert parse(line[1], "--config", str(path), *NEEDED[line[1]])


# ------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["No verb", "demo, pairs, measure"]),
        (["mesure", "--model", "m"], ["no verb 'mesure'", "did you mean measure"]),
        (["mesure", "--help"], ["did you mean measure"]),
        (
            ["zzz"],
            [
                "no verb 'zzz'",
                f"the known ones are {', '.join(VERBS)}",
            ],
        ),
        (["--model", "m", "measure"], ["--model stands where the verb should", "tokendeep VERB --model"]),
        (["measure", "--modle", "m"], ["measure has no option --modle", "did you mean --model"]),
        (["measure", "--max-new-tokens", "3"], ["no option --max-new-tokens"]),
        (["pairs", "--max-new-tokens=3"], ["no option --max-new-tokens;", "did you mean --answer-tokens"]),
        (["deepen", "--max-new-tokens=3"], ["no option --max-new-tokens;", "did you mean --answer-tokens"]),
        (["attack", "--answer-tokens=3"], ["no option --answer-tokens;", "did you mean --max-new-tokens"]),
        (["attack", "--max-new-token=3"], ["no option --max-new-token;", "did you mean --max-new-tokens"]),
        (["measure", "-o", "x"], ["no option -o", "--out"]),
        (["measure", "-out", "x"], ["no option -out", "did you mean --out"]),
        (["measure", "data.jsonl", "--model", "m"], ["'data.jsonl'", "by its name"]),
        (["attack", *NEEDED["attack"], "--k", "1", "two"], ["--k is '1 two'", "whole numbers"]),
        (["attack", *NEEDED["attack"], "--k", "1.5"], ["--k is '1.5'", "whole numbers"]),
        (["attack", *NEEDED["attack"], "--k", ""], ["--k is ''", "whole numbers"]),
        (["attack", *NEEDED["attack"], "--k", "[a]"], ["--k is '[a]'", "whole numbers"]),
        (["attack", *NEEDED["attack"], "--limit", "many"], ["--limit is 'many'", "a whole number"]),
        (["attack", *NEEDED["attack"], "--seed", "1.5"], ["--seed is '1.5'", "a whole number"]),
        (["attack", *NEEDED["attack"], "--temperature=hot"], ["--temperature is 'hot'", "a number"]),
        (["attack", *NEEDED["attack"], "--overwrite=maybe"], ["--overwrite is 'maybe'", "true or false"]),
        (
            ["measure", *NEEDED["measure"], "--dtype", "bfloat"],
            ["--dtype is 'bfloat'", "did you mean bfloat16"],
        ),
        (["attack", "--model", "m"], ["attack needs --data", "--help"]),
        (["deepen", "--model", "m", "--data", "d", "--out", "o"], ["deepen needs --utility"]),
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
        (b"modle: m", ["s.yaml", "measure has no option modle", "did you mean model"]),
        (b"openings-token: 3", ["s.yaml", "did you mean opening_tokens"]),
        (b"zzzzzzzzz: 3", ["s.yaml", "the known ones are", " more."]),
        (b"debug: true", ["s.yaml", "measure has no option debug"]),
        (b"k: five", ["s.yaml", "k is 'five'", "[0, 5, 10]"]),
        (b"label: 5", ["s.yaml", "label is '5'", "in quotes"]),
        (b'label: "\\ud800"', ["s.yaml: label", "write it in UTF-8"]),
        (b"limit: x", ["s.yaml", "limit is 'x'", "a whole number"]),
        (b"overwrite: 1", ["s.yaml", "overwrite is '1'", "true or false"]),
        (b"dtype: int3", ["s.yaml", "dtype is 'int3'", "one of auto, float32"]),
        (b"", ["s.yaml", "seed: 1"]),
        (b"- a", ["s.yaml", "seed: 1"]),
        (b"limit: 1\nk: 0\nlimit: 2", ["s.yaml: limit is given twice; keep one of them."]),
        (b"batch-size: 4\nbatch_size: 4", ["s.yaml: batch-size and batch_size are one option; keep one of them."]),
        (b"modle: m\nmodle: n", ["s.yaml: modle is given twice"]),
        (b"limit: 010", ["s.yaml: limit is '010', but must be a whole number without a 0 in front."]),
        (b"limit: 0x10", ["s.yaml: limit is '0x10', but must be a whole number."]),
        (b"limit: 1:30", ["s.yaml: limit is '1:30', but must be a whole number."]),
        (b"k: 010", ["s.yaml: k is '010', but must be whole numbers"]),
        (b"k: [0, 1:30]", ["s.yaml: k is \"[0, '1:30']\", but must be whole numbers"]),
        (b"limit: .inf", ["s.yaml: limit is '.inf', but must be a whole number."]),
        (b"a: [", ["s.yaml, line", "seed: 1"]),
        (b"\xff\xfe", ["s.yaml", "UTF-8"]),
        (b'{"instruction": "boil an egg"}\n{"instruction": "boil an egg"}\n', ["s.yaml", "seed: 1"]),
    ],
)
def test_mistakes_in_a_yaml_file(tmp_path, content, parts):
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    message = refused("measure", *NEEDED["measure"], "--config", str(path))
    for part in parts:
        assert part in message, (part, message)
    assert "boil" not in message


def test_a_dry_run_prints_the_plan_and_writes_nothing(fill, tiny_folder, tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text(PAIR)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(fill([*VERBS_WITH_DATA["measure"], "--dry-run"], MODEL=tiny_folder)) == 0
    text = capsys.readouterr().out
    for part in (str(tiny_folder), "1 harmful pairs", "data.jsonl", "k = 0, 1", str(tmp_path / "out"), "new"):
        assert part in text
    assert "boil" not in text
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------------------------- exit codes


@pytest.fixture
def verb_that(monkeypatch):
    """Replaces what a verb does by an error."""

    def set_up(error: BaseException | None) -> None:
        def plan(options):
            if error is not None:
                raise error

        kind = cli.options_of("demo")
        fake = SimpleNamespace(DemoOptions=kind, plan=plan, run=lambda plan: None)
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: fake)

    return set_up


def no_space(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/data/out/x.eval")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("pairs.jsonl, row 3, is wrong; mend it.")])
def test_where_the_run_lies_that_was_to_be_replaced_is_said(verb_that, capsys, tmp_path, error):
    runs.open_run(tmp_path / "out", "measure", {"seed": 1})
    runs.open_run(tmp_path / "out", "measure", {"seed": 2}, overwrite=True)
    [aside] = (tmp_path / "out").glob(".replaced-*")
    verb_that(error)
    capsys.readouterr()
    assert cli.main(["demo"]) != 0
    assert f"lies in {aside} until this one has finished" in capsys.readouterr().err
    runs.open_run(tmp_path / "out", "measure", {"seed": 2}).finish()


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (None, 0, []),
        (KeyboardInterrupt(), 130, ["interrupted", "same command goes on"]),
        (InputError("pairs.jsonl, row 3:\n is wrong; mend it."), 2, ["pairs.jsonl, row 3: is wrong; mend it."]),
        (no_space(errno.ENOSPC), 2, ["/data/out/x.eval is full", "free some space"]),
        (no_space(errno.EDQUOT), 2, ["/data/out/x.eval is full", "free some space"]),
        (no_space(errno.EACCES), 2, ["may not be written", "/data/out/x.eval", "--out"]),
        (no_space(errno.EROFS), 2, ["may not be written", "/data/out/x.eval", "--out"]),
        (OSError(errno.ENOSPC, "full"), 2, ["The disk of the output folder is full"]),
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

    def plan(options):
        root.setLevel(logging.ERROR)
        logging.getLogger("tokendeep.locate").warning("using %s instead", "another")

    module = importlib.import_module("tokendeep.verbs.measure")
    monkeypatch.setattr(module, "plan", plan)
    monkeypatch.setattr(module, "run", lambda plan: None)
    try:
        for _ in range(2):  # said once in each call
            assert cli.main(["measure", *NEEDED["measure"]]) == 0
            assert capsys.readouterr().err == "tokendeep: using another instead\n"
    finally:
        root.setLevel(before)


@pytest.mark.parametrize("words", [["demo", "--debug"], ["--debug", "demo"]])
def test_debug_shows_the_traceback_and_leaves_the_exit_code(verb_that, capsys, words):
    for error in (InputError("wrong"), no_space(errno.ENOSPC)):
        verb_that(error)
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("Traceback")
        assert type(error).__name__ in said
        assert said.splitlines()[-1].startswith("tokendeep: ")


@pytest.mark.parametrize("words", [["demo"], ["demo", "--debug"]])
def test_other_errors_are_bugs_with_their_traceback_and_no_exit_code_of_gate(verb_that, capsys, words):
    for error in (OSError(errno.EIO, "broken"), KeyError("x"), MemoryError()):
        verb_that(error)
        assert cli.main(words) == 70
        said = capsys.readouterr().err
        assert said.count("Traceback") == 1
        assert "ended by an error that it does not know" in said.splitlines()[-1]


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["measure", "--modle"], *([verb, "--help"] for verb in VERBS)]
)
def test_help_and_mistakes_load_nothing_heavy(words):
    code = (
        "import sys, tokendeep.cli\n"
        "try:\n    tokendeep.cli.main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print('heavy:', sorted(set(sys.modules) & set({HEAVY})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env={"PYTHONPATH": str(SOURCE)}
    )
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
    """Run a command line that must be refused with exit code 2 and one line, behind that of loading; return it."""
    capfd.readouterr()
    assert cli.main(words) == 2
    shown = re.sub(r"\Aloading .*\n", "", capfd.readouterr().err)
    assert shown.startswith("tokendeep: "), shown
    assert shown.count("\n") == 1, shown
    assert "boil" not in shown
    return shown


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
        (["measure", "--batch-size", "0"], ["batch-size is 0", "at least 1"]),
        (["attack", "--batch-size", "-1"], ["batch-size is -1", "at least 0"]),
        (["measure", "--limit", "0"], ["limit", "1 or more"]),
        (["attack", "--limit", "-1"], ["limit = -1"]),
        (["attack", "--attack", "prefil"], ["prefil", "prefill"]),
        (["attack", "--attack", ","], ["No attack", "prefill"]),
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
        (["attack", "--attack", "rank-prefill", "--rank-budget", "0"], ["rank-budget is 0", "at least 1"]),
        (["attack", "--attack", "rank-prefill", "--rank-base", "nowhere/at/all"], ["nowhere/at/all"]),
        (["gcg", "--steps", "0"], ["steps is 0", "at least 1"]),
        (["gcg", "--target", "harm"], ["target is 'harm'", "opening, refusal"]),
        (["gcg", "--target-tokens", "400"], ["the target has", "400 are asked for"]),
        (["measure", "--dtype", "int3"], ["dtype is 'int3'", "bfloat16"]),
        (["measure", "--chat-template", "alpacca"], ["alpacca", "alpaca"]),
        (["measure", "--openings", "HERE"], ["openings file", "cannot be read"]),
        (["measure", "--device", "cpu", "--device-map", "auto"], ["device", "give one"]),
        (["deepen", "--alpha", "2"], ["alpha is 2", "between 0 and 1"]),
        (["deepen", "--normalise", "row"], ["normalise", "rows"]),
        (["deepen", "--epochs", "0"], ["epochs", "at least 1"]),
        (["deepen", "--seed", "-1"], ["seed is -1", "at least 0"]),
        (["deepen", "--max-steps", "-1"], ["max-steps is -1"]),
        (["deepen", "--warmup-steps", "-1"], ["warmup-steps is -1"]),
        (["deepen", "--lora", "-1"], ["lora is -1"]),
        (["deepen", "--lr", "-1"], ["lr is -1"]),
        (["deepen", "--schedule", "cosin"], ["schedule", "linear, constant"]),
        (["measure", "--seed", "-1"], ["seed is -1"]),
        (["deepen", "--micro-batch", "7"], ["micro_batch", "multiple"]),
        (["deepen", "--lr", "1e999"], ["--lr is '1e999'", "must be a number"]),
        (["deepen", "--alpha", "nan"], ["--alpha is 'nan'", "must be a number"]),
        (["measure", "--seed", "1" + "0" * 30], ["--seed is", "must be a whole number"]),
        (["measure", "--limit", "1.5"], ["--limit is '1.5'", "must be a whole number"]),
        (["measure", "--k", "[" * 3000], ["--k is", "whole numbers"]),
        (["measure", "--k", "[０,５]"], ["--k is", "whole numbers"]),
        (["measure", "--device", "meta"], ["no device meta"]),
        (["measure", "--model", "x/" * 3000], ["no model at"]),
        (["measure", "--config", "HERE"], ["cannot be read", "--config"]),
        (["measure", "--out", "a\nb"], ["--out is 'a\\nb'", "line break"]),
        (["measure", "--label", "caf\udce9"], ["not UTF-8", r"caf\udce9"]),
        (["attack", "--attack", "none", "--k", "-5"], ["-5", "below 0"]),
        (["attack", "--attack", "none", "--rank-budget", "0"], ["rank-budget is 0"]),
        (["attack", "--attack", "prefill", "--grid", "hot"], ["no decoding setting 'hot'"]),
        (["attack", "--attack", "none", "--prefixes", ""], ["prefix"]),
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


def test_the_connections_to_other_processes_are_closed_at_the_end(tmp_path):
    import torch

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    cli.leave()
    assert not torch.distributed.is_initialized()
    cli.leave()  # nothing is left to close


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Error while serializing: I/O error: No space left on device (os error 28)", ["disk of", "is full"]),
        ("Error while serializing: I/O error: File too large (os error 27)", ["too large", "ulimit"]),
    ],
)
def test_a_librarys_own_error_of_a_full_disk_is_one_sentence_below_the_bar(
    text, parts, fill, tmp_path, capfd, monkeypatch
):
    """Libraries in Rust quote the system in errors of their own, in the middle of a training."""
    from tqdm import tqdm

    measure = importlib.import_module(VERBS["measure"][0])

    def run(plan):
        tqdm(total=3, desc="training").update()
        raise RuntimeError(text)

    monkeypatch.setattr(measure, "plan", lambda options: None)
    monkeypatch.setattr(measure, "run", run)
    assert cli.main(fill(VERBS_WITH_DATA["measure"])) == 2
    *bar, line = capfd.readouterr().err.splitlines()
    assert any("training" in part for part in bar)
    assert line.startswith("tokendeep: ")
    for part in [str(tmp_path / "out"), *parts]:
        assert part in line


def test_an_unknown_users_home_is_no_crash(tmp_path, capfd):
    assert "must name an HTML file" in one_line(["report", str(tmp_path), "--out=~no-such-user/x"], capfd)
    assert "There is no folder" in one_line(["report", "~no-such-user/x", f"--out={tmp_path}/report.html"], capfd)


@pytest.mark.parametrize("lines", [1, 20_000], ids=["as it ends", "as it prints"])
def test_a_reader_that_stops_early_is_no_error(lines, tmp_path):
    """As `head` does: it closes the pipe, in which the rest may stand unread."""
    code = (
        "import sys\nfrom types import SimpleNamespace\nfrom tokendeep import cli\n"
        f"cli.parse = lambda words: (lambda: print('line of a table\\n' * {lines}), SimpleNamespace(args=(), kwargs={{}}))\n"
        "sys.exit(cli.main([]))"
    )
    ours, theirs = os.pipe()
    os.close(ours)  # nobody reads
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert done.stderr == ""
    assert done.returncode in (0, cli.PIPE)
