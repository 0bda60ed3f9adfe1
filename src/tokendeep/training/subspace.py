"""What alignment changed in the weights, and how far a training leaves it: AsFT while training, SafeLoRA afterwards.

With V = W_aligned - W_base of a matrix and its change dW by the training, both apply C = V V^T / |V| to dW, which is no
projector: it divides by the norm and not by the singular values. dW is B A of an adapter (without its scale, as the authors
have it), W - W_start of a trained matrix. No matrix of d_out x d_out is ever built. Sources: AsFT, arXiv 2506.08473;
SafeLoRA, arXiv 2405.16833, and their code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokendeep import models
from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.training.referenced import ReferencedSFTTrainer
from tokendeep.types import Subject

Differences = Mapping[str, Tensor]  # V (d_out, d_in), float32, by the name of the linear layer


def differences(aligned: Subject, base: Subject, what: str) -> dict[str, Tensor]:
    """V of every linear layer of the decoder that alignment changed.

    Args:
        what: the option that asks for it, for messages.

    Raises:
        InputError: the model is an adapter already; the base is of another shape, or the same.
    """
    return dict(_differences(aligned, base, what))


def check_differences(aligned: Subject, base: Subject, what: str) -> None:
    """As `differences`, but keeps none of them."""
    for _ in _differences(aligned, base, what):
        pass


def _differences(aligned: Subject, base: Subject, what: str) -> Iterator[tuple[str, Tensor]]:
    if hasattr(aligned.model, "peft_config"):
        raise InputError(
            f"{what} compares the weights of a model with its base, but {aligned.name} is an adapter; merge it first."
        )
    models.check_same_vocabulary(aligned, base)
    theirs = {name: layer.weight for name, layer in _linears(base.model)}
    changed = False
    for name, layer in _linears(aligned.model):
        if name not in theirs or theirs[name].shape != layer.weight.shape:
            raise InputError(
                f"{base.name} has no {name} of the shape of {aligned.name}'s; give the model that it was aligned from."
            )
        base_weight = theirs[name].detach().to(layer.weight)  # in its number format, so that rounding is no change
        change = layer.weight.detach().float() - base_weight.float()
        if change.any():
            changed = True
            yield name, change
    if not changed:
        raise InputError(
            f"No linear layer of {aligned.name} differs from {base.name}; give the model before it was aligned."
        )


def _linears(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of the linear layers of the decoder, beneath an adapter too; the language-model head is none."""
    lm = lm_head.causal_lm(model)
    head = lm.get_output_embeddings()
    for name, module in lm.named_modules():
        plain = isinstance(module, nn.Linear) and not name.endswith("base_layer") and ".lora_" not in name
        if module is not head and (plain or hasattr(module, "lora_A")):
            yield name, module


@dataclass(frozen=True)
class Part:
    """The change of one matrix: `left` @ `right`, of which `left` (d_out, n) is what a projection changes.

    Args:
        alignment: V (d_out, d_in).
        weight: what is trained: B of an adapter, or the matrix itself.
        start: its values before training; None: nothing.
        right: A of an adapter (n, d_in); None: the identity.
    """

    name: str
    alignment: Tensor
    weight: Tensor
    start: Tensor | None = None
    right: Tensor | None = None

    def left(self) -> Tensor:
        weight = self.weight.float()
        return weight if self.start is None else weight - self.start

    def projected(self, left: Tensor) -> Tensor:
        """C times a matrix (d_out, n): two thin products."""
        along = self.alignment.to(left)
        return along @ (along.T @ left) / along.norm()

    def product(self, one: Tensor, two: Tensor) -> Tensor:
        """The inner product (Frobenius) of one @ right and two @ right, by products of n x n."""
        if self.right is None:
            return (one * two).sum()
        right = self.right.float()
        return ((one.T @ two) * (right @ right.T)).sum()

    def outside(self) -> Tensor:
        """|(I - C) dW|^2."""
        left = self.left()
        rest = left - self.projected(left)
        return self.product(rest, rest)


