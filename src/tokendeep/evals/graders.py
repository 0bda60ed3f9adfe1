"""The model that grades, by what the user calls it: loaded here, on a server, elsewhere, or a classifier.

Knows nothing of what it is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inspect_ai.model import GenerateConfig, Model

from tokendeep import models
from tokendeep.engines.options import ANSWER, EngineOptions
from tokendeep.errors import InputError
from tokendeep.evals import grading, inputs, judging, running
from tokendeep.evals.classifier import open_classifier
from tokendeep.evals.judging import Judging
from tokendeep.evals.options import GraderOptions, of_grader
from tokendeep.evals.provider import NAME, SERVING, TokendeepAPI
from tokendeep.judges.base import Rubric
from tokendeep.models.options import ModelOptions
from tokendeep.types import Subject


def open_grader(
    name: str | None,
    every: Sequence[Judging],
    options: ModelOptions,
    batch_size: int,
    subject: Subject | None = None,
    *,
    place: GraderOptions = GraderOptions(),  # noqa: B008  (frozen)
    max_retries: int = 6,
    timeout: int = ANSWER,
) -> Model | None:
    """The model that grades, as `open_model`, or MODEL@URL for one on a server; None where no judge asks one.

    Args:
        place: the key and the name that its server wants.
        max_retries: how often its server is asked again.
        timeout: seconds that one reply of its server may take.

    Raises:
        InputError: a judge asks a model and none is named, or the other way round.
    """
    asking = grading.asking(every)
    if name is None and asking:
        raise InputError(f"The judge {asking[0]} asks a language model to grade; name one with --grader MODEL.")
    if name is not None and not asking:
        raise InputError(
            "--grader names a model, but no judge of --judge asks one; leave it out, or give --judge rubric."
        )
    place.check_grader(name)
    if name is None:
        return None
    judging.check_equipped(every)
    by = {one.judge: rubric for one in every if (rubric := one.by.rubric)}
    if any(rubric.labels for rubric in by.values()):
        return _classifier(name, by, options, batch_size)
    raw = [name for name, rubric in by.items() if rubric.wording]
    spec, at, rest = name.removeprefix(f"{NAME}/").partition("@http")
    if raw and (name.startswith(running.ELSEWHERE) or name.split("/")[0] in SERVING):
        raise InputError(
            f"The judge {raw[0]} gives its model token ids of its own, which {name.split('/')[0]} does not take: give --grader "
            "its folder or hub id, or MODEL@URL where a server has it."
        )
    where: dict[str, Any] = {"engine_model": place.grader_model, "api_key_env": place.grader_key_env}
    engine = EngineOptions(engine=f"http{rest}", answer_timeout=timeout, **where) if at else None
    own = ModelOptions(chat_template=options.chat_template) if engine else options
    needs_template = len(raw) < len(by)
    model = _opened(
        lambda: running.open_model(spec, own, batch_size, subject, None, engine, max_retries, needs_template)
    )
    if str(model).split("/")[0] in SERVING and (names := grading.by_turns(every)):
        raise InputError(
            f"The judge {names[0]} puts a finished answer, which {str(model).split('/')[0]} would continue; serve the model "
            "elsewhere and give --grader inspect/openai-api/SERVER/NAME, or its folder."
        )
    _check_words(by, model)
    if not isinstance(model.api, TokendeepAPI):  # Inspect would ask and wait for ever
        model.config = model.config.merge(GenerateConfig(max_retries=max_retries, attempt_timeout=timeout))
    return model


def _classifier(name: str, by: Mapping[str, Rubric], options: ModelOptions, batch_size: int) -> Model:
    """The sequence classifier that these judges ask."""
    if len({rubric.labels for rubric in by.values()}) > 1:
        raise InputError(f"--grader is one model, but {' and '.join(by)} ask different ones: call judge once for each.")
    [labels] = {rubric.labels for rubric in by.values()}
    return open_classifier(name, labels, options, batch_size)


def _check_words(by: Mapping[str, Rubric], model: Model) -> None:
    """Raises InputError for a grader of ours that is not there, or has another tokenizer than a judge expects."""
    api = model.api if isinstance(model.api, TokendeepAPI) else None
    if api and (
        any(r.choices or r.marks or r.asks for r in by.values())
        or (api.subject is None and models.on_hub(api.model_name))
    ):
        for name, rubric in by.items():  # the tokenizer is there only where the model is
            inputs.check_words(rubric, api.tokenizer, name, api.model_name)


def _opened(work: Callable[[], Model]) -> Model:
    """A grader, with its own options in the sentence where it cannot be had."""
    try:
        return work()
    except InputError as error:
        raise InputError(of_grader(str(error))) from error
