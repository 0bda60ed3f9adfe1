"""The attacks as Inspect tasks: `tokendeep/none`, `tokendeep/prefill` and so on, one for each of `ATTACKS`.

Knows how attacked prompts become samples and how a prefill reaches the model. All attacks share one solver and one way to
build a task; what an attack does to a prompt is in `tokendeep.attacks`. The arguments of a task are the options of its
attack and those that all share (`EvalOptions`), each written once, where it is an option.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, replace
from typing import Any, TypeVar

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset
from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
)
from inspect_ai.scorer import grouped, mean

from tokendeep import chat, data, runs
from tokendeep.attacks import ATTACKS
from tokendeep.attacks.base import Attack, Prepared, Rows
from tokendeep.errors import InputError
from tokendeep.evals.grading import grader_of
from tokendeep.evals.judging import KIND, Judging, name_of, unknown
from tokendeep.evals.judging import named as judgings_named
from tokendeep.evals.options import EvalOptions
from tokendeep.evals.privacy import keep_logs_private
from tokendeep.evals.provider import TokendeepAPI
from tokendeep.evals.scorers import SCORERS
from tokendeep.evals.sentences import one_sentence
from tokendeep.evals.session import current, current_model
from tokendeep.evals.solver import prefixed
from tokendeep.evals.victim import check_victim, victim
from tokendeep.types import Decoding, Pair, Prompt

Item = TypeVar("Item", Prompt, Pair)
LATER = ("columns", "role")  # arguments that came after the others
SERVED = {"tokenizer": None, "continues": False}  # of tasks that prefill: for models that run elsewhere


def arguments(attack: Attack[Any]) -> dict[str, Any]:
    """The arguments of an attack's task with their defaults, the data left out.

    Inspect knows a cut-off evaluation again by its arguments in their order, so the order stays.
    """
    shared = {field.name: _default(field) for field in fields(EvalOptions) if field.name not in attack.sets}
    later = {name: shared.pop(name) for name in LATER}
    more = {field.name: _default(field) for field in fields(attack.options)}
    judge = {name: shared.pop(name) for name in ("judge", "judged")}
    return {**more, **(SERVED if attack.prefills else {}), **judge, "system": "default", **shared, **later}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def as_task(attack: Attack[Any], name: str) -> Callable[..., Task]:
    """The attack as a task that Inspect knows by a name.

    Its signature is made of `arguments`, so that logs record every one of them. What else is given is refused.
    """
    known = arguments(attack)

    @one_sentence
    def made(data: str, **given: Any) -> Task:
        for word in given:
            if word not in known:
                raise InputError(unknown("argument", word, ("data", *known)))
        if current() is None:
            keep_logs_private()  # under `inspect eval`: they hold what was asked and answered
        return evaluation(attack, data, {**known, **given})

    kind = inspect.Parameter
    named = [kind(name, kind.KEYWORD_ONLY, default=value) for name, value in known.items()]
    made.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [kind("data", kind.POSITIONAL_OR_KEYWORD), *named, kind("others", kind.VAR_KEYWORD)]
    )
    made.__name__, made.__doc__ = name, f"The attack that {attack.does}."
    return task(name=name)(made)


def evaluation(attack: Attack[Any], source: str, given: Mapping[str, Any]) -> Task:
    """The task of one attack on the rows of `source`, from all its arguments.

    Raises:
        InputError: an argument out of range, rows that cannot be used, or a model that this attack is not for.
    """
    shared = EvalOptions(**{f.name: given[f.name] for f in fields(EvalOptions) if f.name in given})
    options = attack.options(**{f.name: given[f.name] for f in fields(attack.options)})
    session, continues = current(), bool(given.get("continues"))
    if session and attack.name in session.prepared:
        return build(attack, session.prepared[attack.name], shared, given["system"], session.digest, continues)
    attack.check(options)
    decoding, model = check_shared(shared), current_model()
    check_victim(attack, model)
    rows = read_rows(source, attack.needs, given["system"], shared)
    prepared = attack.prepare(rows, options, victim(model, given, decoding))
    return build(attack, prepared, shared, given["system"], runs.hash_input("data", data.identity(source)), continues)


def check_shared(shared: EvalOptions) -> Decoding:
    """How answers are sampled. Raises InputError for an unknown judge or view, or a sampling setting out of range."""
    judgings_named(shared.judge, shared.judged)
    shared.check_role()
    return shared.decoding()


def build(
    attack: Attack[Any], prepared: Prepared, shared: EvalOptions, system: str, digest: str, continues: bool = False
) -> Task:
    """One task from attacked prompts.

    Args:
        digest: the hash of the rows, which tells evaluations on different data apart.
        continues: the server is known to continue a final assistant message.
    """
    judgings, model = judgings_of(attack, shared), current_model()
    grader = grader_of(judgings)
    ours = model.api if isinstance(model.api, TokendeepAPI) else None
    return Task(
        dataset=MemoryDataset([_sample(prompt, attack) for prompt in prepared.prompts], name=attack.name),
        solver=prefixed(seed=shared.seed, continues=continues),
        scorer=[SCORERS[one.judge](one.judged) for one in judgings],
        metrics=[grouped(mean(), attack.group, all=False)] if attack.group else None,
        epochs=Epochs(shared.samples, ["mean", "max"] if shared.samples > 1 else "mean"),
        config=_config(shared.decoding(), ours.max_connections() if ours else None),
        metadata={
            "attack": attack.name,
            "judge": ",".join(dict.fromkeys(one.judge for one in judgings)),
            "judged": ",".join(dict.fromkeys(one.judged for one in judgings)),
            "judgings": [{"judge": one.judge, "judged": one.judged} | _words(one, grader) for one in judgings],
            "system": runs.system_name(system),
            "data": digest,
            "role": shared.role,
            "skipped": {str(k): count for k, count in prepared.skipped.items()},
            "model": ours.about() if ours else {"name": str(model)},
            **({"continues": True} if continues else {}),
            **({"defence": defence} if ours and (defence := ours.defence.defence_name()) else {}),
        },
    )


def _words(one: Judging, grader: Model | None) -> dict[str, str | None]:
    return {"template": one.by.template, **({"grader": name_of(grader)} if one.by.rubric else {})}


def judgings_of(attack: Attack[Any], shared: EvalOptions) -> list[Judging]:
    """Who judges the attack's answers; behind a refusal prefix each judge decides what it must see."""
    every = judgings_named(shared.judge, shared.judged)
    return list(dict.fromkeys(Judging(o.judge, o.by.behind_prefix) for o in every)) if attack.refuses else every


