"""Shared by tests of real servers, each in an environment of its own: started, killed, stopped.

vLLM: `.venv-vllm/bin/vllm` of the project (`make bench-vllm` makes it), or what TOKENDEEP_VLLM names.
llama.cpp: the Python that TOKENDEEP_LLAMACPP names, in whose environment are `xllamacpp` and `gguf`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from tokendeep import chat, models
from tokendeep.engines.server.engine import ServerEngine, known_of
from tokendeep.models import packaged
from tokendeep.types import Subject

ROOT = Path(__file__).parents[1]
VLLM = Path(os.environ.get("TOKENDEEP_VLLM", ROOT / ".venv-vllm/bin/vllm"))
LLAMACPP = os.environ.get("TOKENDEEP_LLAMACPP", "")
LONGEST = 900  # seconds until it answers: vLLM's first start on a machine compiles
THINGS = ("bridge", "apple", "river", "violin", "moon", "bakery", "map", "garden", "ship", "clock", "forest")


def engine(server: RealServer, subject: Subject, **more: object) -> ServerEngine:
    known = known_of(models.outline("smollm2"), subject.tokenizer)
    return ServerEngine(server.url, subject.tokenizer, known=known, **more)  # type: ignore[arg-type]


def prompts(subject: Subject) -> list[tuple[int, ...]]:
    """22 short requests as token ids."""
    texts = [f"{verb} a {thing}." for verb in ("Describe", "Draw") for thing in THINGS]
    return [tuple(chat.prompt_ids(subject.tokenizer, [{"role": "user", "content": text}])) for text in texts]


class RealServer:
    """A server in float32, with what it prints in `log`.

    Args:
        cpu: the core it is pinned to, where the system can; None leaves it free.
    """

    def __init__(self, log: Path, cpu: int | None = None) -> None:
        self.log, self.cpu = log, cpu
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> Self:
        """Start it, at the port of before where it has been there; returns when it answers."""
        pinned = [] if self.cpu is None else ["taskset", "-c", str(self.cpu)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*pinned, *self.command()], stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "PYTHONPATH": ""},
                start_new_session=True,
            )  # fmt: skip
        try:
            until = time.monotonic() + LONGEST
            while not self._answers():
                assert self.process.poll() is None, f"the server ended, see {self.log}"
                assert time.monotonic() < until, f"the server does not answer, see {self.log}"
                time.sleep(1)
            assert self.process.poll() is None, (
                f"another server answers at port {self.port}; ours ended, see {self.log}"
            )
        except BaseException:
            self.stop()
            raise
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server with its workers."""
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, how)
            self.process.wait()
            self.process = None


class VllmServer(RealServer):
    """vLLM with the model of a folder.

    Args:
        more: further options of `vllm serve`.
    """

    def __init__(
        self, folder: Path, log: Path, *, context: int = 1024, cpu: int | None = None, more: tuple[str, ...] = ()
    ) -> None:
        super().__init__(log, cpu)
        self.folder, self.context, self.more = folder, context, more

    def command(self) -> list[str]:
        settings = ["--dtype", "float32", "--max-model-len", str(self.context), "--port", str(self.port), *self.more]
        return [str(VLLM), "serve", str(self.folder), *settings]


class LlamaCppServer(RealServer):
    """llama.cpp's server with the packaged model, unpacked into `folder`."""

    def __init__(self, folder: Path, log: Path) -> None:
        super().__init__(log)
        self.folder = folder

    def command(self) -> list[str]:
        program = str(ROOT / "benchmarks/llamacpp.py")
        return [LLAMACPP, program, str(packaged.smollm2_gguf()), str(self.folder), "--port", str(self.port)]
