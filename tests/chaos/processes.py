"""Runs of the command line in processes of their own that begin at once: forks of one that has loaded everything."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

CRASHED, HUNG = 70, -1  # exit code after a traceback; what stands for a process that had to be ended
MEMORY = 12 * 2**30  # bytes a process may take; a bad input that takes more fails by itself
LOADED = (
    *("torch", "transformers", "trl", "peft", "datasets", "inspect_ai", "matplotlib.pyplot", "pandas", "scipy.stats"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto", "tokendeep.cli"),
    *(f"tokendeep.verbs.{verb}" for verb in ("measure", "attack", "deepen", "finetune", "mend", "pairs", "poison", "gcg")),
    *("tokendeep.verbs.audit", "tokendeep.verbs.report", "tokendeep.verbs.demo"),
    *("tokendeep.evals.running", "tokendeep.evals.logs", "tokendeep.training.fit", "tokendeep.training.trainer"),
    *("tokendeep.report.render", "tokendeep.training.watch", "tokendeep.attacks.gcg.search", "tokendeep.models.loading"),
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it printed."""

    code: int
    said: str


@dataclass(frozen=True)
class Running:
    """A process under way."""

    pid: int
    log: Path

    def wait(self, seconds: float) -> int | None:
        """The exit code (minus the signal that ended it); None where it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= end:
                return None
            time.sleep(0.002)

    def kill(self) -> bool:
        """End it at once; False where it had ended by itself."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -signal.SIGKILL
        return False

    def finish(self, seconds: float = 300) -> Done:
        """Wait for its end; one that takes longer is ended."""
        code = self.wait(seconds)
        if code is None:
            self.kill()
            code = HUNG
        return Done(code, self.log.read_text(encoding="utf-8", errors="backslashreplace"))


def load() -> None:
    """Import what the verbs import, so that a fork need not."""
    from tokendeep import cli

    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", COLUMNS="100")
    cli.quiet()
    for name in LOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def start(
    work: Callable[[], int],
    log: Path,
    environment: Mapping[str, str] | None = None,
    here: Path | None = None,
    **limits: int,
) -> Running:
    """Do the work in a fork; what it prints goes to `log`, and an exception that leaves it ends it with CRASHED.

    Args:
        here: the folder to do it in, where names without one may be written.
        limits: `file_bytes`, the largest file it may write.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Running(pid, log)
    code = CRASHED
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(handle, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(environment or {})
        os.chdir(here or log.parent)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if size := limits.get("file_bytes"):
            size = max(size, 2**16)  # the log is a file as well
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else CRASHED
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def command(words: list[str]) -> Callable[[], int]:
    """The work of a command line."""

    def work() -> int:
        from tokendeep import cli

        return cli.main(words)

    return work
