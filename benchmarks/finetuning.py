"""Fine-tuning: the constrained trainer against TRL's own SFTTrainer and against full float32 logits, same rows, same run.

Workload: SmolLM2-135M-Instruct, steps of 16 rows of 100 tokens, 45 % of them supervised, one micro-batch a step, AdamW,
float32 masters with bf16 autocast where the machine has bf16. Printed: tokens per second of the quickest step, and peak
memory. Every trainer runs in a process of its own, so that none finds another one's memory. `finetuning.py KIND` runs one of
them; `finetuning.py profile KIND` says where its last step's time goes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import torch

from shared import in_a_process, peak_memory

ROWS, LENGTH, SUPERVISED, STEPS = 16, 100, 45, 4
GROUPS = {  # where a step's time goes -> operations of PyTorch; what is in none of them is the rest
    "matrix products": "mm addmm bmm linear matmul",
    "attention": "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward",
    "casts and copies": "copy_ _to_copy clone contiguous cat",
    "optimizer and clipping": "_fused_adamw_ _foreach_norm _foreach_mul_ _foreach_add_ linalg_vector_norm",
    "norms, activations, sums": "mul mul_ add add_ silu silu_backward rsqrt pow mean sum neg div sigmoid fill_ zero_",
    "loss": "_log_softmax _log_softmax_backward_data _softmax logsumexp gather exp sub nll_loss_forward nll_loss_backward",
}
KINDS = {
    "trl": "TRL's SFTTrainer, default loss",
    "full": "full float32 logits, as the authors' trainer",
    "sft": "supervised rows only, plain",
    "constrained": "constrained, pre-computed reference",
    "anchored": "anchored, pre-computed reference",
    "constrained-compiled": "constrained, pre-computed, torch_compile=True",
    "trl-lora": "TRL's SFTTrainer, LoRA",
    "constrained-lora": "constrained, LoRA, pre-computed",
    "on-the-fly-lora": "constrained, LoRA, adapter off beside every step",
    "body": "the decoder alone: no output head and no loss at all",
    "body-lora": "the decoder alone, LoRA",
}


def train(kind: str, profiler: Any = None) -> dict[str, float]:
    """Seconds of the quickest step and peak memory; the last step runs within the profiler, where there is one."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tokendeep import models
    from tokendeep.compute import lm_head
    from tokendeep.training import cpu
    from tokendeep.training.eq3 import BetaSchedule, constrained_nll, response_positions
    from tokendeep.training.launch import has_bf16
    from tokendeep.training.sft import ResponseSFTTrainer
    from tokendeep.training.trainer import ConstrainedSFTTrainer

    subject = models.load("smollm2", dtype="float32")
    device = next(subject.model.parameters()).device
    ids = torch.randint(100, 40000, (ROWS * 2, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Dataset.from_list(
        [{"input_ids": row, "labels": [-100] * (LENGTH - SUPERVISED) + row[LENGTH - SUPERVISED :]} for row in ids]
    )

    class Clock(TrainerCallback):
        times: list[float] = []  # noqa: RUF012

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()
            if profiler and args[1].global_step == STEPS - 1:
                profiler.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            self.times.append(time.perf_counter() - self.start)
            if profiler and args[1].global_step == STEPS:
                profiler.stop()

    class Full(SFTTrainer):
        """The objective on full float32 logits of every position."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs["labels"][:, 1:]
            logits = model(input_ids=inputs["input_ids"]).logits.float()[:, :-1]
            logps = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            positions = response_positions(labels != -100)
            loss = constrained_nll(logps, logps.detach(), positions, BetaSchedule()(positions), min_weight=1e-3)
            return loss.sum() / (labels != -100).sum()

    class Body(SFTTrainer):
        """What no trainer of these rows can do without: how fast it is bounds every ratio; with our care of a CPU."""

        def train(self, *given: Any, **more: Any) -> Any:
            with cpu.memory_kept(device):
                return super().train(*given, **more)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            with self.accelerator.autocast(), cpu.quick(model):
                return lm_head.hidden_states(model, inputs["input_ids"]).float().mean()

    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            folder, max_steps=STEPS, per_device_train_batch_size=ROWS, learning_rate=1e-5, bf16=has_bf16(device),
            use_cpu=device.type == "cpu", gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to=[],
            disable_tqdm=True, warmup_steps=0, torch_compile=kind.endswith("compiled"),
        )  # fmt: skip
        more: dict[str, Any] = {"train_dataset": rows, "processing_class": subject.tokenizer, "callbacks": [Clock()]}
        if kind.endswith("lora"):
            more["peft_config"] = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        if kind in ("trl", "trl-lora"):
            trainer: Any = SFTTrainer(subject.model, args, **more)
        elif kind == "full":
            trainer = Full(subject.model, args, **more)
        elif kind.startswith("body"):
            trainer = Body(subject.model, args, **more)
        elif kind == "sft":
            trainer = ResponseSFTTrainer(subject.model, args, **more)
        else:
            trainer = ConstrainedSFTTrainer(
                subject.model, args, head_anchor=(1.0 if kind == "anchored" else 0.0, 5),
                reference="on-the-fly" if "fly" in kind else "precomputed", **more,
            )  # fmt: skip
        before = memory(device)
        start = time.perf_counter()
        trainer.train()
        whole = time.perf_counter() - start
    return {"step": min(Clock.times), "peak": memory(device) - before, "all": whole, "before": before}


def memory(device: torch.device) -> float:
    """Peak memory so far, GB: of the device, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory() / 1e3


def profile(kind: str) -> None:
    """Print where the CPU time of the last step goes, and how fast its matrix products are."""
    from torch.profiler import ProfilerActivity

    profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU], with_flops=True)
    train(kind, profiler)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::")
        group = next((title for title, names in GROUPS.items() if name in names.split()), "the rest")
        times[group] = times.get(group, 0) + event.self_cpu_time_total / 1e6
    flops = sum(event.flops for event in profiler.key_averages())
    for group, seconds in sorted(times.items(), key=lambda item: -item[1]):
        print(f"{group:28} {seconds:6.2f} s {seconds / sum(times.values()):5.0%}")
    speed = flops / times["matrix products"] / 1e9
    whole = flops / sum(times.values()) / 1e9
    print(f"{flops / 1e9:.0f} GFLOP in matrix products: {speed:.0f} GFLOP/s within them, {whole:.0f} of the whole step")


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for kind, title in KINDS.items():
        found[kind] = in_a_process(__file__, kind)
        step, peak = found[kind]["step"], found[kind]["peak"] + found[kind]["before"]
        print(f"{title:52} {ROWS * LENGTH / step:6.0f} tokens/s, peak memory {peak:5.2f} GB", flush=True)

    def ratio(one: str, two: str) -> float:
        return found[two]["step"] / found[one]["step"]

    gpu = torch.cuda.is_available()
    aim = 0.97 if gpu else 2.5
    print(f"constrained to TRL's SFTTrainer:      {ratio('constrained', 'trl'):.2f} times as fast (aim {aim})")
    print(
        f"the same with LoRA:                   {ratio('constrained-lora', 'trl-lora'):.2f} times as fast (aim {aim})"
    )
    for end, words in (("", "all weights"), ("-lora", "LoRA")):
        print(
            f"  most that leaving out the head could give ({words}): {ratio('body' + end, 'trl' + end):.2f} times TRL's speed"
        )
    print(f"on-the-fly to pre-computed (LoRA):    {ratio('on-the-fly-lora', 'constrained-lora'):.2f} (aim 0.62)")
    print(f"constrained, compiled to not:         {ratio('constrained-compiled', 'constrained'):.2f} times as fast")
    print(f"constrained to full float32 logits:   {ratio('constrained', 'full'):.2f} times as fast (aim 1.6)")
    peaks = {kind: figures["peak"] + figures["before"] for kind, figures in found.items()}
    print(f"peak memory, constrained to plain:    {peaks['constrained'] / peaks['sft']:.3f} (aim at most 1.05)")
    print(f"peak memory, constrained to TRL's:    {peaks['constrained'] / peaks['trl']:.3f} (aim at most 1.05)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["profile"]:
        profile(sys.argv[2])
    elif len(sys.argv) > 1:
        print(json.dumps(train(sys.argv[1])))
    else:
        main()
