"""The verb `measure` of a model behind a server: the same figures as in memory, nothing asked twice, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from token_server import TokenServer
from tokendeep import models
from tokendeep.engines.server import client
from tokendeep.engines.server.handshake import CHOSEN
from tokendeep.errors import InputError
from tokendeep.types import Subject
from tokendeep.verbs import measure
from tokendeep.verbs.measure import MeasureOptions


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 0.01)


def options(tmp_path: Path, model: Path, **settings: Any) -> MeasureOptions:
    answer = "Mix the flour with water, add salt and let the dough rest for an hour."
    rows = [{"instruction": f"How do I bake bread number {i}?", "response": answer} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    defaults = {"data": str(tmp_path / "pairs.jsonl"), "out": str(tmp_path / "out"), "k": [0, 3], "bootstrap": 100}
    return MeasureOptions(model=str(model), **{**defaults, **settings})


def run(options: MeasureOptions) -> Path:
    return measure.run(measure.plan(options))


def profile(out: str) -> dict[str, Any]:
    return json.loads((Path(out) / "profile.json").read_text())  # type: ignore[no-any-return]


def test_the_profile_is_that_of_the_model_in_memory(tmp_path: Path, tiny_folder: Path, tiny_subject: Subject) -> None:
    local = options(tmp_path, tiny_folder, out=str(tmp_path / "local"), dtype="float32")
    run(local)
    with TokenServer(tiny_subject) as server:
        settings = options(tmp_path, tiny_folder, engine=server.url)
        run(settings)
    one, two = profile(local.out), profile(settings.out)
    np.testing.assert_allclose(
        one["per_prompt"]["recovery_log_odds"], two["per_prompt"]["recovery_log_odds"], atol=1e-3
    )
    assert one["depth"]["recovery_k"] == two["depth"]["recovery_k"]
    assert (two["kl"], two["meta"]["adapter"], two["meta"]["template"]) == (None, None, one["meta"]["template"])
    manifest = json.loads((Path(settings.out) / "manifest.json").read_text())
    assert (manifest["config"]["engine"], manifest["engine"]["kind"]) == ("server", "vllm")
    assert server.url not in json.dumps(manifest)


def test_no_weights_are_read(tmp_path: Path, tiny_folder: Path, tiny_subject: Subject) -> None:
    for file in tiny_folder.glob("*.safetensors"):
        file.unlink()
    with TokenServer(tiny_subject) as server:
        run(options(tmp_path, tiny_folder, engine=server.url))


def test_what_was_scored_before_a_server_failed_is_not_asked_again(
    tmp_path: Path, tiny_folder: Path, tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokendeep.engines.server.branches as branches

    monkeypatch.setattr(branches, "AHEAD", 0)
    with TokenServer(tiny_subject) as server:
        settings = options(tmp_path, tiny_folder, k=[0], engine=server.url, engine_model="tiny")
        limited = replace(settings, limit=1, out=str(tmp_path / "one"))
        run(limited)
        each = len(server.asked)  # handshake and one row
        first = set(server.prompts()[-5:])  # of that row
        server.asked.clear()
        whole = server.change
        server.change = lambda answer: whole(answer) if len(server.asked) < each + 3 else {"choices": []}
        with pytest.raises(InputError, match="is not one of a server of its kind"):
            run(settings)
        server.change = whole
        kept = (Path(settings.out) / "parts").glob("recovery-*.jsonl")
        assert sum(len(file.read_text().splitlines()) for file in kept) == 1
        server.asked.clear()
        run(settings)
        again = set(server.prompts())
    assert not first & again
    assert len(profile(settings.out)["per_prompt"]["ids"]) == 3


@pytest.mark.parametrize("name", ["base", "benign"])
def test_the_kl_is_refused_with_what_to_do_instead(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    given = {name: str(tiny_folder) if name == "base" else str(tmp_path / "pairs.jsonl")}
    with pytest.raises(InputError, match=f"--{name} is for the KL divergence.*whole vocabulary.*--device-map auto"):
        run(options(tmp_path, tiny_folder, engine="http://127.0.0.1:9/v1", **given))
    assert not (tmp_path / "out").exists()


def test_a_server_that_scores_nothing_is_refused(tmp_path: Path, tiny_folder: Path, tiny_subject: Subject) -> None:
    with (
        TokenServer(tiny_subject, kind="llamacpp") as server,
        pytest.raises(InputError, match="llamacpp.*vLLM or SGLang"),
    ):
        run(options(tmp_path, tiny_folder, engine=server.url))


def test_a_run_goes_on_with_the_same_server_only(tmp_path: Path, tiny_folder: Path, tiny_subject: Subject) -> None:
    settings = options(tmp_path, tiny_folder)
    with TokenServer(tiny_subject) as server:
        server.change = lambda answer: answer if len(server.asked) < 20 else {"choices": []}
        with pytest.raises(InputError):
            run(replace(settings, engine=server.url))
    with (
        TokenServer(tiny_subject, kind="sglang") as server,
        pytest.raises(InputError, match="another engine.*sglang now"),
    ):
        run(replace(settings, engine=server.url))


def test_a_row_that_leaves_no_room_is_named_before_anything_is_scored(
    tmp_path: Path, tiny_folder: Path, tiny_subject: Subject
) -> None:
    with TokenServer(tiny_subject, context=60) as server, pytest.raises(InputError, match=r"^Row .*context is 59"):
        run(options(tmp_path, tiny_folder, engine=server.url))
    assert {len(body.get("logprob_token_ids") or ()) for body in server.asked} <= {0, CHOSEN}  # the handshake's alone


def test_a_model_in_memory_asks_no_server(tmp_path: Path, tiny_folder: Path, tiny_subject: Subject) -> None:
    with pytest.raises(InputError, match="in memory already"):
        measure.plan(options(tmp_path, tiny_folder, engine="http://127.0.0.1:9/v1"), tiny_subject)


def test_an_adapter_gives_its_tokenizer_alone(tmp_path: Path, tiny_adapter: Path) -> None:
    adapted = models.load(str(tiny_adapter), dtype="float32")
    with TokenServer(adapted) as server:
        settings = options(tmp_path, tiny_adapter, engine=server.url)
        run(settings)
    assert profile(settings.out)["kl"] is None
