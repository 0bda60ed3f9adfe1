"""Per-token gradient norms: the norm of the gradient of -log pi(y_t | x, y_<t) for every t, without one backward per token.

Method. An answer of T tokens becomes T rows, row t cut behind y_t and supervising y_t alone (nothing to the right of a
token matters to it). One forward and one backward pass over these rows, with all weights frozen, gives the gradients of
the activations; the weights' own gradients are never formed. A linear layer's gradient for one row is G^T A, with A (S,
in) its inputs and G (S, out) the gradients of its outputs, and its squared norm is the sum of (A A^T) * (G G^T), two
(S, S) matrices (Goodfellow 2015; "ghost norm", Li et al. 2022). An embedding is the same with A A^T replaced by "is the
same token". Where lm_head and embedding share their weights the cross term is added. Any other module with weights (norms)
is small, and its gradient is formed row by row. Tested against one backward pass per token.

Weights whose gradient none of these counts (a position table, an adapter on the embedding, experts) are refused, never
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokendeep.compute import lm_head
from tokendeep.errors import InputError
from tokendeep.models.adapters import same_trainable
from tokendeep.types import IGNORE, Encoded

FOUR_BITS = {"Linear4bit", "LinearFP4", "LinearNF4"}  # classes of bitsandbytes


def check_differentiable(model: nn.Module) -> None:
    """Refuse 4-bit weights on a CPU. Raises InputError.

    bitsandbytes repacks them for its CPU kernels when such a layer runs in eval mode, as it does wherever something is
    measured, and its backward pass then reads the repacked bytes as if they were the old ones.
    """
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kinds & FOUR_BITS and any(weights.device.type == "cpu" for weights in module.parameters()):
            raise InputError(
                "The model has 4-bit weights on a CPU, where bitsandbytes gives wrong gradients once the model has been in "
                "eval mode, as it is wherever something is measured; use a GPU, or load it without quantisation."
            )


def token_gradient_norms(
    model: nn.Module, rows: Sequence[Encoded], positions: int, *, batch_size: int = 16
) -> list[Tensor]:
    """Norm of the gradient of each token's cross-entropy over the weights that train (all, where none is frozen).

    Args:
        rows: encoded answers; the first `positions` supervised tokens of each are looked at.
        batch_size: token rows per pass.

    Returns:
        one float32 (min(R, positions),) per row.

    Raises:
        InputError: nothing is trained, a module with weights runs more than once in a pass or is called by keywords alone,
            or trained weights lie where this method does not count them: use `plain_gradient_norms`.
    """
    check_differentiable(model)
    training, lm = model.training, lm_head.causal_lm(model)
    model.eval()
    cut = [(number, row.input_ids[: at + 1]) for number, row in enumerate(rows) for at in _places(row, positions)]
    order = sorted(range(len(cut)), key=lambda i: len(cut[i][1]))
    norms = torch.zeros(len(cut))
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            norms[batch] = _norms(lm, [cut[i][1] for i in batch]).sqrt().float().cpu()
    finally:
        model.train(training)
    by_row: list[list[float]] = [[] for _ in rows]
    for (number, _), norm in zip(cut, norms.tolist(), strict=True):
        by_row[number].append(norm)
    return [torch.tensor(values) for values in by_row]


def plain_gradient_norms(model: nn.Module, rows: Sequence[Encoded], positions: int) -> list[Tensor]:
    """The same by one backward pass per token: what the method above is checked against."""
    check_differentiable(model)
    weights = [p for p in model.parameters() if p.requires_grad]

    def norm(tokens: list[int]) -> float:
        ids = torch.tensor([tokens], device=weights[0].device)
        loss = F.cross_entropy(model(input_ids=ids, use_cache=False).logits[0, -2].float(), ids[0, -1])
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
        return torch.stack([g.double().square().sum() for g in grads if g is not None]).sum().sqrt().item()

    return [torch.tensor([norm(row.input_ids[: at + 1]) for at in _places(row, positions)]) for row in rows]


def _places(row: Encoded, positions: int) -> list[int]:
    return [i for i, label in enumerate(row.labels) if label != IGNORE and i > 0][:positions]


def _norms(lm: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Squared gradient norms (B,) of the last token of every row."""
    ids = lm_head.padded(lm, rows)  # (B, S)
    ends, numbers = (
        torch.tensor([len(row) for row in rows], device=ids.device),
        torch.arange(len(rows), device=ids.device),
    )
    with _Recorder(lm, ids).attached() as recorder, torch.enable_grad():
        states = lm_head.hidden_states(lm, ids)  # (B, S, H)
        last = states[numbers, ends - 2]  # (B, H): they predict the last tokens
        logps = lm_head.project(lm, last).log_softmax(-1)
        loss = -logps[numbers, ids[numbers, ends - 1]]
        torch.autograd.grad(loss.sum(), recorder.start)
    return recorder.total()


