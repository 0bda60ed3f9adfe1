"""What happens per token while training (the paper's figures 3 and 5), and a monitor that warns or stops.

`TokenDynamicsCallback` works with any Hugging Face Trainer. At chosen steps it records, on a fixed probe set of harmful
pairs: cross-entropy, gradient norm and D_KL(trained || aligned) at every answer position; the refusal log-odds after k
answer tokens; KL on answers sampled from the model being trained (figure 3c); and whatever a given callable measures, such
as an attack success rate. The records are in dynamics.json, and in dynamics.svg as a figure.

The aligned model is the one handed over, with its adapter where that goes on being trained: its final states on the probe
are kept from before step 1 with a copy of its head, so no second model is needed. Sampled answers change from record to
record, so for them it is needed itself (`aligned`).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from tokendeep import runs
from tokendeep.compute import gradients, lm_head
from tokendeep.errors import InputError
from tokendeep.records import Dynamics
from tokendeep.training import dynamics, launch
from tokendeep.training.dynamics import NotRefused
from tokendeep.types import Pair

__all__ = ["NotRefused", "TokenDynamicsCallback"]


class TokenDynamicsCallback(TrainerCallback):
    """Record per-token figures at `steps` of a training, and watch the refusal log-odds.

    Args:
        pairs: the probe: harmful instructions with harmful answers.
        steps: after which optimizer steps to record; 0 is before the first. Step 0 is always recorded.
        positions: answer positions to look at.
        gradients: whether to record gradient norms, the dearest part.
        sampled: instructions of the probe answered by the model itself at every record; 0 leaves that out.
        aligned: the aligned model, for sampled answers.
        asr: maps the model to a number, recorded as it is, or to several with names, such as `NotRefused`.
        k: harmful tokens given before the refusal log-odds are taken.
        fall: nats that the median log-odds at k = 0 may fall before the monitor acts; None never.
        on_fall: `warn` or `stop`.
        watch_every: steps between two looks of the monitor, where nothing is recorded.

    Raises:
        InputError: an empty probe, answers too short for it, or settings out of range.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokenizer: Any,
        out: str | Path,
        *,
        steps: Sequence[int] = (0, 2, 4, 6),
        positions: int = 20,
        gradients: bool = True,
        sampled: int = 0,
        aligned: Any = None,
        asr: Callable[[Any], Any] | None = None,
        k: Sequence[int] = (0, 1, 2, 3, 4, 5),
        fall: float | None = None,
        on_fall: str = "warn",
        watch_every: int = 1,
        system: str = "default",
        batch_size: int = 16,
    ) -> None:
        if sampled and aligned is None:
            raise InputError("KL on sampled answers needs the aligned model; give it as aligned.")
        if not pairs or positions < 1 or watch_every < 1 or on_fall not in ("warn", "stop") or (fall or 1) <= 0:
            raise InputError(
                "The probe needs at least one pair, positions and watch_every at least 1, fall above 0, and on_fall must be "
                "warn or stop."
            )
        self.out, self.steps, self.with_gradients = Path(out), {0, *steps}, gradients
        self.sampled, self.aligned, self.asr = sampled, aligned, asr
        self.fall, self.on_fall, self.watch_every = fall, on_fall, watch_every
        self.batch_size = batch_size
        self.probe = dynamics.probe(pairs, tokenizer, positions, sorted({0, *k}), system)
        self.rows = self.probe.rows
        self.records: list[dict[str, Any]] = []
        self.fired: int | None = None
        self.start_states: list[Tensor] = []
        self.start_lm_head: Any = None
        self._norms: Any = None

    # --- the training's events ---------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep what the aligned model says, and record step 0; a resumed training goes on with its records."""
        launch.check_whole("TokenDynamicsCallback", model)
        gradients.check_differentiable(model)
        dynamics.check_room(model, self.probe)
        path = self.out / "dynamics.json"
        if state.global_step:
            if not path.exists():
                raise InputError(f"{path} of the start of this training is missing; train again from the start.")
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.records = [record for record in kept["steps"] if record["step"] <= state.global_step]
            fired = kept["meta"]["fired"]
            self.fired = fired if fired is not None and fired <= state.global_step else None
            if state.global_step >= state.max_steps:  # killed after its last step: nothing is left to compare
                return
        with dynamics.evaluating(model):
            self._keep_start(model, resumed=state.global_step > 0)
        if not state.global_step:
            self._record(model, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Record at the steps asked for, and let the monitor look."""
        step = state.global_step
        if step in self.steps:
            self._record(model, step)
            self._watch(self.records[-1]["log_odds"]["median"][0], step, control)
        elif self.fall is not None and step % self.watch_every == 0 and self.fired is None:
            with dynamics.evaluating(model):
                self._watch(float(np.nanmedian(dynamics.log_odds(model, self.probe, [0])[:, 0])), step, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was kept of the start is needed no longer."""
        if runs.is_main_process() and state.global_step >= state.max_steps:
            (self.out / "dynamics-start.safetensors").unlink(missing_ok=True)

    def _watch(self, now: float, step: int, control: Any) -> None:
        if self.fall is None or self.fired is not None:
            return
        start = self.records[0]["log_odds"]["median"][0]
        if not start - now >= self.fall:  # also where either is not known
            return
        self.fired = step
        self._write()
        if runs.is_main_process():
            print(
                f"tokendeep: at step {step} the refusal log-odds at the first tokens have fallen from {start:.1f} to "
                f"{now:.1f} nats (allowed: {self.fall:g}); "
                + ("the training stops" if self.on_fall == "stop" else "the training goes on")
            )
        if self.on_fall == "stop":
            control.should_training_stop = True

    # --- what is measured ----------------------------------------------------------------------------

    def _keep_start(self, model: Any, resumed: bool) -> None:
        """The aligned model's states on the probe, and its head."""
        from safetensors.torch import load_file, save_file

        kept = self.out / "dynamics-start.safetensors"
        self.start_lm_head = lm_head.frozen_lm_head(lm_head.causal_lm(model))
        head = self.start_lm_head.get_output_embeddings()
        if resumed:
            if not kept.exists():
                raise InputError(f"{kept} of the start of this training is missing; train again from the start.")
            tensors = load_file(kept)
            lengths = [min(len(row.input_ids) - row.start, self.probe.positions) for row in self.rows]
            self.start_states = list(tensors.pop("states").split(lengths))
            head.load_state_dict(tensors)
            return
        self.start_states = dynamics.final_states(model, self.rows, self.probe.positions)
        if runs.is_main_process():
            runs.private_dir(self.out)
            weights = {name: value.contiguous() for name, value in head.state_dict().items()}
            save_file({"states": torch.cat(self.start_states), **weights}, kept)

    def _record(self, model: Any, step: int) -> None:
        if any(record["step"] == step for record in self.records):
            return
        with dynamics.evaluating(model):
            states = dynamics.final_states(model, self.rows, self.probe.positions)
            record: dict[str, Any] = {
                "step": step,
                "cross_entropy": dynamics.cross_entropy(model, self.probe, states),
                "kl": dynamics.divergence(model, states, self.start_lm_head, self.start_states),
            }
            if self.with_gradients:
                self._norms = self._norms or gradients.exact_gradient_norms(model, self.rows, self.probe.positions)
                norms = self._norms(model, self.rows, self.probe.positions)
                record["gradient_norm"] = dynamics.by_position(norms)
            record["log_odds"] = dynamics.log_odds_record(model, self.probe)
            if self.sampled:
                record["kl_sampled"] = dynamics.sampled_divergence(
                    model, self.aligned, self.probe, self.sampled, self.batch_size
                )
            if self.asr is not None:
                found = self.asr(model)
                record.update(found if isinstance(found, dict) else {"asr": float(found)})
        self.records.append(record)
        self._write()
        self._say(record)

    def _say(self, record: dict[str, Any]) -> None:
        """The record in a line, above the progress bar."""
        if not runs.is_main_process():
            return
        said = f"step {record['step']}: refusal log-odds {record['log_odds']['median'][0]:+.1f} nats"
        rate = record.get("asr")
        if "asr" in record:
            judged = f" ({record['asr_judged']} of {record['asr_asked']} judged)" if "asr_asked" in record else ""
            said += f", not refused {'unknown' if rate is None else f'{rate:.2f}'}{judged}"
        tqdm.write(said)

    def _write(self) -> None:
        if not runs.is_main_process():
            return
        meta = {"pairs": len(self.rows), "positions": self.probe.positions, "fall": self.fall, "fired": self.fired}
        record = Dynamics.model_validate({"meta": meta, "steps": self.records})
        runs.write_json(self.out / Dynamics.FILE, record.dump())
