"""What verbs share: every model that an option names is part of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from killed import forget_runs
from tokendeep.errors import InputError
from tokendeep.records import Manifest
from tokendeep.verbs.common import Names, Place, Texts, typed

NAMES: dict[str, Any] = {"model": "me/model", "data": "chats"}


def test_a_model_that_an_attack_s_option_names_is_part_of_the_run(tmp_path: Path) -> None:
    from tokendeep.verbs import attack

    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    options = attack.AttackOptions(**NAMES, out=str(tmp_path / "out"), rank_base=str(base))
    run = Place("attack", options, {}, models=attack.MODELS).open()
    assert "rank_base" in run.manifest["models"]
    run.finish()  # a run that holds nothing yet would be replaced
    forget_runs()
    (base / "config.json").write_text("{ }")
    with pytest.raises(InputError, match="the content of rank_base"):
        Place("attack", options, {}, models=attack.MODELS).open()
    forget_runs()


def test_plan_and_manifest_name_the_public_set(tmp_path: Path) -> None:
    from tokendeep.verbs import attack

    path = tmp_path / "xstest_prompts.csv"
    path.write_text("id,prompt,type,label,focus,note\n1,A?,homonyms,safe,kill,\n")
    options = attack.AttackOptions(model="me/model", data=str(path), out=str(tmp_path / "out"))
    place = Place("attack", options, {"data": options.data})
    assert place.lines()[0] == "--data: XSTest (CC-BY-4.0); 1 rows here, 450 as published"
    run = place.open()
    run.finish()
    forget_runs()
    assert Manifest.load(tmp_path / "out").sets == {"data": "XSTest"}


def test_names_with_commas_between_them_may_be_a_list() -> None:
    assert typed(["refusal", "refusal-keywords"], str, "a.yaml: judge") == "refusal,refusal-keywords"
    assert typed(["none"], str, "attack") == "none"
    assert typed("dtype, engine", Names, "allow") == typed(["dtype", "engine"], Names, "allow") == ["dtype", "engine"]
    with pytest.raises(InputError, match=r"allow is ',', but must be a list of texts"):
        typed(",", Names, "allow")
    assert typed("dtype, engine", Texts | None, "prefixes") == ["dtype, engine"]
    assert typed("refusal,rubric", str, "judge") == "refusal,rubric"
    for value, name in ((["refusal", 1], "judge"), (["out", "put"], "a.yaml: out")):
        with pytest.raises(InputError, match="must be text"):
            typed(value, str, name)
