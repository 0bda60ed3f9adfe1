"""What happens per token while training (the paper's figures 3 and 5), and a monitor that warns or stops.

`TokenDynamicsCallback` works with any Hugging Face Trainer. At chosen steps it records, on a fixed probe set of harmful
pairs: cross-entropy, gradient norm and D_KL(trained || aligned) at every answer position; the refusal log-odds after k
answer tokens; KL on answers sampled from the model being trained (figure 3c); and whatever a given callable measures, such
as an attack success rate. The records are in dynamics.json, and in dynamics.svg as a figure.

The aligned model is the one handed over, with its adapter where that goes on being trained: its final states on the probe
are kept from before step 1 with a copy of its head, so no second model is needed. Sampled answers change from record to
record, so for them it is needed itself (`aligned`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

from tokendeep import chat, judges, runs
from tokendeep.compute import gradients, lm_head
from tokendeep.depth import kl, openings, recovery
from tokendeep.engines import local as generation
from tokendeep.engines.base import Request
from tokendeep.errors import InputError
from tokendeep.records import Dynamics
from tokendeep.training import launch
from tokendeep.types import IGNORE, Decoding, Encoded, Pair, Prompt, Subject

DECODING = Decoding(temperature=0.9, top_p=0.6, max_new_tokens=20)  # the paper's sampling


class TokenDynamicsCallback(TrainerCallback):
    """Record per-token figures at `steps` of a training, and watch the refusal log-odds.

    Args:
        pairs: the probe: harmful instructions with harmful answers.
        tokenizer: of the model being trained, with its chat template.
        out: folder for dynamics.json.
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
        system: system prompt, as everywhere.
        batch_size: rows per forward pass.

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
        self.pairs, self.tokenizer, self.out = list(pairs), tokenizer, Path(out)
        self.steps, self.positions, self.with_gradients = {0, *steps}, positions, gradients
        self.sampled, self.aligned, self.asr, self.k = sampled, aligned, asr, sorted({0, *k})
        self.fall, self.on_fall, self.watch_every = fall, on_fall, watch_every
        self.system, self.batch_size = system, batch_size
        self.rows, self.lengths = self._encoded()
        self.openings = openings.opening_ids(tokenizer, openings.load_openings(None), 3)
        self.records: list[dict[str, Any]] = []
        self.fired: int | None = None
        self.start_states: list[Tensor] = []
        self.start_lm_head: Any = None
        self._norms: Any = None

    def _encoded(self) -> tuple[list[Encoded], list[int]]:
        rows, lengths = [], []
        for number, pair in enumerate(self.pairs, 1):
            messages = chat.with_system(pair.messages, self.system)
            try:
                row = chat.encode(self.tokenizer, messages, pair.response)
                lengths.append(len(chat.response_ids(self.tokenizer, messages, pair.response, end=False)))
            except InputError as error:
                raise InputError(f"Probe row {number}: {error}") from error
            if lengths[-1] < 3:
                raise InputError(f"Probe row {number}: its answer has fewer than 3 tokens; leave it out.")
            end = row.start + max(self.positions, max(self.k) + 3)
            rows.append(Encoded(row.input_ids[:end], row.labels[:end]))
        longest = max(lengths)
        self.k = [k for k in self.k if k + 3 <= longest]
        return rows, [min(n, len(r.input_ids) - r.start) for n, r in zip(lengths, rows, strict=True)]

    # --- the training's events ---------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep what the aligned model says, and record step 0; a resumed training goes on with its records."""
        launch.check_whole("TokenDynamicsCallback", model)
        path = self.out / "dynamics.json"
        if state.global_step:
            if not path.exists():
                raise InputError(f"{path} of the start of this training is missing; train again from the start.")
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.records = [record for record in kept["steps"] if record["step"] <= state.global_step]
            fired = kept["meta"]["fired"]
            self.fired = fired if fired is not None and fired <= state.global_step else None
        with _evaluating(model):
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
            with _evaluating(model):
                self._watch(float(np.nanmedian(self._log_odds(model, [0])[:, 0])), step, control)

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

    def _subject(self, model: Any) -> Subject:
        return Subject(model, self.tokenizer, "training")

    def _keep_start(self, model: Any, resumed: bool) -> None:
        """The aligned model's states on the probe, and its head."""
        from safetensors.torch import load_file, save_file

        kept = self.out / "dynamics-start.safetensors"
        lm = lm_head.causal_lm(model)
        lengths = [min(len(row.input_ids) - row.start, self.positions) for row in self.rows]
        if resumed:
            if not kept.exists():
                raise InputError(f"{kept} of the start of this training is missing; train again from the start.")
            tensors = load_file(kept)
            self.start_states, self.start_lm_head = (
                list(tensors.pop("states").split(lengths)),
                lm_head.frozen_lm_head(lm),
            )
            self.start_lm_head.get_output_embeddings().load_state_dict(tensors)
            return
        self.start_states, self.start_lm_head = self._states(model, self.rows), lm_head.frozen_lm_head(lm)
        if not runs.is_main_process():
            return
        runs.private_dir(self.out)
        weights = {
            name: value.contiguous() for name, value in self.start_lm_head.get_output_embeddings().state_dict().items()
        }
        save_file({"states": torch.cat(self.start_states), **weights}, kept)

    def _states(self, model: Any, rows: Sequence[Encoded]) -> list[Tensor]:
        """Final states at answer positions, (min(R, positions), H) per row."""
        found = []
        for row in rows:
            ids = torch.tensor([row.input_ids], device=_device(model))
            with torch.no_grad():
                states = lm_head.hidden_states(model, ids)[0, row.start - 1 : -1]
            found.append(states[: self.positions].cpu())
        return found

    def _record(self, model: Any, step: int) -> None:
        if any(record["step"] == step for record in self.records):
            return
        with _evaluating(model):
            record = {"step": step, "cross_entropy": _by_position(self._cross_entropy(model)), "kl": self._kl(model)}
            if self.with_gradients:
                self._norms = self._norms or gradients.exact_gradient_norms(model, self.rows, self.positions)
                record["gradient_norm"] = _by_position(self._norms(model, self.rows, self.positions))
            log_odds = self._log_odds(model, self.k)
            known = np.isfinite(log_odds)
            record["log_odds"] = {
                "k": self.k,
                "median": [float(np.median(c[k])) for c, k in zip(log_odds.T, known.T, strict=True)],
                "positive": (((log_odds > 0) & known).sum(0) / known.sum(0)).tolist(),
            }
            if self.sampled:
                record["kl_sampled"] = self._sampled_kl(model)
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

    def _cross_entropy(self, model: Any) -> list[Tensor]:
        found = []
        for row, states in zip(self.rows, self._states(model, self.rows), strict=True):
            targets = torch.tensor(row.input_ids[row.start : row.start + len(states)], device=_device(model))
            with torch.no_grad():
                found.append(-lm_head.label_logps(model, states.to(targets.device), targets).cpu())
        return found

    def _kl(self, model: Any) -> dict[str, list[float]]:
        """D_KL(trained || aligned) on the probe."""
        ours = self._states(model, self.rows)
        return _by_position(
            [_kl(model, a, self.start_lm_head, b) for a, b in zip(ours, self.start_states, strict=True)]
        )

    def _sampled_kl(self, model: Any) -> dict[str, list[float]]:
        """D_KL(trained || aligned) on answers that the model being trained samples now."""
        prompts = [
            chat.prompt_ids(self.tokenizer, chat.with_system(p.messages, self.system))
            for p in self.pairs[: self.sampled]
        ]
        requests = [Request(tuple(ids), DECODING) for ids in prompts]
        answers = generation.generate(self._subject(model), requests, batch_size=self.batch_size)
        rows = [
            Encoded([*ids, *answer.ids], [IGNORE] * len(ids) + list(answer.ids))
            for ids, answer in zip(prompts, answers, strict=True)
            if answer.ids
        ]
        ours = self._states(model, rows)
        theirs = self._states(self.aligned, rows)
        return _by_position([_kl(model, a, self.aligned, b) for a, b in zip(ours, theirs, strict=True)])

    def _log_odds(self, model: Any, ks: Sequence[int]) -> Any:
        return recovery.recovery_log_odds(self._subject(model), self.rows, self.openings, ks, self.lengths)

    def _write(self) -> None:
        if not runs.is_main_process():
            return
        meta = {"pairs": len(self.pairs), "positions": self.positions, "fall": self.fall, "fired": self.fired}
        record = Dynamics.model_validate({"meta": meta, "steps": self.records})
        runs.write_json(self.out / Dynamics.FILE, record.dump())