def exact_gradient_norms(model: nn.Module, rows: Sequence[Encoded], positions: int) -> Callable[..., list[Tensor]]:
    """The quick method where it agrees with one backward pass on the first token of the first row, else the plain one.

    Says so where it is the plain one.
    """
    first = [Encoded(rows[0].input_ids, rows[0].labels)]
    plain = plain_gradient_norms(model, first, 1)[0]
    try:
        quick = token_gradient_norms(model, first, 1)[0]
        if torch.allclose(quick, plain, rtol=0.02):
            return token_gradient_norms
        why = f"{quick.item():.4g} instead of {plain.item():.4g} on one token"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a module does that the quick way has not thought of
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
    print(
        f"tokendeep: gradient norms take one backward pass per token with this model, for the quick way fails ({why})"
    )
    return plain_gradient_norms


class _Recorder:
    """Hooks on every module with trained weights; what they see becomes squared norms per row."""

    def __init__(self, lm: Any, ids: Tensor) -> None:
        self.lm, self.ids = lm, ids
        self.squares = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
        self.replaying = False  # a module is run again for its own gradient
        self.start: Tensor = torch.empty(0)
        self.embedding, self.output = lm.get_input_embeddings(), lm.get_output_embeddings()
        self.trained = {id(p) for p in lm.parameters() if p.requires_grad}
        if not self.trained:
            raise InputError("No weight is trained, so there is no gradient to measure.")
        self.tied = self.output is not None and self.output.weight is self.embedding.weight
        self.seen: set[int] = set()
        self.lm_head_parts: tuple[Tensor, Tensor] | None = None
        self.embedding_grad: Tensor | None = None
        self.counted: set[int] = set()  # weights whose gradient is in the squares
        self.scale = float(getattr(self.embedding, "scalar_embed_scale", 1.0))  # Gemma's embedding multiplies its rows

    @contextmanager
    def attached(self) -> Iterator[_Recorder]:
        """Hooks in place and every weight frozen, so that no weight gradient is formed."""
        hooks = []
        for module in self.lm.modules():
            counted = any(id(p) in self.trained for p in module.parameters(recurse=False))
            if counted or module is self.embedding:
                hooks.append(module.register_forward_hook(self._hook(module, counted)))
        try:
            with same_trainable(self.lm):
                self.lm.requires_grad_(False)
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, module: nn.Module, counted: bool) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self.replaying:
                return output
            if module is self.embedding:
                output = output.detach().requires_grad_()
                self.start = output
            if counted:
                if not args:
                    raise InputError(f"a {type(module).__name__} with weights of its own is called by keywords alone")
                self._watch(module, args[0], output[0] if isinstance(output, tuple) else output)
            return output

        return hook

    def _watch(self, module: nn.Module, inputs: Tensor, output: Tensor) -> None:
        """Have the gradient of a module's output added once the backward pass comes by."""
        if id(module) in self.seen:
            raise InputError(
                f"A {type(module).__name__} runs twice in one pass, so its gradient per token cannot be told apart."
            )
        self.seen.add(id(module))
        if output.requires_grad:
            given = inputs.detach()
            output.register_hook(lambda gradient: self._add(module, given, gradient.detach()))

    def _add(self, module: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        """Count one module's weights, from its inputs and the gradients of its outputs."""
        as_positions = gradient.shape[0] == 1 and len(self.ids) > 1  # the lm_head sees rows as positions: (1, B, H)
        if gradient.shape[1 if as_positions else 0] != len(self.ids):
            return  # shared by all rows, such as a table of positions
        if as_positions and not isinstance(module, nn.Linear):
            return
        self.counted |= {id(p) for p in module.parameters(recurse=False)}
        if module is self.embedding:
            self._add_embedding(module, gradient * self.scale)
        elif module is self.output or as_positions:
            self._add_lm_head(module, inputs[0], gradient[0])
        elif isinstance(module, nn.Linear):
            self._add_linear(module, inputs, gradient)
        else:
            self._add_small(module, inputs, gradient)

    def _add_embedding(self, module: Any, gradient: Tensor) -> None:
        if module.padding_idx is not None:  # PyTorch gives that row no gradient
            gradient = gradient * (self.ids != module.padding_idx)[..., None]
        same = self.ids[:, :, None] == self.ids[:, None, :]  # (B, S, S)
        self.squares += (same * (gradient @ gradient.mT)).sum((1, 2)).double()
        self.embedding_grad = gradient

    def _add_lm_head(self, module: nn.Module, states: Tensor, grads: Tensor) -> None:
        """`states` (B, H) and `grads` (B, V): one position a row."""
        self.squares += states.double().square().sum(-1) * grads.double().square().sum(-1)
        self.lm_head_parts = (states, grads)
        if getattr(module, "bias", None) is not None and id(module.bias) in self.trained:
            self.squares += grads.double().square().sum(-1)

    def _add_linear(self, module: nn.Linear, inputs: Tensor, gradient: Tensor) -> None:
        if id(module.weight) in self.trained:
            self.squares += ((inputs @ inputs.mT) * (gradient @ gradient.mT)).sum((1, 2)).double()
        if module.bias is not None and id(module.bias) in self.trained:
            self.squares += gradient.sum(1).double().square().sum(-1)

    def _add_small(self, module: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        """A module of another kind: its weights' gradients, formed for one row at a time."""
        names = [name for name, p in module.named_parameters(recurse=False) if id(p) in self.trained]
        self.replaying = True
        for row in range(len(inputs)):
            weights = {name: getattr(module, name).detach().clone().requires_grad_() for name in names}
            with torch.enable_grad():
                output = torch.func.functional_call(module, weights, (inputs[row : row + 1],))
                grads = torch.autograd.grad(output, list(weights.values()), gradient[row : row + 1])
            self.squares[row] += torch.stack([g.double().square().sum() for g in grads]).sum()
        self.replaying = False

    def total(self) -> Tensor:
        """Squared norms (B,), with twice the product of both gradients where lm_head and embedding are one.

        Raises:
            InputError: some trained weights were not counted.
        """
        if left := self.trained - self.counted:
            name = next(name for name, p in self.lm.named_parameters() if id(p) in left)
            raise InputError(f"The gradient of {name} is not counted by the quick way; take plain_gradient_norms.")
        if self.tied and self.lm_head_parts is not None and self.embedding_grad is not None:
            states, grads = self.lm_head_parts
            at_tokens = grads.gather(
                1, self.ids
            )  # (B, S): the lm_head's gradient in the row of each token of the input
            along = torch.einsum("bsh,bh->bs", self.embedding_grad, states)
            self.squares += 2 * (at_tokens * along).sum(-1).double()
        return self.squares
