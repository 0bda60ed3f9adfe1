"""Models that run elsewhere: what a server does with a prefill is found out first, and what fails for good is told."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.model import get_model

import serving
from attacking import ROWS, attack, config, judge, pairs, prompt_of  # noqa: F401  (fixtures)
from serving import AFTER, continuing, echoing, ignoring, serve
from tokendeep import cli
from tokendeep.errors import InputError
from tokendeep.evals import logs, served
from tokendeep.evals.served import BEGINNING
from tokendeep.types import Subject

BY_PACKAGE = "openai-api/local/m"  # Inspect's own way, with the package openai


@pytest.fixture(params=["http", BY_PACKAGE])
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The model to name for the address of a server."""
    if request.param == BY_PACKAGE:
        pytest.importorskip("openai")
        monkeypatch.setenv("LOCAL_API_KEY", "none")

    def named(address: str) -> str:
        monkeypatch.setenv("LOCAL_BASE_URL", address)
        return f"inspect/{BY_PACKAGE if request.param == BY_PACKAGE else f'http/{address}'}"

    return named


def settings(pairs: Path, out: Path, model: str, folder: Path, **more: Any) -> Any:
    return config(pairs, out, model=model, tokenizer=str(folder), max_retries=0, **more)


def prompts(asked: list[serving.Turns]) -> list[str]:
    return [turns[0]["content"] for turns in asked if turns[-1]["content"] != BEGINNING]


@pytest.mark.parametrize(
    ("answer", "habit"),
    [
        ("] twelve\n[13] thirteen", "continues"),
        (" ] twelve", "continues"),
        (BEGINNING + "] twelve", "echoes"),
        ("\n" + BEGINNING, "echoes"),
        ("[1] one\n[2] two\n[3] three\n[4", "ignores"),
        ("Hello! How can I help you today?", "ignores"),
        ("[13] thirteen", "ignores"),
        ("", "ignores"),
    ],
)
def test_what_an_answer_shows(answer: str, habit: str) -> None:
    assert served.habit_of(answer) == habit


@pytest.mark.parametrize("reply", [continuing, echoing])
def test_a_prefill_is_continued_and_an_echo_taken_off(
    reply: Any, provider: Callable[[str], str], pairs: Path, tmp_path: Path, tiny_folder: Path, judge: list[str]
) -> None:
    with serve(reply) as (address, asked):
        out = attack(settings(pairs, tmp_path / "out", provider(address), tiny_folder))
    samples = logs.read_samples(out)
    assert {(one.attack, bool(one.prefix), one.completion) for one in samples} == {
        ("none", False, "Hello there"), ("prefill", False, "Hello there"), ("prefill", True, AFTER),
    }  # fmt: skip
    assert [turns[-1]["content"] for turns in asked].count(BEGINNING) == 1
    assert asked[0][-1]["content"] == BEGINNING
    assert sorted(prompts(asked)) == sorted(
        [*(row["instruction"] for row in ROWS), *(row["instruction"] for row in ROWS[:2])]
    )


def test_a_server_that_ignores_prefills_is_refused_and_its_folder_is_free(
    provider: Callable[[str], str], pairs: Path, tmp_path: Path, tiny_folder: Path, judge: list[str]
) -> None:
    with serve(ignoring) as (address, asked):
        bad = settings(pairs, tmp_path / "out", provider(address), tiny_folder)
        with pytest.raises(
            InputError, match="does not go on from the beginning of an answer, so a prefill would be lost"
        ):
            attack(bad)
        assert len(asked) == 1
        assert not judge
    with serve(continuing) as (address, asked):
        attack(settings(pairs, tmp_path / "out", provider(address), tiny_folder))
    assert len(logs.read_samples(tmp_path / "out")) == 8


def test_the_user_s_word_counts_where_the_answer_does_not_tell(
    provider: Callable[[str], str], pairs: Path, tmp_path: Path, tiny_folder: Path, judge: list[str]
) -> None:
    with serve(ignoring) as (address, _):
        out = attack(
            settings(pairs, tmp_path / "out", provider(address), tiny_folder, attack="prefill", k=[5], continues=True)
        )
    assert len(logs.read_samples(out)) == 2


def test_plain_requests_need_no_canary(
    provider: Callable[[str], str], pairs: Path, tmp_path: Path, judge: list[str]
) -> None:
    with serve(ignoring) as (address, asked):
        attack(config(pairs, tmp_path / "out", model=provider(address), attack="none"))
    assert len(asked) == len(ROWS)


def test_an_echo_that_is_not_there_stops_the_run() -> None:
    assert served.without_echo("Mix the flour with water", "Mix the") == " flour with water"
    assert served.without_echo("Mix the flour", " Mix") == " the flour"
    with pytest.raises(InputError, match="does not begin with its own"):
        served.without_echo("Hello", "Mix")