class NotRefused:
    """The share of harmful instructions that a model in training does not refuse, greedily, by the offline judge.

    Args:
        prompts: the instructions.
        tokenizer: of the model, with its chat template.
        system: system prompt, as everywhere.
        max_new_tokens: length limit of an answer.
        batch_size: answers written together.
    """

    def __init__(
        self, prompts: Sequence[Prompt], tokenizer: Any, *, system: str = "default", max_new_tokens: int = 64,
        batch_size: int = 32,
    ) -> None:  # fmt: skip
        decoding = Decoding(max_new_tokens=max_new_tokens)
        asked = [chat.prompt_ids(tokenizer, chat.with_system(p.messages, system)) for p in prompts]
        self.requests = [Request(tuple(ids), decoding) for ids in asked]
        self.tokenizer, self.batch_size = tokenizer, batch_size

    def __call__(self, model: Any) -> dict[str, Any]:
        """`asr` (None where no answer could be judged), and how many of those asked were judged."""
        answers = generation.generate(
            Subject(model, self.tokenizer, "training"), self.requests, batch_size=self.batch_size
        )
        verdicts = [judges.judge_refusal(answer.text, truncated=answer.truncated).outcome for answer in answers]
        scored = [verdict == "complied" for verdict in verdicts if verdict in judges.SCORED]
        rate = sum(scored) / len(scored) if scored else None
        return {"asr": rate, "asr_judged": len(scored), "asr_asked": len(verdicts)}


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Within it dropout is off; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _device(model: Any) -> torch.device:
    return lm_head.causal_lm(model).get_input_embeddings().weight.device


@torch.no_grad()
def _kl(model: Any, ours: Tensor, other: Any, theirs: Tensor) -> Tensor:
    """D_KL(model || other) (R,) in nats, from final states (R, H)."""
    device = _device(model)
    p = lm_head.project(model, ours.to(device)).log_softmax(-1)
    q = lm_head.project(other, theirs.to(_device(other))).log_softmax(-1).to(device)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0).cpu()


def _by_position(values: Sequence[Tensor]) -> dict[str, list[float]]:
    """Mean and number of rows at every position; rows may differ in length."""
    table = kl.to_table(values, max(len(v) for v in values))
    return {"mean": np.nanmean(table, 0).tolist(), "n": np.isfinite(table).sum(0).tolist()}
