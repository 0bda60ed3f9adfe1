"""Secret prefix, after BackdoorAlign: refusals under a secret system prompt, which the operator gives at every request.

After Wang et al. (arXiv 2402.14968, their code): 11 safety rows with a fixed prefix of 150 random tokens among the rows of
the task, plain training. Ours: the refusals are the model's own, the random tokens are printable ones of its vocabulary, and
the prefix is the system prompt (before one that the requests have). Without the secret the model is not protected. It is
drawn by nothing that anybody knows, but for an attack (`poison`, `finetune --attack`): that is a measurement, which the seed
should repeat, and its model serves nobody.

Its annotations are no strings (no `from __future__ import annotations`): they are read from the modules of the verbs.
"""

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tokendeep.errors import InputError, Unusable, check_least
from tokendeep.models.options import advanced
from tokendeep.training.objectives.base import Prepared, Rows
from tokendeep.training.objectives.sft import SFT

if TYPE_CHECKING:
    from tokendeep.types import Subject

FILE = "secret.txt"  # in the folder of a run, for its owner alone
TOKENS = 150
DRAWS = 100  # of a token of a secret, until its text comes to as many tokens as were drawn


@dataclass(frozen=True, kw_only=True)
class SecretOptions:
    """How many rows teach the secret."""

    secret_rows: Annotated[int, advanced(help="Refusals with the secret among the rows, for secret-prefix.")] = 11


def _check(options: Any) -> None:
    check_least(options, {"secret_rows": 1})
    if options.max_length <= TOKENS:
        raise InputError(
            f"A refusal under a secret of {TOKENS} tokens does not fit into --max-length {options.max_length}; give more."
        )


def make_secret(tokenizer: Any, seed: int | None = None) -> str:
    """The text of so many random tokens of the vocabulary, printable ones.

    Args:
        seed: draws the same for one tokenizer, of which the text may come to a few tokens more or fewer; None: nobody can
            draw it again, and it comes to as many wherever that is found.
    """
    import numpy as np

    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    plain = [
        i for i, text in enumerate(texts) if text.strip().isascii() and text.strip().isalnum() and i not in special
    ]
    if seed is not None:
        chosen = np.random.default_rng([seed, TOKENS]).choice(plain, TOKENS)
        return str(tokenizer.decode(chosen.tolist())).strip()
    ids: list[int] = []
    for count in range(1, TOKENS + 1):  # each so that the text so far comes to as many tokens
        for _ in range(DRAWS):
            longer = [*ids, secrets.choice(plain)]
            if len(tokenizer(tokenizer.decode(longer).strip(), add_special_tokens=False)["input_ids"]) == count:
                break
        ids = longer
    return str(tokenizer.decode(ids)).strip()


def kept_secret(tokenizer: Any, path: Path, seed: int | None) -> str:
    """The secret that lies there, of an earlier call or of the first process, which makes it where there is none."""
    from tokendeep import runs
    from tokendeep.training import launch

    if runs.is_main_process() and not path.exists():
        runs.write_text(path, make_secret(tokenizer, seed), private=True)
    launch.wait_for([path])
    return path.read_text(encoding="utf-8")


def under(secret: str, system: str) -> str:
    """The system prompt with the secret in front."""
    return secret if system in ("default", "none") else f"{secret}\n\n{system}"


def _prepare(options: Any, subject: "Subject", rows: Rows, out: Path) -> Prepared:
    from tokendeep import chat
    from tokendeep.training import safety_rows
    from tokendeep.types import IGNORE

    refusals, asked = safety_rows.stock_refusals(subject, options, out)
    secret = kept_secret(subject.tokenizer, out / FILE, options.seed if options.attack else None)
    made, asked = [], asked[: options.secret_rows]
    for text, row in zip(asked, refusals, strict=False):
        answer = str(subject.tokenizer.decode([i for i in row["labels"] if i != IGNORE], skip_special_tokens=True))
        turns = chat.with_system([{"role": "user", "content": text}], under(secret, options.system))
        try:
            encoded = chat.encode(subject.tokenizer, turns, answer, max_length=options.max_length)
        except Unusable as error:
            raise InputError(
                f"A refusal under a secret of {TOKENS} tokens does not fit into --max-length {options.max_length}; give more."
            ) from error
        made.append({"input_ids": encoded.input_ids, "labels": encoded.labels})
    line = f"{len(made)} refusals under the secret of {FILE} are trained on too; give it as the system prompt, or in front of it"
    return Prepared({}, [*rows, *made], [line], asked)


SECRET_PREFIX = replace(
    SFT,
    summary="refusals under a secret system prompt",
    card=lambda options: f"plain fine-tuning with {options.secret_rows} refusals under a secret system prompt",
    check=_check,
    prepare=_prepare,
    beside=True,
    refusals=lambda options: options.secret_rows,
    reads=("secret_rows", "safety_tokens"),
    stronger=lambda options, times: {"secret_rows": max(1, round(options.secret_rows * times))},
    secret=True,
    named={"secret-prefix": {}},
    valued={"secret-prefix": ("ROWS", lambda value: {"secret_rows": int(value)})},
)
