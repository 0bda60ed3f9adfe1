"""attack --engine: what a server answers by token ids is what the model answers here; the rest is refused or gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import read_eval_log

from attacking import attack, config, pairs  # noqa: F401
from token_server import TokenServer
from tokendeep import models
from tokendeep.engines.server import client
from tokendeep.engines.server.engine import ServerEngine
from tokendeep.errors import InputError
from tokendeep.evals.logs import read_samples
from tokendeep.records import Manifest
from tokendeep.types import Subject
from tokendeep.verbs import compare, parity
from tokendeep.verbs.attack import AttackOptions


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 0.01)


@pytest.fixture
def server(tiny_subject: Subject) -> Iterator[TokenServer]:
    with TokenServer(tiny_subject) as running:
        yield running


def served(pairs: Path, out: Path, server: TokenServer, folder: Path, **more: Any) -> AttackOptions:
    return config(pairs, out, **{"model": str(folder), "engine": server.url, "attack": "none,prefill", **more})


def texts(out: Path) -> dict[tuple[str, str], str]:
    """Attack and sample -> what was answered."""
    logs = [read_eval_log(str(path)) for path in out.glob("*.eval")]
    return {(log.eval.metadata["attack"], str(s.id)): s.output.completion for log in logs for s in log.samples}  # type: ignore[index, union-attr]


def bare(folder: Path) -> Path:
    """The folder of a model, without its weights."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return folder


def test_the_answers_are_those_of_the_local_engine(
    server: TokenServer, pairs: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    here = attack(config(pairs, tmp_path / "here", model=str(tiny_folder), attack="none,prefill"), show=False)
    there = attack(served(pairs, tmp_path / "there", server, bare(tiny_folder)), show=False)
    assert texts(there) == texts(here)
    rows = [json.loads((out / "asr.json").read_text(encoding="utf-8")) for out in (here, there)]
    assert [row["rate"] for row in rows[0]] == [row["rate"] for row in rows[1]]
    manifest = Manifest.load(there)
    assert manifest.engine is not None
    assert (manifest.engine.kind, manifest.engine.version, manifest.engine.model) == ("vllm", "0.32.0", "tiny")
    assert server.url not in (there / "manifest.json").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="differ in engine: tokendeep before and vllm 0.32.0 after"):
        compare.plan(compare.CompareOptions(str(here), str(there)))
    assert compare.plan(compare.CompareOptions(str(here), str(there), allow=["engine"])).tests


