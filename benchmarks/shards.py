"""Memory of two processes that train one model in shards (FSDP2), with every process reading it and with the first alone.

    python benchmarks/shards.py

The packaged model is written in bfloat16, as models are published, and trained in float32. The processes are on the CPU, where
shards and what is read lie in the same memory; on GPUs what is read lies in the machine's memory and the shards on the cards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144",
}  # fmt: skip
WORDS = {True: "the first alone", False: "every process"}


def memory(name: str) -> float:
    """Of this process, GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(name))


def peak_since() -> float:
    """The most since this was called last, GB."""
    found = memory("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")
    return found


def one(folder: Path) -> None:
    """In one of the processes: load, shard, take two steps; writes the figures."""
    from accelerate import state
    from accelerate.utils import DistributedType
    from transformers import TrainerCallback

    from tokendeep import models
    from tokendeep.training import fit
    from tokendeep.training.options import TrainingOptions

    begin: Any = state.PartialState.__init__

    def shard(self: Any, *given: Any, **more: Any) -> None:  # accelerate shards on GPUs only
        begin(self, *given, **more)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    state.PartialState.__init__ = shard  # type: ignore[method-assign]
    figures = {"libraries": memory("VmRSS")}
    peak_since()

    class Begun(TrainerCallback):
        def on_train_begin(self, *given: Any, **more: Any) -> None:
            figures["sharding"], figures["sharded"] = peak_since(), memory("VmRSS")

    subject = models.load(str(folder / "model"), trainable=True, dtype="float32", device="cpu")
    figures["loading"], figures["loaded"] = peak_since(), memory("VmRSS")
    rows = [{"input_ids": list(range(5, 69)), "labels": [-100] * 8 + list(range(13, 69))} for _ in range(4)]
    options = TrainingOptions(max_steps=2, batch_size=4, micro_batch=2, max_length=64, precision="float32")
    result = fit.train(subject, rows, folder / "out", options, callbacks=[Begun()])
    figures["training"] = peak_since()
    figures["losses"] = [line["loss"] for line in result["history"] if "loss" in line]  # type: ignore[assignment]
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(figures))
    sys.stdout.flush()
    os._exit(0)  # as Python ends, threads of torch may abort the process


def main() -> None:
    if len(sys.argv) > 1:
        return one(Path(sys.argv[1]))
    from tokendeep import models

    made = models.load("smollm2", dtype="bfloat16", device="cpu")
    for sparing in (False, True):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            made.model.save_pretrained(folder / "model")
            made.tokenizer.save_pretrained(folder / "model")
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
            setting = {"FSDP_CPU_RAM_EFFICIENT_LOADING": str(sparing).lower()}
            done = subprocess.run(
                [*launch, name], env={**os.environ, **FSDP2, **setting}, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            for rank in (0, 1):
                figures = json.loads((folder / f"{rank}.json").read_text())
                losses = ", ".join(f"{loss:.4f}" for loss in figures.pop("losses"))
                told = ", ".join(f"{what} {value:.2f}" for what, value in figures.items())
                print(f"read by {WORDS[sparing]}, process {rank}, GB: {told}; losses {losses}", flush=True)
    return None


if __name__ == "__main__":
    main()
