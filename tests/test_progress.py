"""Bars: the estimate comes when it is sound, and a place between two units is whole again at the end."""

from __future__ import annotations

import io
import re

from tokendeep.progress import Bar, loading


def shown(settle: float, places: list[float]) -> list[str]:
    lines = io.StringIO()
    with Bar(10, "harmful answers", "answer", settle=settle, file=lines, mininterval=0, miniters=0) as bar:
        for place in places:
            bar.reach(place)
    return lines.getvalue().split("\r")


def test_the_time_left_is_told_when_enough_is_done() -> None:
    lines = shown(4, [1, 3, 3.6, 5, 10])
    assert all(line.startswith("harmful answers: ") for line in lines if line)
    told = {place.group(1): "<" in line for line in lines if (place := re.search(r"\| (\d+)/10", line))}
    assert told == {"0": False, "1": False, "3": False, "4": False, "5": True, "10": True}


def test_a_loaded_model_has_its_own_line(capsys) -> None:
    loading("models/mine.gguf")
    assert capsys.readouterr().err == "loading models/mine.gguf\n"
