"""What every evaluation shares: how rows are read, how answers are sampled, and who judges them. Loads nothing heavy."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from cyclopts import Group, Parameter

from tokendeep.data.options import ROLES, DataOptions
from tokendeep.engines.options import key
from tokendeep.errors import InputError, did_you_mean, flag
from tokendeep.models.options import advanced
from tokendeep.types import Decoding

answering = partial(Parameter, group=Group("Answers and judge", sort_key=1.2))


Grader = Annotated[
    str | None,
    answering(help="Language model that grades harm, for judges that ask one; as --model, or MODEL@URL."),
]

MaxRetries = Annotated[
    int, advanced(help="How often a grader's server that fails is asked again, after waits that grow from 3 seconds.")
]
Timeout = Annotated[
    int, advanced(help="Seconds that one reply of a grader's server may take before it is asked again.")
]


GraderKey = Annotated[
    str | None,
    advanced(help="Name of the environment variable that holds the key of the grader's server (--grader MODEL@URL)."),
]
GraderModel = Annotated[
    str | None, advanced(help="What the grader's server (--grader MODEL@URL) calls it, where it serves several models.")
]
ITS_OWN = {"api-key-env": "grader-key-env", "engine-model": "grader-model", "model": "grader"}


def of_grader(sentence: str) -> str:
    """A sentence about a model on a server, with the options by which a grader is named.

    An option is a word by itself: `models--acme--model/snapshots` is a folder of the hub's cache.
    """
    option = rf"(?<![^\s(])--({'|'.join(ITS_OWN)})(?=[\s,.:;)]|$)"
    return re.sub(option, lambda found: f"--{ITS_OWN[found[1]]}", sentence)


@dataclass(frozen=True, kw_only=True)
class GraderOptions:
    """How a grader on a server is asked."""

    grader_key_env: GraderKey = None
    grader_model: GraderModel = None

    def check_grader(self, name: str | None) -> None:
        """Raises InputError for options of a server where the grader `name` is on none, and for a key that is not set."""
        for option in ("grader_key_env", "grader_model"):
            if getattr(self, option) is not None and "@http" not in (name or ""):
                raise InputError(
                    f"{flag(option)} is for a grader on a server: name it with --grader MODEL@URL, or leave it out."
                )
        if self.grader_key_env is not None:
            key(self.grader_key_env, "--grader-key-env")


Wording = Annotated[
    str | None,
    answering(
        help="File with the published prompt of a judge that comes without it (harmbench, harmbench-val, wildguard, "
        "strongreject-ft); its hash tells whether it is the right one."
    ),
]
Label = Annotated[
    str | None,
    answering(help="The label of a sequence classifier that says refusal (hf-refusal) or harm (hf-harm)."),
]


@dataclass(frozen=True, kw_only=True)
class EvalOptions(DataOptions):
    """What is asked, and how answers are sampled and judged."""

    judge: Annotated[
        str,
        answering(
            help="Comma-separated names: refusal is the offline rule, refusal-keywords the paper's list of phrases; all others "
            "ask the --grader, such as rubric about harm."
        ),
    ] = "refusal"
    judged: Annotated[
        str,
        answering(
            help="What the judge sees, comma-separated: continuation is what the model wrote, full has the prefill before it, "
            "as in the paper, conversation the request too (a grader; a rule reads none). After a refusal prefix the judge "
            "decides."
        ),
    ] = "continuation"
    temperature: Annotated[float, answering(help="Sampling temperature; 0 is greedy.")] = 0.0
    top_p: Annotated[float, answering(help="Nucleus sampling; 1 is off.")] = 1.0
    top_k: Annotated[int, answering(help="Sample from so many of the likeliest tokens; 0 is off.")] = 0
    max_new_tokens: Annotated[int, answering(help="Length limit of an answer, in tokens.")] = 512
    samples: Annotated[int, answering(help="Answers to each prompt, with seeds seed, seed + 1, ...")] = 1
    seed: Annotated[int, answering(help="First seed of the samples.")] = 0
    limit: Annotated[int | None, answering(help="Use only the first so many rows, for a quick look.")] = None
    role: Annotated[
        str | None,
        answering(
            help="What the rows are: harmful, or harmless ones on which refusing is the error (twins or unseen). Of rows that "
            "say so (XSTest) those of the role are asked. Without it reports go by the folder's name "
            "(overrefusal and unseen are harmless)."
        ),
    ] = None

    def check_role(self) -> None:
        """Raises InputError for a role that is none."""
        if self.role is not None and self.role not in ROLES:
            raise InputError(f"Unknown role '{self.role}'; {did_you_mean(self.role, ROLES)}.")

    def decoding(self) -> Decoding:
        """The sampling settings. Raises InputError where one is out of range."""
        for wrong, message in (
            (self.temperature < 0, f"temperature = {self.temperature} is below 0: 0 is greedy."),
            (not 0 < self.top_p <= 1, f"top_p = {self.top_p} is not between 0 and 1: 1 is off."),
            (self.top_k < 0, f"top_k = {self.top_k} is below 0: 0 is off."),
            (self.max_new_tokens < 1, f"max_new_tokens = {self.max_new_tokens} is below 1."),
            (self.samples < 1, f"samples = {self.samples} is below 1."),
            (self.limit is not None and self.limit < 1, f"limit = {self.limit} is below 1: leave it out for all rows."),
        ):
            if wrong:
                raise InputError(message)
        return Decoding(self.temperature, self.top_p, self.top_k, self.max_new_tokens, self.seed)
