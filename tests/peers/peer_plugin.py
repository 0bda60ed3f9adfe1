"""A plugin of pytest for `trl_suite.py`: puts our trainer in the place of TRL's, and writes down what became of tests."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_configure(config: Any) -> None:
    """Before TRL's tests are imported: `from trl import SFTTrainer` gives ours.

    Tests of another version import private names that the installed one lacks; those of the trainer do not use them.
    """
    import trl
    from trl.trainer import sft_trainer

    for module in (sys.modules["trl.import_utils"], sft_trainer):
        module.__getattr__ = _missing  # type: ignore[method-assign]
    if name := os.environ["PEER_TRAINER"]:
        from tokendeep.training import sft, trainer

        trl.SFTTrainer = getattr(trainer, name, None) or getattr(sft, name)


def _missing(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return (lambda: False) if name.startswith("is_") else object()


@pytest.fixture
def lazy_shared_datadir(tmp_path: Path) -> Path:
    """A copy of the data of TRL's tests, as a plugin that need not be installed gives it."""
    return Path(shutil.copytree(os.environ["PEER_DATA"], tmp_path / "data"))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when != "call" and report.outcome == "passed":
        return
    if report.when == "teardown":
        return
    error = call.excinfo.value if call.excinfo else None
    refusal = _refusal(error)
    line = {
        "test": item.nodeid.rpartition("::")[2], "outcome": report.outcome, "refused": refusal is not None,
        "message": " ".join(str(refusal or error or "").split())[:400] if refusal or not error else
        f"{type(error).__name__}: {' '.join(str(error).split())[:400]}",
    }  # fmt: skip
    with open(os.environ["PEER_REPORT"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _refusal(error: BaseException | None) -> BaseException | None:
    """The InputError behind an error, also where a test wanted other words."""
    from tokendeep.errors import InputError

    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None