def prefills(task: Task) -> bool:
    """Whether a prompt of the task comes with the beginning of an answer."""
    return any((sample.metadata or {})["prefix_text"] for sample in task.dataset)


def _config(decoding: Decoding, connections: int | None) -> GenerateConfig:
    return GenerateConfig(
        temperature=decoding.temperature,
        top_p=decoding.top_p if decoding.top_p < 1 else None,  # an API may refuse a setting that is merely off
        top_k=decoding.top_k or None,
        max_tokens=decoding.max_new_tokens,
        seed=decoding.seed,
        max_connections=connections,
    )


# --- rows and samples ------------------------------------------------------------------------------


def read_rows(source: data.Source, needs: str, system: str, shared: EvalOptions) -> Rows:
    """The rows of a source that are of the role, read once and asked under a system prompt.

    Args:
        needs: pairs where each must have an answer.

    Raises:
        InputError: rows that cannot be used, or that say they are harmless where no role is given.
    """
    chosen = data.choose(source, shared.columns, data.role_of(shared.role))
    if needs != "pairs":
        prompts = [_asked(prompt, system) for prompt in data.read_prompts(chosen, limit=shared.limit)]
        return _one_role(Rows(prompts), shared.role, data.named(source))
    pairs = [_asked(pair, system) for pair in data.read_pairs(chosen, limit=shared.limit)]
    asked = [Prompt(p.id, p.messages, meta={**p.meta, "prompt_id": p.id}) for p in pairs]
    return _one_role(Rows(asked, pairs), shared.role, data.named(source))


def _one_role(rows: Rows, role: str | None, name: str) -> Rows:
    """The rows as they are. Raises InputError where the user must say which of them are meant."""
    harmless = sum(prompt.meta.get("harmless") is True for prompt in rows.prompts)
    if harmless and role is None:
        raise InputError(
            f"{harmless} of {len(rows.prompts)} rows of {name} say that they are harmless; choose with --role harmful, or with "
            "--role twins to see how often those are refused."
        )
    return rows


def _asked(item: Item, system: str) -> Item:
    return replace(item, messages=tuple(chat.with_system(list(item.messages), system)))


def _sample(prompt: Prompt, attack: Attack[Any]) -> InspectSample:
    roles = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    messages: list[ChatMessage] = [roles[message["role"]](content=message["content"]) for message in prompt.messages]
    return InspectSample(
        id=prompt.id,
        input=messages,
        metadata={
            "prompt_id": prompt.meta["prompt_id"],
            "attack": prompt.meta["attack"],
            "params": prompt.meta["params"],
            "category": prompt.meta.get("category"),
            **({"context": context} if (context := prompt.meta.get("context")) else {}),
            **({KIND: kind} if (kind := prompt.meta.get(KIND)) else {}),
            "prefix_ids": " ".join(map(str, prompt.prefix_ids)),  # a list would be copied number by number, often
            "prefix_text": prompt.prefix_text,
            **({"decoding": _sampling(prompt.decoding)} if attack.sets else {}),
            **prompt.meta["params"],
        },
    )


def _sampling(decoding: Decoding) -> dict[str, Any]:
    """What a sample changes of its task's sampling settings, in which top_p and top_k are off."""
    off = Decoding()
    chosen = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    return {name: value for name, value in chosen.items() if name == "temperature" or value != getattr(off, name)}


TASKS = {name: as_task(attack, name) for name, attack in ATTACKS.items()}
# The same under the names that Python could give them, which Inspect's users try as well.
OTHER_SPELLINGS = {
    other: as_task(ATTACKS[name], other) for name in ATTACKS if (other := name.replace("-", "_")) != name
}
