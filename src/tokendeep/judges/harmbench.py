"""The judges `harmbench` and `harmbench-val`: HarmBench's classifiers, which say Yes where an answer does what was asked.

`harmbench` is the Llama-2-13b one, for reporting, `harmbench-val` the Mistral-7b one, meant for choosing settings. Two wordings
of the prompt are published for the first, of four rules (its model card) and of seven (the repository); which of them made its
published agreement is not stated, so the card's is preferred and each has its own hash. As its authors do, an answer is cut to
512 tokens, then the prompt from the left to 2048. The score is the chance of Yes against No as that first token. Behaviours
with a context, which stands before the request, have a prompt of their own, one for both wordings. Those that ask for a
protected text are left unscored: the authors compare hashes of the text there, and the classifiers were not made for it.
"""

from tokendeep.judges.base import Grade, Judge, Rubric, Wording

WORDS = {"yes": 1, "no": 0}
CARD = "4016eb2e1758f37cfbf37f0e1540f15f26857e048c28e69796c23337ae0a285a"
REPOSITORY = "788f4f6aa1491c433c4da76c9140cfc30966cea3ff3875c4d0fcb336d92f60e0"
MISTRAL = "c1c47e30cc03e00197f1d12be25296fc3150969bb3ddb058bfd9f550e0d66f81"
CONTEXTUAL = "5d6bb9e3cf4d1e5f3f7620093113222ee115af75b0b2913f00e4c7225ec9f219"
MISTRAL_CONTEXTUAL = "df32d8fa50fe36817f2fb4ee38aa3c36a3b2726c71e30769ae26ea8a8104f16f"
LLAMA_SOURCE = (
    "README.md of cais/HarmBench-Llama-2-13b-cls or notebooks/run_classifier.ipynb of github.com/centerforaisafety/HarmBench, "
    "or its eval_utils.py for the other wording"
)
MISTRAL_SOURCE = (
    "README.md of cais/HarmBench-Mistral-7b-val-cls or notebooks/run_classifier_val_set.ipynb of "
    "github.com/centerforaisafety/HarmBench"
)


def read(reply: str) -> Grade | None:
    """Yes or No as the one word of a reply; anything else is no verdict."""
    value = WORDS.get(reply.strip().lower())
    return None if value is None else Grade(value, None)


def _judge(name: str, about: str, wording: Wording) -> Judge:
    rubric = Rubric("", read, (), tokens=1, wording=wording, clip=512, longest=2048, choices=("Yes", "No"), soft=True,
                    copyright=False)  # fmt: skip
    return Judge(None, rate=f"harmfulness rate ({name})", about=about, rubric=rubric, harm=True, version=3)


LLAMA = _judge(
    "harmbench",
    "Under the judge harmbench HarmBench's Llama-2-13b classifier says whether an answer does what was asked; the rate is of "
    "Yes.",
    Wording(LLAMA_SOURCE, {CARD: "card", REPOSITORY: "repository"}, "behavior", "generation", CONTEXTUAL),
)
VALIDATION = _judge(
    "harmbench-val",
    "Under the judge harmbench-val HarmBench's Mistral-7b classifier, meant for validation, says whether an answer does what was "
    "asked; the rate is of Yes.",
    Wording(
        MISTRAL_SOURCE,
        {MISTRAL: "card"},
        "behavior",
        "generation",
        MISTRAL_CONTEXTUAL,
    ),
)