def test_a_check_of_parity_lets_engines_differ(
    server: TokenServer, pairs: Path, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = attack(config(pairs, tmp_path / "runs" / "here", model=str(tiny_folder), attack="none"), show=False)
    there = attack(served(pairs, tmp_path / "runs" / "there", server, tiny_folder, attack="none"), show=False)
    both = {"model": str(tiny_folder), "data": str(pairs), "engine": ["local", server.url], "k": [0, 5]}
    parity.run(parity.plan(parity.ParityOptions(**both, out=str(tmp_path / "checked"))), show=False)  # type: ignore[arg-type]
    file, beside = tmp_path / "checked" / "parity.json", tmp_path / "runs" / "parity.json"

    def compared(check: Path | None) -> str | None:
        options = compare.CompareOptions(str(here), str(there), parity=None if check is None else str(check))
        return compare.plan(options).record().parity

    words = "tokendeep and vllm 0.32.0 gave the same answer to 5 of 5 requests"
    assert compared(file) == compared(file.parent) == words
    with pytest.raises(InputError, match="differ in engine"):
        compared(None)
    shutil.copy(file, beside)  # above the runs
    assert compared(None) == words
    compare.run(compare.plan(compare.CompareOptions(str(here), str(there))))
    assert f"Parity of the engines: {words}." in capsys.readouterr().out

    kept = json.loads(file.read_text(encoding="utf-8"))
    assert (kept["dtype"], kept["revision"]) == ("float32", Manifest.load(here).model.revision)  # type: ignore[union-attr]
    old = {name: value for name, value in kept.items() if name not in ("dtype", "revision")}
    file.write_text(json.dumps(old), encoding="utf-8")  # of an older version, which did not know them
    loaded = f"{words}; of the weights that were loaded here"
    assert compared(file) == f"{loaded} the number format and the revision are not known"
    for name, called in {"dtype": "number format", "revision": "revision"}.items():
        file.write_text(json.dumps({**kept, name: None}), encoding="utf-8")
        assert compared(file) == f"{loaded} the {called} is not known"
    manifest = here / "manifest.json"
    told = manifest.read_text(encoding="utf-8")
    manifest.write_text(told.replace('"dtype": "float32"', '"dtype": null'), encoding="utf-8")
    assert compared(beside) == f"{loaded} the number format is not known"
    manifest.write_text(told, encoding="utf-8")
    near, far = ([{**kept["rows"][0], "differs_at": 1, "gap": gap}, *kept["rows"][1:]] for gap in (0.09, 0.11))
    for changed, why in (
        ({"identity": "0" * 64}, "of another model or chat template"),
        ({"template": "0" * 64}, "of another model or chat template"),
        ({"revision": "0" * 12}, "of another revision of the model"),
        ({"dtype": "bfloat16"}, "of weights that were loaded here in bfloat16, they are of some in float32"),
        ({"servers": [None, None]}, "it is of tokendeep and tokendeep"),
        ({"rows": far}, "1 of 5 answers of the two engines part"),
        ({"largest_difference": 0.2}, "log-probabilities of the two engines lie up to 0.2 nats apart"),
        ({"servers": [None, {**kept["servers"][1], "greedy": "0" * 12}]}, "of a server with another model, context or"),
        ({"servers": [None, {**kept["servers"][1], "model": "big"}]}, "of a server with another model, context or"),
    ):
        beside.write_text(json.dumps({**kept, **changed}), encoding="utf-8")
        with pytest.raises(InputError, match=why):
            compared(beside)
        with pytest.raises(InputError, match="differ in engine"):
            compared(None)
    beside.write_text(json.dumps({**kept, "rows": near, "same": 4}), encoding="utf-8")
    assert compared(None) == f"{words.replace('to 5', 'to 4')}, the other 1 part where two tokens are within 0.1 nats"


def test_a_defence_works_on_a_server_as_here(
    server: TokenServer, pairs: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    more: dict[str, Any] = {"attack": "prefill", "defence": "rethink", "every": 4, "think_tokens": 6}
    here = attack(config(pairs, tmp_path / "here", model=str(tiny_folder), **more), show=False)
    asked = len(server.asked)
    there = attack(served(pairs, tmp_path / "there", server, tiny_folder, **more), show=False)
    said = [
        {(one.params["k"], one.id): (one.completion, one.checks) for one in read_samples(out)} for out in (here, there)
    ]
    assert said[0] == said[1]
    assert sum(len(checks or ()) for _, checks in said[0].values()) > 10
    assert len(server.asked) - asked > 15


def test_a_tokenizer_alone_is_enough(server: TokenServer, pairs: Path, tmp_path: Path, tiny_folder: Path) -> None:
    whole = texts(attack(served(pairs, tmp_path / "a", server, tiny_folder), show=False))
    (bare(tiny_folder) / "config.json").unlink()
    (tiny_folder / "generation_config.json").unlink()
    assert texts(attack(served(pairs, tmp_path / "b", server, tiny_folder), show=False)) == whole


def test_a_run_goes_on_at_another_address_but_not_with_another_server(
    server: TokenServer, tiny_subject: Subject, pairs: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    out = tmp_path / "out"
    ServerEngine(server.url, server.tokenizer, known=server.known).close()
    server.faults.extend([None] * len(server.asked))  # what the handshake asks
    server.asked.clear()
    server.faults.extend([None, None, None, *([400] * 40)])
    with pytest.raises(InputError, match=r"Row \w+: .* refused a request with status 400: look for .* kept\.$"):
        attack(served(pairs, out, server, tiny_folder, in_flight=1), show=False)
    before = server.prompts()
    server.faults.clear()
    other = TokenServer(tiny_subject, model="other")
    with other, pytest.raises(InputError, match="answers of another engine .model tiny then, other now."):
        attack(served(pairs, out, other, tiny_folder), show=False)
    other = TokenServer(tiny_subject, answer=lambda ids, most: [40 + n % 50 for n in range(most)])
    with other, pytest.raises(InputError, match="answers of another engine .greedy [0-9a-f]+ then, [0-9a-f]+ now."):
        attack(served(pairs, out, other, tiny_folder), show=False)  # the same name, other weights
    with TokenServer(tiny_subject) as moved:
        moved.pages["/version"] = {}  # a version that it does not tell is no other one
        attack(served(pairs, out, moved, tiny_folder), show=False)
        rows = [prompt for prompt in moved.prompts() if prompt in before and before.count(prompt) == 1]
    assert len(rows) <= 1  # what was judged is not asked twice; one may not have been, when the other request failed
    assert texts(out) == texts(attack(served(pairs, tmp_path / "whole", server, tiny_folder), show=False))


def test_parity_of_servers_that_call_the_model_otherwise(
    server: TokenServer, tiny_subject: Subject, pairs: Path, tiny_folder: Path
) -> None:
    with TokenServer(tiny_subject, kind="llamacpp", model="other", key="k") as other:
        both = {"model": str(tiny_folder), "data": str(pairs), "engine": [server.url, other.url], "k": [0]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NO_KEY", "none")
            patch.setenv("ITS_KEY", "k")
            keys = {"engine_model": ["tiny", "other"], "api_key_env": ["NO_KEY", "ITS_KEY"]}
            record = parity.parity(parity.plan(parity.ParityOptions(**both, **keys)))  # type: ignore[arg-type]
        assert record.same == len(record.rows) > 0
        with pytest.raises(InputError, match="--engine-model is given 2 times, but 1 of the engines are servers"):
            parity.plan(parity.ParityOptions(**{**both, "engine": ["local", server.url]}, engine_model=["a", "b"]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"engine": "localhost:8000"}, "is neither local nor an address"),
        ({"engine": "http://u:p@localhost/v1"}, "holds a password"),
        ({"engine": "http://a/v1,http://a/v1"}, "names a server twice"),
        ({"engine": "http://a/v1", "dtype": "float32"}, "--dtype is for weights that are loaded here"),
        ({"engine": "http://a/v1", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY, which --api-key-env names, is not set"),
        ({"engine": "http://a/v1", "attack": "rank-prefill"}, "reads the model's own logits"),
        ({"engine": "http://a/v1", "model": "vllm/some/name"}, "is given token ids, and vllm/some/name texts"),
        ({"engine_model": "x"}, "--engine-model is for a server"),
        ({"in_flight": 0}, "--in-flight is 0"),
        ({"answer_timeout": 0}, "--answer-timeout is 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    settings: dict[str, Any], why: str, pairs: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    with pytest.raises(InputError, match=why):
        attack(config(pairs, tmp_path / "out", **{"model": str(tiny_folder), **settings}))


def test_inspect_asks_the_same_server(server: TokenServer, pairs: Path, tmp_path: Path, tiny_folder: Path) -> None:
    from inspect_ai.model import get_model

    model = get_model(f"tokendeep/{bare(tiny_folder)}", engine=server.url, memoize=False)
    task = "tokendeep/prefill"
    [log] = inspect_eval(
        task, model=model, task_args={"data": str(pairs), "k": "5", "max_new_tokens": 16}, log_dir=str(tmp_path / "logs"),
        display="none", log_realtime=False,
    )  # fmt: skip
    ours = texts(attack(served(pairs, tmp_path / "out", server, tiny_folder, attack="prefill", k=[5]), show=False))
    assert [s.output.completion for s in log.samples or ()] == list(ours.values())
    assert log.eval.metadata["model"]["engine"]["kind"] == "vllm"  # type: ignore[index]
    assert models.load_tokenizer(str(tiny_folder))