def parts(model: Any, alignment: Differences, starts: Mapping[str, Tensor] | None = None) -> list[Part]:
    """The trained matrices that alignment changed.

    Args:
        starts: values before training, of a model whose matrices are trained; None: those of now.

    Raises:
        InputError: none of them is trained.
    """
    found = []
    for name, module in _linears(model):
        if name not in alignment:
            continue
        if hasattr(module, "lora_A"):
            found += [
                Part(name, alignment[name], module.lora_B[key].weight, right=module.lora_A[key].weight)
                for key in module.lora_A
            ]
        elif module.weight.requires_grad:
            start = starts[name] if starts is not None else module.weight.detach().float().clone()
            found.append(Part(name, alignment[name], module.weight, start))
    if not found:
        raise InputError(
            "None of the linear layers that alignment changed is trained, so there is nothing to hold in them."
        )
    return found


class AsftTrainer(ReferencedSFTTrainer):
    """Plain training, and once a step `weight` times the sum over matrices of |(I - C) dW|^2 (AsFT).

    Args:
        alignment: V by the name of the layer.
        weight: lambda; 0 trains as without it.
        others: what ReferencedSFTTrainer takes.
    """

    METRICS = (*ReferencedSFTTrainer.METRICS, "outside")

    def __init__(
        self, model: Any, args: Any = None, *, alignment: Differences, weight: float = 1.0, **others: Any
    ) -> None:
        super().__init__(model, args, **others)
        self.weight = weight
        self._matrices = parts(self.model, alignment)
        self._due = False

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Trainer's; the penalty stands beside the first micro-batch of a step, for it is of the weights alone."""
        self._due = True
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """That of the rows, and on every process the penalty, whose gradients are averaged."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not (self._due and self.weight and self.model.training):
            return loss
        self._due = False
        with torch.autocast(self.accelerator.device.type, enabled=False):
            outside = torch.stack([part.outside() for part in self._matrices]).sum()
        self.meters["train"].add("outside", outside[None])
        beside = self.weight * outside
        self._finite.append((torch.isfinite(beside.detach()), None))
        return (loss[0] + beside, loss[1]) if return_outputs else loss + beside


class SafeLora:
    """Projects what a training changed where it strays from alignment, once it is over (SafeLoRA).

    A change dW becomes C dW where its cosine to C dW is at most a threshold, or in so many matrices whose cosine is lowest.
    Of trained matrices, which the paper has none of, W becomes W_start + C dW.

    Args:
        alignment: V by the name of the layer.
        model: before training.
        bound: below 1 the threshold, from 1 on the number of matrices.
        adapter: whether a new adapter is trained, so that nothing of the start need be kept.
    """

    def __init__(self, alignment: Differences, model: Any, bound: float, *, adapter: bool = False) -> None:
        self.alignment, self.bound = alignment, bound
        trained = {n: m.weight for n, m in _linears(model) if n in alignment and m.weight.requires_grad}
        self.starts = {} if adapter else {name: w.detach().float().clone() for name, w in trained.items()}
        self.lines: list[str] = []

    @torch.no_grad()
    def __call__(self, model: Any) -> None:
        found = parts(model, self.alignment, self.starts)
        cosines = [_cosine(part) for part in found]
        order = sorted(range(len(found)), key=lambda i: cosines[i])
        chosen = [i for i in order if cosines[i] <= self.bound] if self.bound < 1 else order[: int(self.bound)]
        for i in chosen:
            part = found[i]
            made = part.projected(part.left())
            part.weight.copy_(made if part.start is None else part.start + made)
        self.lines.append(
            f"safe-lora: {len(chosen)} of {len(found)} matrices are projected onto what alignment changed"
        )


def _cosine(part: Part) -> float:
    """The cosine of C dW to dW; 1 where nothing changed."""
    left = part.left()
    projected = part.projected(left)
    norms = math.sqrt(float(part.product(left, left)) * float(part.product(projected, projected)))
    return float(part.product(projected, left)) / norms if norms else 1.0
