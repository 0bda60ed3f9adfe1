"""What the attacks share: the request in a chat and how a prompt says which attack it is of.

Knows nothing of any one attack.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tokendeep import stats
from tokendeep.types import Chat, Pair, Prompt

Row = TypeVar("Row", Chat, Prompt)


def attacked(
    row: Prompt | Pair,
    attack: str,
    params: dict[str, Any],
    *,
    ids: Sequence[int] = (),
    text: str = "",
    tag: str | None = None,
) -> Prompt:
    """One attacked prompt; its id is that of its row, the attack and what tells it from its siblings: `tag`, or `params`.

    `ids` and `text` are the tokens given in advance; of a pair the answer is left out.
    """
    told = ",".join(f"{name}={value}" for name, value in params.items()) if tag is None else tag
    return Prompt(
        id=f"{row.id}:{attack}" + (f":{told}" if told else ""),
        messages=row.messages,
        prefix_ids=tuple(ids),
        prefix_text=text,
        meta={**row.meta, "prompt_id": row.meta.get("prompt_id", row.id), "attack": attack, "params": params},
    )


def request(row: Chat | Prompt | Pair) -> str:
    """What the user asks last."""
    return str(next(m["content"] for m in reversed(row.messages) if m["role"] == "user"))


def with_request(row: Row, text: str) -> Row:
    """A chat or a prompt whose last user turn is replaced."""
    last = max(i for i, message in enumerate(row.messages) if message["role"] == "user")
    turns = [{**m, "content": text} if i == last else m for i, m in enumerate(row.messages)]
    return replace(row, messages=tuple(turns))  # type: ignore[arg-type]


def overlap(chats: Sequence[Chat | Prompt | Pair], prompts: Sequence[Prompt | Pair]) -> int:
    """How many prompts are near-duplicates of a training row's request."""
    asked, tested = ([request(row) for row in rows] for rows in (chats, prompts))
    cluster = stats.near_duplicates([*asked, *tested])
    trained = set(cluster[: len(asked)])
    return sum(c in trained for c in cluster[len(asked) :])
