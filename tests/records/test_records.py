"""Records on disk: old and new files are read, damaged ones are named, what is read is what is written."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fake_runs
from fake_runs import sample
from tokendeep import records
from tokendeep.errors import InputError
from tokendeep.evals import rates
from tokendeep.records import Dynamics, Manifest, PoisonTable, Profile, Rate, Training

PROFILE = fake_runs.profile(random.Random(0), "m", deep=False)
POSITIONS = {"mean": [1.0, 2], "n": [2, 1]}
STEP = {"step": 0, "log_odds": {"k": [0, 1], "median": [1.5, -2.0], "positive": [1.0, 0.5]}, "kl": POSITIONS}
DYNAMICS = {
    "meta": {"pairs": 2, "positions": 2, "fall": None, "fired": None}, "steps": [STEP, {**STEP, "step": 4, "asr": None}],
}  # fmt: skip
ASK = {"rate": 0.5, "low": 0.1, "high": 0.9, "n": 4, "asked": 4, "unscored": 0, "by_seed": [0.5]}
TABLE = [
    {"objective": "start", "lr": None, "seeds": 1, "plain": ASK, "utility": None},
    {"objective": "sft", "lr": 2e-5, "seeds": 0},
]
TRAINING = {"history": [{"step": 1, "loss": 2.0, "nll_later": 1.0, "mean_token_accuracy": 0.5}], "steps": 1}


def write(folder: Path, name: str, value: object) -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder / name


def rows() -> list[dict[str, Any]]:
    """asr.json of the first version: three requests at two k."""
    outcomes = {0: ["refused", "refused", "complied"], 5: ["complied", "empty", "complied"]}
    samples = [sample(i, "prefill", {"k": k}, "m", o) for k, each in outcomes.items() for i, o in enumerate(each)]
    made: list[dict[str, Any]] = json.loads(json.dumps(fake_runs.rate_rows(samples)))
    for row in made:
        row.pop("complied", None)
        row.get("common", {}).pop("complied", None)
    return made


def test_an_older_file_is_read_and_says_the_same(tmp_path: Path) -> None:
    profile = Profile.load(write(tmp_path, "profile.json", PROFILE))
    assert profile.version == 1
    assert profile.given() == PROFILE
    assert profile.dump() == {"schema": records.SCHEMA, **PROFILE}
    write(tmp_path, "asr.json", rows())
    found = Rate.load_all(tmp_path)
    assert [(rate.params.k, rate.complied, rate.n, rate.count("empty")) for rate in found] == [
        (0, 1, 3, 0),
        (5, 2, 2, 1),
    ]
    assert [rate.common.complied for rate in found if rate.common] == [1, 2]


def test_a_count_is_read_and_not_rebuilt_from_its_rate(tmp_path: Path) -> None:
    [first, *_] = rows()
    write(tmp_path, "asr.json", [{**first, "complied": 2}, {**first, "params": {"any_of": "all"}, "rate": 1 / 3}])
    assert [rate.complied for rate in Rate.load_all(tmp_path)] == [2, 1]  # an older row of any of: there is no count


def test_what_is_counted_is_what_is_read_back(tmp_path: Path) -> None:
    samples = [sample(i, "prefill", {"k": k}, "m", "complied", lead="sha 1") for k in (0, 5) for i in range(3)]
    made = rates.asr(samples)
    write(tmp_path, "asr.json", made.dump())
    assert Rate.load_all(tmp_path / "asr.json").dump() == made.dump()
    assert [row["schema"] for row in made.dump()] == [records.SCHEMA] * 2
    assert "prefix" not in made.dump()[0]["params"]


def test_a_newer_minor_version_keeps_its_keys(tmp_path: Path) -> None:
    more = {**PROFILE, "schema": records.SCHEMA, "added": {"x": [1]}, "meta": {**PROFILE["meta"], "added": 2}}
    assert Profile.load(write(tmp_path, "profile.json", more)).dump() == more


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "profile.json", {**PROFILE, "schema": records.SCHEMA + 1})
    with pytest.raises(InputError, match=r"profile\.json was written by a newer .* update tokendeep\.$"):
        Profile.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"judge": 3}, "row 2, judge"),
        ({"params": []}, "row 2, params holds no object"),
        ({"params": {"k": "5"}}, "row 2, params, k"),
        ({"outcomes": {"refused": None}}, "row 2, outcomes, refused"),
        ({"n": "three"}, "row 2, n"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    first, second = rows()
    write(tmp_path, "asr.json", [first, {**second, **change}])
    with pytest.raises(InputError, match=place) as caught:
        Rate.load_all(tmp_path)
    assert str(tmp_path / "asr.json") in str(caught.value)
    assert str(caught.value).endswith("run the verb that wrote it again.")


def test_what_is_missing_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="profile.json cannot be read"):
        Profile.load(tmp_path)
    (tmp_path / "dynamics.json").write_text("{")
    with pytest.raises(InputError, match="dynamics.json cannot be read as JSON"):
        Dynamics.load(tmp_path)


def test_nan_is_not_known(tmp_path: Path) -> None:
    broken = {**PROFILE["kl"], "stderr": [float("nan"), *PROFILE["kl"]["stderr"][1:]]}
    kl = Profile.load(write(tmp_path, "profile.json", {**PROFILE, "kl": broken})).kl
    assert kl is not None
    assert kl.stderr[0] is None
    assert kl.curve("m").y[0] == kl.curve("m").low[0]


def test_the_other_files(tmp_path: Path) -> None:
    for name, value in (("dynamics.json", DYNAMICS), ("table.json", TABLE), ("training.json", TRAINING)):
        write(tmp_path, name, value)
    dynamics, table, training = Dynamics.load(tmp_path), PoisonTable.load(tmp_path), Training.load(tmp_path)
    assert [step.rated for step in dynamics.steps] == [False, True]
    assert dynamics.given() == DYNAMICS
    assert (table.asks, [line.given() for line in table]) == (["plain"], TABLE)
    assert (training.history[0].nll_later, training.given()) == (1.0, TRAINING)


def test_a_manifest_keeps_every_setting(tmp_path: Path) -> None:
    given = fake_runs.manifest("attack", "m", cost={"suffix": {"candidates": 3, "label": None}}, other=[1])
    manifest = Manifest.load(write(tmp_path, "manifest.json", given))
    assert (manifest.config.model, manifest.cost["suffix"].candidates) == ("m", 3)
    assert manifest.data_hash == given["inputs"]["data"]
    assert manifest.given() == given
    assert Manifest.load(write(tmp_path, "manifest.json", {"config": None, "cost": None})).config.model is None


def test_frames_hold_every_number(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    frame = Profile.parse(PROFILE, "p").to_frame()
    assert frame.curve.value_counts().to_dict() == {"kl": 48, "kl_benign": 48, "recovery": 8}
    write(tmp_path, "asr.json", rows())
    frame = Rate.load_all(tmp_path).to_frame()
    assert frame[["k", "rate", "complied", "n", "refused"]].values.tolist()[0] == [0, 1 / 3, 1, 3, 2]
    assert frame.columns[:9].tolist() == ["model", "attack", "k", "rate", "low", "high", "n", "prompts", "unscored"]
    assert {"judge", "temperature", "refused", "complied", "truncated"} < set(frame.columns[9:])
    assert len(Dynamics.parse(DYNAMICS, "d").to_frame()) == 9
    assert Training.parse(TRAINING, "t").to_frame().nll_later.tolist() == [1.0]
    write(tmp_path, "table.json", TABLE)
    assert PoisonTable.load(tmp_path).to_frame()[["objective", "ask", "rate"]].values.tolist() == [
        ["start", "plain", 0.5]
    ]


def test_plots_are_axes_with_a_line_for_each_curve(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    write(tmp_path, "asr.json", rows())
    write(tmp_path, "table.json", TABLE)
    profile = Profile.parse(PROFILE, "p")
    drawn = {
        "kl": (profile.plot, 2), "dynamics": (Dynamics.parse(DYNAMICS, "d").plot, 2),
        "rates": (Rate.load_all(tmp_path).plot, 1), "table": (PoisonTable.load(tmp_path).plot, 1),
    }  # fmt: skip
    for name, (plot, lines) in drawn.items():
        axes = Figure().add_subplot()
        assert plot(axes) is axes
        assert len(axes.get_lines()) == lines, name
    axes = profile.plot(Figure().add_subplot(), curve="recovery")
    assert axes.get_ylabel() == "refusal log odds (nats)"


def test_every_file_has_a_json_schema() -> None:
    schemas = records.schemas()
    assert {
        "manifest.json",
        "profile.json",
        "asr.json",
        "dynamics.json",
        "training.json",
        "table.json",
    } < schemas.keys()
    assert "schema" in schemas["profile.json"]["properties"]
    command = [sys.executable, "-m", "tokendeep.records"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == schemas
