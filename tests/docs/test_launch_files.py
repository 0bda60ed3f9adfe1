"""The launch files for clusters are whole: their shell parses, their keys are known, and their commands have the options."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import launch_command_parser

from tokendeep import cli

RECIPES = Path(__file__).parents[2] / "recipes"
SLURM = sorted((RECIPES / "slurm").glob("*.sbatch"))
SKY = sorted((RECIPES / "skypilot").glob("*.yaml"))
SETTINGS = sorted((RECIPES / "accelerate").glob("*.yaml"))
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "time", "output"}
GIVEN = {
    "MODEL",
    "DATA",
    "OUT",
    "HEAD",
    "HOST",
    "SLURM_JOB_NODELIST",
    "SLURM_NNODES",
    "SLURM_NODEID",
    "SLURM_GPUS_ON_NODE",
}
SKY_GIVEN = {"SKYPILOT_NUM_NODES", "SKYPILOT_NUM_GPUS_PER_NODE", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"}


def shells() -> list[tuple[str, str, set[str]]]:
    """Every piece of shell: its name, its text, and the variables that its launcher gives it."""
    found = [(path.name, path.read_text(encoding="utf-8"), GIVEN) for path in SLURM]
    for path in SKY:
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
        found += [(f"{path.stem}-{part}", task[part], SKY_GIVEN | set(task["envs"])) for part in ("setup", "run")]
    return found


def commands(text: str) -> list[list[str]]:
    """The commands that call tokendeep, as words; a variable is what it says."""
    text = re.sub(r"^\s*#.*$", "", text.replace("\\\n", " "), flags=re.M)
    text = re.sub(r'"\$\((?:\([^()]*\)|[^()]*)\)"', "8", text)  # "$(...)" and "$((...))"
    text = re.sub(r'"\$\{?\w+\}?"', "8", text)
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line) for line in lines if re.search(r"^(accelerate launch .*)?\btokendeep (?!-)", line)]


SHELLS = shells()


@pytest.mark.parametrize(("name", "text", "given"), SHELLS, ids=[name for name, *_ in SHELLS])
def test_the_shell_is_sound(name: str, text: str, given: set[str]) -> None:
    """It parses, stops at the first error, and quotes variables, each of which is set or given."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^set -eu", text, re.M)
    code = re.sub(r"(^|\s)#.*$", "", text, flags=re.M)
    used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", code))
    own = set(re.findall(r"\b([A-Z_]+)=", code)) | set(re.findall(r"for (\w+) in", code))
    assert used <= own | given, used - own - given
    bare = re.sub(r'"[^"]*"', "", re.sub(r"\$\(\(.*?\)\)", "", code))
    loose = set(re.findall(r"\$\{?(\w+)(?!\w*[:}])", re.sub(r"\w+=\$\{[^}]*\}", "", bare)))
    assert not loose, f"without quotes: {loose}"


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.stem)
def test_slurm_reads_its_settings(path: Path) -> None:
    """They stand before any command, else sbatch passes over them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    settings = [line for line in lines if line.startswith("#SBATCH")]
    assert settings == lines[1 : len(settings) + 1]
    assert {re.fullmatch(r"#SBATCH --([\w-]+)=\S+", line)[1] for line in settings} <= SBATCH  # type: ignore[index]


@pytest.mark.parametrize("path", SKY, ids=lambda path: path.stem)
def test_the_task_of_skypilot_has_its_keys(path: Path) -> None:
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert task.keys() == {"name", "num_nodes", "workdir", "resources", "envs", "setup", "run"}
    assert task["resources"].keys() <= {"accelerators", "disk_size", "cloud", "use_spot", "ports"}
    assert re.fullmatch(r"[\w-]+:\d+", task["resources"]["accelerators"])
    assert all(isinstance(value, str) for value in task["envs"].values())


@pytest.mark.parametrize(("name", "text", "given"), SHELLS, ids=[name for name, *_ in SHELLS])
def test_the_commands_have_their_options(name: str, text: str, given: set[str]) -> None:
    """Those of accelerate too, and its settings are the ones of this repository."""
    found = commands(text)
    assert found or name.endswith("setup")
    for words in found:
        if words[0] == "accelerate":
            given_to, unknown = launch_command_parser().parse_known_args(words[2:])
            assert (given_to.module, given_to.training_script, unknown) == (True, "tokendeep", [])
            assert (RECIPES.parent / given_to.config_file).is_file()
            cli.parse(given_to.training_script_args)
        else:
            cli.parse(words[1:])


@pytest.mark.parametrize("path", SKY, ids=lambda path: path.stem)
def test_a_task_of_skypilot_installs_what_it_has_copied(path: Path) -> None:
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert task["workdir"] == "."
    assert re.search(r"^pip install \.( #.*)?$", task["setup"], re.M)
    assert "pip install tokendeep" not in task["setup"]


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_accelerate_reads_its_settings(path: Path) -> None:
    """Its own class knows every key; a key of a plugin is one that it takes."""
    read = load_config_from_file(str(path))
    assert isinstance(read, ClusterConfig)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {name: getattr(read, name) for name in given if name != "distributed_type"} == {
        name: value for name, value in given.items() if name != "distributed_type"
    }
    assert read.distributed_type == given["distributed_type"]
    options = {one for action in launch_command_parser()._actions for one in action.option_strings}
    for name in [*given.get("fsdp_config", ()), *given.get("deepspeed_config", ())]:
        assert f"--{name}" in options, name


def test_there_are_launch_files() -> None:
    assert SETTINGS
    assert SLURM
    assert SKY
