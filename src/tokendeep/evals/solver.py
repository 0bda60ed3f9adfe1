"""The solver of every task: put the prefill in place, and ask.

Knows nothing of attacks but what a sample's metadata says.
"""

import json
from collections.abc import Mapping
from typing import Any

from inspect_ai.model import ChatMessageAssistant, Model, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from tokendeep import runs
from tokendeep.attacks import ATTACKS
from tokendeep.errors import InputError
from tokendeep.evals import served, session
from tokendeep.evals.provider import TokendeepAPI, prefill_route
from tokendeep.evals.session import Session


@solver
def prefixed(seed: int = 0, continues: bool = False) -> Solver:
    """Put the prefill in place as a final assistant message and let the model go on from it.

    Sample e of a prompt uses seed + e - 1. A seed given to Inspect itself (--seed) comes before the task's.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model, ours = get_model(), session.current()
        first = seed if model.config.seed is None else model.config.seed
        drawn = first + state.epoch - 1
        chosen = state.metadata.get("decoding") or {}  # a sample's own setting comes before the task's
        if chosen:
            drawn = seed_of(str(state.metadata["params"][ATTACKS[state.metadata["attack"]].group]), drawn)
        settings = {"seed": drawn, **chosen}
        if not isinstance(model.api, TokendeepAPI):
            served.tell_of_system(model, state.messages)
        try:
            echoes = await _put_prefix(state, model, continues)
            answered = await _answer(state, generate, settings, ours)
            if ours is not None and ours.interrupted:  # one sample that fails ends its task
                raise InputError("The run was interrupted.")
            if echoes:
                answered.output.completion = served.without_echo(
                    answered.output.completion, state.metadata["prefix_text"]
                )
            return answered
        except Exception as error:
            row = state.metadata["prompt_id"]
            if isinstance(error, InputError):  # a prompt too long or bad logits, say: name the row
                error = InputError(f"Row {row}: {error}")
            if ours is not None:
                ours.fail(_failure(error, model, row))
            raise error

    return solve


async def _put_prefix(state: TaskState, model: Model, continues: bool) -> bool:
    """Put the prefill in place; whether the model will send it back."""
    ids, text = state.metadata["prefix_ids"], state.metadata["prefix_text"]
    thinking = bool(state.metadata.get("thinking"))
    if not (text or ids or thinking):
        return False
    how = {"prefix_ids": ids, "thinking": thinking}
    state.messages.append(ChatMessageAssistant(content=text, metadata=how))
    return prefill_route(model, continues) == "text" and await served.habit(model, continues) == "echoes"


async def _answer(state: TaskState, generate: Generate, settings: Mapping[str, Any], ours: Session | None) -> TaskState:
    """The model's answer; what a run has asked already (k = 0 of prefill is the plain request) is not asked again."""
    if ours is None:
        return await generate(state, **settings)
    key = json.dumps([[(m.role, m.text, m.metadata) for m in state.messages], settings], default=str)
    if once := ours.answers.get(key):
        await once.ready.wait()
        if once.output is not None:
            state.output = once.output.model_copy(deep=True)
            state.messages.append(state.output.message)
            return state
    once = ours.answers[key] = session.Once()
    try:
        answered = await generate(state, **settings)
        once.output = answered.output.model_copy(deep=True)
        return answered
    finally:
        once.ready.set()


def seed_of(setting: str, seed: int) -> int:
    """The seed of one setting's draws: no two settings share them, so each is a trial of its own."""
    return runs.seed(f"{setting}|{seed}")


def _failure(error: Exception, model: Model, row: str) -> Exception:
    """What the user is told: of a server's error the class alone, for its message can quote the prompt."""
    if isinstance(error, InputError) or isinstance(model.api, TokendeepAPI):
        return error
    return InputError(f"Row {row}: {served.failure(model, error)}: {served.REMEDY}.")