@pytest.mark.parametrize("status", [500, 429])
@pytest.mark.parametrize("attacks", ["none", "prefill"])
def test_a_server_that_fails_for_good_ends_the_run_with_its_status(
    status: int, attacks: str, provider: Callable[[str], str], pairs: Path, tmp_path: Path, tiny_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with (
        serve(lambda turns: status) as (address, _),
        caplog.at_level(logging.WARNING),
        pytest.raises(InputError, match=rf"\(status {status}\)") as error,
    ):
        attack(settings(pairs, tmp_path / "out", provider(address), tiny_folder, attack=attacks, k=[5]))
    assert ROWS[0]["instruction"] not in str(error.value)
    assert "check that the server runs" in str(error.value)
    said = [record.getMessage() for record in caplog.records if "asked again" in record.getMessage()]
    assert len(said) == 1
    assert f"(status {status})" in said[0]


@pytest.mark.slow
def test_a_server_is_asked_again_after_a_while(
    provider: Callable[[str], str], pairs: Path, tmp_path: Path, judge: list[str]
) -> None:
    statuses = iter([500])
    with serve(lambda turns: next(statuses, "Hello there")) as (address, asked):
        attack(config(pairs, tmp_path / "out", model=provider(address), attack="none", max_retries=1))
    assert len(asked) == len(ROWS) + 1
    with serve(lambda turns: 429) as (address, asked), pytest.raises(InputError, match=r"\(status 429\) after 2 tries"):
        attack(config(pairs, tmp_path / "two", model=provider(address), attack="none", max_retries=1, limit=1))
    assert len(asked) in (2, 6)  # the package asks three times by itself


def test_inspect_eval_finds_it_out_too(pairs: Path, tmp_path: Path, tiny_folder: Path, judge: list[str]) -> None:
    before = os.umask(0o022)
    common = {"display": "none", "log_realtime": False, "log_dir": str(tmp_path / "logs")}
    arguments = {"data": str(pairs), "k": 5, "tokenizer": str(tiny_folder)}
    with serve(ignoring) as (address, asked):
        model = get_model(f"http/{address}", memoize=False)
        [log] = inspect_eval("tokendeep/prefill", model=model, task_args=arguments, **common)  # type: ignore[arg-type]
        assert log.status == "error"
        assert "prefill would be lost" in log.error.message
        assert len(asked) == 1
    with serve(echoing) as (address, _):
        model = get_model(f"http/{address}", memoize=False)
        [log] = inspect_eval("tokendeep/prefill", model=model, task_args=arguments, **common)  # type: ignore[arg-type]
    assert {sample.output.completion for sample in log.samples} == {AFTER}
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "logs").glob("*")} == {"0o600"}
    assert os.umask(before) == 0o022


def test_options_for_servers_are_not_for_local_models(pairs: Path, tmp_path: Path, tiny_subject: Subject) -> None:
    for more in ({"tokenizer": "x"}, {"continues": True}):
        with pytest.raises(InputError, match="for models that run elsewhere"):
            attack(config(pairs, tmp_path / "out", **more), tiny_subject)


def test_a_tokenizer_without_a_model_is_enough(
    pairs: Path, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in tiny_folder.iterdir():
        if not path.name.startswith(("tokenizer", "chat_template")):
            path.unlink()
    words = [
        "attack",
        "--model",
        "inspect/http/./nowhere",
        "--data",
        str(pairs),
        "--k",
        "0,5",
        "--tokenizer",
        str(tiny_folder),
    ]
    assert cli.main([*words, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "prefill: " in capsys.readouterr().out
    assert (
        cli.main(["attack", "--model", "inspect/http/./nowhere", "--data", str(pairs), "--out", str(tmp_path / "out")])
        == 2
    )
    assert "name its folder or hub id with tokenizer" in capsys.readouterr().err
    manifest = tmp_path / "out" / "manifest.json"
    assert not manifest.exists() or json.loads(manifest.read_text())


def test_what_an_empty_system_message_becomes_on_a_server_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser

    model, ask = get_model("mockllm/model", memoize=False), ChatMessageUser(content="A?")
    for messages in ([ask], [ChatMessageSystem(content="Be brief."), ask]):
        served.tell_of_system(model, messages)
    assert not caplog.messages
    for _ in range(2):
        served.tell_of_system(model, [ChatMessageSystem(content=""), ask])
    assert [("--system none" in line, "same server" in line) for line in caplog.messages] == [(True, True)]


def test_a_provider_that_is_not_set_up_is_told_without_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokendeep.evals import running
    from tokendeep.models.options import ModelOptions

    def missing(*given: Any, **more: Any) -> Any:
        raise RuntimeError("[bold]ERROR[/bold]: It needs more. Install with: [bold]pip install more[/bold]")

    monkeypatch.setattr(running, "get_model", missing)
    with pytest.raises(InputError, match=r"cannot be used \(It needs more\. Install with: pip install more\): check"):
        running.open_model("inspect/mockllm/model", ModelOptions(), 1)


def test_a_provider_that_lacks_openai_names_the_extra() -> None:
    import tomllib

    from tokendeep.evals import running
    from tokendeep.models.options import ModelOptions

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [one.partition(">")[0] for one in project["optional-dependencies"]["servers"]] == ["openai"]
    if importlib.util.find_spec("openai"):
        pytest.skip("openai is installed")
    with pytest.raises(
        InputError, match=r"cannot be used \(.*openai.*\): install tokendeep\[servers\], which has it\.$"
    ):
        running.open_model("inspect/openai-api/local/model", ModelOptions(), 1)
