"""Shared by tests of real servers: vLLM in an environment of its own (`make bench-vllm` makes it), started, killed, stopped.

`PROGRAM` is `.venv-vllm/bin/vllm` of the project, or what TOKENDEEP_VLLM names.
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

PROGRAM = Path(os.environ.get("TOKENDEEP_VLLM", Path(__file__).parents[1] / ".venv-vllm/bin/vllm"))
LONGEST = 900  # seconds until it answers: the first start on a machine compiles


class VllmServer:
    """A server of a model folder in float32 on one core, with what it prints in `log`.

    Args:
        cpu: the core it is pinned to, where the system can; None leaves it free.
    """

    def __init__(
        self, folder: Path, log: Path, *, context: int = 1024, cpu: int | None = None, more: tuple[str, ...] = ()
    ):
        self.folder, self.log, self.context, self.more, self.cpu = folder, log, context, more, cpu
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> VllmServer:
        """Start it, at the port of before where it has been there; returns when it answers."""
        settings = ["--dtype", "float32", "--max-model-len", str(self.context), "--port", str(self.port), *self.more]
        pinned = [] if self.cpu is None else ["taskset", "-c", str(self.cpu)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*pinned, str(PROGRAM), "serve", str(self.folder), *settings], stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "PYTHONPATH": ""},
                start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + LONGEST
        while not self._answers():
            assert self.process.poll() is None, f"vLLM ended, see {self.log}"
            assert time.monotonic() < until, f"vLLM does not answer, see {self.log}"
            time.sleep(1)
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
            os.killpg(self.process.pid, how)
            self.process.wait()
            self.process = None
