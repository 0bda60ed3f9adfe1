"""Rows on disk or on the Hugging Face hub -> Prompt, Pair, Triple, Chat.

Every mistake in a file is one InputError that names the file, the row and the fix, and never shows the row's text.
A row is named by its 1-based line (CSV: the line it starts on; JSON lists and hub sets: its place in the list).
Knows nothing of tokenizers and models. The data sets in `KNOWN` are read by explicit column maps, all others by the
names in `FIELDS`; no column is ever guessed or silently left out of a local file.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tokendeep import errors
from tokendeep.errors import InputError
from tokendeep.types import Chat, Message, Pair, Prompt, Triple

Kind = Literal["pairs", "triples", "chats", "prompts"]

MAX_ROW = 1_000_000  # bytes; a longer row is a broken file (or a book), and would only fail later in a tokenizer
SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
ROLES = ("system", "user", "assistant")
ALIASES = {"prompt": "instruction", "completion": "response"}
FIELDS = ("messages", "instruction", "prompt", "response", "completion", "harmful", "refusal", "id", "category", "meta")
SAYS_THE_SAME = {  # other people's names that no spelling distance would bring to ours
    "conversations": "messages", "conversation": "messages", "turns": "messages", "chat": "messages",
    "question": "instruction", "query": "instruction", "goal": "instruction", "behavior": "instruction",
    "request": "instruction", "user": "instruction", "text": "instruction", "input": "instruction",
    "answer": "response", "output": "response", "assistant": "response", "reply": "response", "target": "response",
    "rejected": "harmful", "chosen": "refusal", "label": "category", "metadata": "meta",
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A public data set: which of its columns is what. Columns named nowhere here are an error in a local file.

    `layout` puts a non-empty `context` column together with the instruction. `target` columns (an affirmative opening
    to optimise towards, no answer) stay in `meta`. `counts` maps "config/split" to the row counts seen so far.
    """

    name: str
    instruction: str
    response: str | None = None
    context: str | None = None
    layout: str = "{instruction}\n\n{context}"
    opening: str = ""
    category: str | None = None
    meta: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    repo: str = ""
    config: str | None = None
    split: str = "train"
    counts: Mapping[str, tuple[int, ...]] | None = None

    @property
    def required(self) -> set[str]:
        return {column for column in (self.instruction, self.response, self.category) if column}

    @property
    def columns(self) -> set[str]:
        return self.required | {*self.meta, *self.ignored, "id"} | ({self.context} if self.context else set())


HEX_PHI = Known("HEx-PHI", "prompt", category="category", repo="LLM-Tuning-Safety/HEx-PHI", counts={"": (300, 330)})
HEX_PHI_CATEGORIES = {
    1: "Illegal Activity", 2: "Child Abuse Content", 3: "Hate/Harass/Violence", 4: "Malware", 5: "Physical Harm",
    6: "Economic Harm", 7: "Fraud/Deception", 8: "Adult Content", 9: "Political Campaigning",
    10: "Privacy Violation Activity", 11: "Tailored Financial Advice",
}  # fmt: skip
ADVBENCH = Known("AdvBench", "prompt", meta=("target",), repo="walledai/AdvBench", counts={"/train": (520,)})
KNOWN = (
    HEX_PHI,
    ADVBENCH,
    Known("AdvBench", "goal", meta=("target",)),  # the authors' CSV
    Known("HarmBench", "prompt", context="context", layout="{context}\n\n---\n\n{instruction}", category="category",
          repo="walledai/HarmBench", config="standard",
          counts={"standard/train": (200,), "contextual/train": (100,), "copyright/train": (100,)}),
    Known("StrongREJECT", "prompt", category="category", repo="walledai/StrongREJECT", counts={"/train": (313,)}),
    Known("StrongREJECT", "forbidden_prompt", category="category", ignored=("source",)),  # the authors' CSV
    Known("JailbreakBench", "Goal", category="Category", meta=("Target",), ignored=("Behavior", "Source", "Index"),
          repo="JailbreakBench/JBB-Behaviors", config="behaviors", split="harmful",
          counts={"behaviors/harmful": (100,), "behaviors/benign": (100,)}),
    Known("MaliciousInstruct", "prompt", repo="walledai/MaliciousInstruct", counts={"/train": (100,)}),
    Known("XSTest", "prompt", category="type", meta=("label", "focus", "note"), repo="walledai/XSTest", split="test",
          counts={"/test": (450,)}),
    Known("OR-Bench", "prompt", category="category", repo="bench-llm/or-bench", config="or-bench-hard-1k",
          counts={"or-bench-hard-1k/train": (1319,)}),
    Known("SAMSum", "dialogue", response="summary", opening="Summarize this dialogue:\n\n", repo="knkarthick/samsum"),
    Known("SQL-create-context", "question", response="answer", context="context", repo="b-mc2/sql-create-context",
          counts={"/train": (78577,)}),
    Known("GSM8K", "question", response="answer", repo="openai/gsm8k", config="main",
          counts={"main/train": (7473,), "main/test": (1319,)}),
    Known("Alpaca", "instruction", response="output", context="input", ignored=("text",), repo="tatsu-lab/alpaca"),
)  # fmt: skip
HEADERLESS = re.compile(r"advbench_harmful_behaviors\.csv|category_(?P<category>\d+)\.csv")


@dataclass(frozen=True)
class Row:
    """One record as read: `values` by the source's own column names; `where` says "FILE, row N"."""

    number: int
    where: str
    values: dict[str, Any]
    source: Source


@dataclass(frozen=True)
class Source:
    """Where rows come from. Hub sets may have columns we do not use (nobody can edit them); local files may not."""

    name: str
    known: Known | None = None
    hub: bool = False


@dataclass(frozen=True)
class Fields:
    """A checked row in our own terms: the messages up to the answer, and whatever answers there are."""

    id: str
    messages: tuple[Message, ...]  # without a final assistant message
    response: str | None
    harmful: str | None
    refusal: str | None
    meta: dict[str, Any]
    where: str
    kind: Kind


# ---------------------------------------------------------------------------------------------------- loading


def read_prompts(source: str | Path, limit: int | None = None) -> list[Prompt]:
    """Requests alone; answers in the source are left out and a final assistant message is dropped.

    `meta` holds prompt_id and, where known, category and the set's own notes.

    Args:
        source: .jsonl, .json, .csv or .txt file, folder of HEx-PHI files, or hf:owner/name[@revision][:config][:split];
            a single part after the name that is train, test or validation is the split, and one that ends in a file
            suffix is a file of that repository.
        limit: read the first so many rows only (the rest is not looked at).

    Raises:
        InputError: anything wrong with the source, naming file, row and fix.
    """
    rows = _fields(source, limit)
    return [Prompt(row.id, row.messages, meta={**row.meta, "prompt_id": row.id}) for row in rows]


def read_pairs(source: str | Path, limit: int | None = None) -> list[Pair]:
    """Instruction and answer; of triples the harmful answer, of chats the last assistant message. See `read_prompts`.

    Raises:
        InputError: as `read_prompts`; also a row without an answer.
    """
    pairs = []
    for row in _fields(source, limit):
        answer = row.response if row.response is not None else row.harmful
        pairs.append(Pair(row.id, row.messages, _needed(answer, "response", row.where), meta=row.meta))
    return pairs


def read_triples(source: str | Path, limit: int | None = None) -> list[Triple]:
    """Instruction, harmful answer and refusal. See `read_prompts`.

    Raises:
        InputError: as `read_prompts`; also a row without a harmful answer or without a refusal.
    """
    return [
        Triple(
            row.id,
            row.messages,
            harmful=_needed(row.harmful, "harmful", row.where),
            refusal=_needed(row.refusal, "refusal", row.where),
        )
        for row in _fields(source, limit)
    ]


def read_chats(source: str | Path, limit: int | None = None) -> list[Chat]:
    """Conversations that end with the assistant; prompt and completion make one of two messages. See `read_prompts`.

    `"meta": {"truncated": true}` says that the answer was cut off, so that its end is not learnt.

    Raises:
        InputError: as `read_prompts`; also a row whose last message is not the assistant's.
    """
    chats = []
    for row in _fields(source, limit):
        if row.response is None:
            raise InputError(
                f"{row.where}: the last message must be from the assistant; add the answer as a last message"
                ' {"role": "assistant", ...} or as "completion".'
            )
        answer = Message(role="assistant", content=row.response)
        chats.append(Chat(row.id, (*row.messages, answer), truncated=row.meta.get("truncated") is True))
    return chats


def kind(source: str | Path) -> Kind:
    """What the first row is: triples (has a refusal), chats (messages ending with the assistant, or a completion),
    pairs (has a response or a harmful answer) or prompts.

    Raises:
        InputError: the source cannot be read or its first row is wrong.
    """
    return _interpret(next(read_rows(source))).kind


def has_field(source: str | Path, name: Literal["response", "harmful", "refusal", "category"]) -> bool:
    """Whether the first row has that field, under whatever name the source gives it.

    Raises:
        InputError: the source cannot be read or its first row is wrong.
    """
    fields = _interpret(next(read_rows(source)))
    return "category" in fields.meta if name == "category" else getattr(fields, name) is not None


def identity(source: str | Path) -> str | Path:
    """What to hash to know the data again: the path of a local source, the SHA-256 of a hub source's rows."""
    if not _is_hub(source):
        return _user_path(source)
    digest = hashlib.sha256()
    for row in read_rows(source):
        digest.update(_content(row).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- rows -> fields


def _fields(source: str | Path, limit: int | None) -> list[Fields]:
    """Checked rows with unique ids. Rows without an id are named by their content; a repeated one gets "-2"."""
    if limit is not None and limit < 1:
        raise InputError(f"The limit of rows to read from {source} is {limit}; give 1 or more, or leave it out.")
    seen: dict[str, int] = {}
    fields = []
    for row in read_rows(source):
        item = _interpret(row)
        if item.id and item.id in seen:
            raise InputError(f"{row.where}: its id is also that of row {seen[item.id]}; give each row its own id.")
        item_id = item.id or _content_id(row, seen)
        seen[item_id] = row.number
        fields.append(replace(item, id=item_id))
        if len(fields) == limit:
            break
    return fields


def _content(row: Row) -> str:
    return json.dumps(row.values, sort_keys=True, default=str)


def _content_id(row: Row, seen: Mapping[str, int]) -> str:
    base = hashlib.sha256(_content(row).encode()).hexdigest()[:12]
    candidates = (base if n == 1 else f"{base}-{n}" for n in range(1, len(seen) + 2))
    return next(name for name in candidates if name not in seen)


def _interpret(row: Row) -> Fields:
    """Check one row and bring it into our terms; an absent id is "" here."""
    known = row.source.known or _known_by_columns(row.values)
    return _from_known(row, known) if known else _from_generic(row)


def _known_by_columns(values: Mapping[str, Any]) -> Known | None:
    """The public set whose columns these are, unless they are all our own names."""
    columns = set(values)
    if columns <= set(FIELDS):
        return None
    return next((known for known in KNOWN if known.required <= columns <= known.columns), None)


def _from_known(row: Row, known: Known) -> Fields:
    if missing := sorted(known.required - set(row.values)):
        have = ", ".join(_show(name) for name in row.values)
        raise InputError(
            f"{row.where}: {known.name} should have a column '{missing[0]}' but has {have}; "
            "pin the revision that has it, or write the rows to a file with our field names."
        )
    text = known.opening + _text(row, known.instruction)
    context = row.values.get(known.context) if known.context else None
    if context:
        text = known.layout.format(instruction=text, context=_text(row, known.context or ""))
    meta = {name.lower(): row.values[name] for name in known.meta if row.values.get(name)}
    if known.category and row.values.get(known.category):
        meta["category"] = _text(row, known.category)
    return Fields(
        id=_id(row),
        messages=(Message(role="user", content=text),),
        response=_text(row, known.response) if known.response else None,
        harmful=None,
        refusal=None,
        meta=meta,
        where=row.where,
        kind="pairs" if known.response else "prompts",
    )


def _from_generic(row: Row) -> Fields:
    """A row that uses our own field names, or an error with the nearest of them."""
    values = {name: value for name, value in row.values.items() if value is not None}
    if not row.source.hub:
        _refuse_unknown(row)
    request = [name for name in ("messages", "instruction", "prompt") if name in values]
    if row.source.hub and request[:1] == ["messages"]:
        request = ["messages"]  # hub sets often repeat the first user message as a column of its own
    if len(request) > 1:
        raise InputError(f"{row.where}: has both '{request[0]}' and '{request[1]}'; keep one of them.")
    if not request:
        raise _missing("instruction", row)
    answers = [name for name in ("response", "completion") if name in values]
    if len(answers) > 1:
        raise InputError(f"{row.where}: has both 'response' and 'completion'; keep one of them.")
    response = _text(row, answers[0]) if answers else None
    messages = _messages(row) if request == ["messages"] else (Message(role="user", content=_text(row, request[0])),)
    ends_with_answer = messages[-1]["role"] == "assistant"
    if ends_with_answer:
        if response is not None:
            raise InputError(
                f"{row.where}: 'messages' already end with an answer and '{answers[0]}' gives another; keep one."
            )
        messages, response = messages[:-1], messages[-1]["content"]
    return Fields(
        id=_id(row),
        messages=messages,
        response=response,
        harmful=_text(row, "harmful") if "harmful" in values else None,
        refusal=_text(row, "refusal") if "refusal" in values else None,
        meta=_meta(row),
        where=row.where,
        kind=_kind(values, ends_with_answer),
    )


def _kind(values: Mapping[str, Any], ends_with_answer: bool) -> Kind:
    if "refusal" in values:
        return "triples"
    if ends_with_answer or "completion" in values:
        return "chats"
    return "pairs" if "response" in values or "harmful" in values else "prompts"


def _refuse_unknown(row: Row) -> None:
    unknown = [name for name in row.values if name not in FIELDS]
    if not unknown:
        return
    if row.number == 1 and len(unknown) == len(row.values) and all(nearest(name) is None for name in unknown):
        raise InputError(
            f"{row.where}: none of its {len(unknown)} columns is known; name them {', '.join(FIELDS)}"
            + (" (in a first line of column names)." if row.source.name.endswith(".csv") else ".")
        )
    near = nearest(unknown[0])
    advice = f"did you mean '{near}'" if near else f"known are {', '.join(FIELDS)}"
    raise InputError(
        f"{row.where}: unknown column {_show(unknown[0])}; {advice} (rename it, remove it or put it under 'meta')."
    )


def nearest(name: str) -> str | None:
    """The field of ours that a foreign or misspelt name most likely means."""
    name = name.strip().lower()
    if name in SAYS_THE_SAME:
        return SAYS_THE_SAME[name]
    near = errors.nearest(name, [*FIELDS, *SAYS_THE_SAME])
    return SAYS_THE_SAME.get(near, near) if near else None


def _show(name: str) -> str:
    """A column name for an error message; a long one may be a row's text (a file without its header line)."""
    return f"'{name}'" if len(name) <= 32 else f"(a name of {len(name)} characters)"


def _missing(field: str, row: Row) -> InputError:
    have = ", ".join(_show(name) for name in row.values) or "nothing"
    alias = {"instruction": '"instruction" or "messages"'}.get(field, f'"{field}"')
    return InputError(f"{row.where}: no field '{field}' (it has {have}); add {alias}.")


def _needed(value: str | None, field: str, where: str) -> str:
    if value is None:
        raise InputError(f"{where}: no field '{field}'; add \"{field}\" with the answer's text.")
    return value


def _text(row: Row, name: str) -> str:
    return _checked_text(row.values[name], name, row.where)


def _checked_text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: '{name}' must be text, not {_type_name(value)}; put it in quotes as one string.")
    if not value.strip():
        raise InputError(f"{where}: '{name}' is empty; fill it in or remove the row.")
    if re.search("[\ud800-\udfff]", value):
        raise InputError(
            f"{where}: '{name}' holds half of a surrogate pair, which is no valid Unicode; re-save the row."
        )
    return value


def _type_name(value: Any) -> str:
    names: dict[type, str] = {bool: "true/false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _id(row: Row) -> str:
    value = row.values.get("id")
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _checked_text(value, "id", row.where)


def _meta(row: Row) -> dict[str, Any]:
    meta = row.values.get("meta")
    if meta is not None and not isinstance(meta, dict):
        raise InputError(f"{row.where}: 'meta' must be an object, not {_type_name(meta)}; write it as {{...}}.")
    category = row.values.get("category")
    named = {} if category in (None, "") else {"category": _text(row, "category")}
    return {**(meta or {}), **named}


def _messages(row: Row) -> tuple[Message, ...]:
    """The row's conversation: system first if at all, at least one user message, last from user or assistant."""
    value = row.values["messages"]
    if not isinstance(value, list) or not value:
        kind_of = "an empty list" if value == [] else _type_name(value)
        raise InputError(
            f"{row.where}: 'messages' must be a list of messages, not {kind_of}; "
            'write [{"role": "user", "content": "..."}, ...].'
        )
    messages = tuple(_message(item, f"{row.where}, message {n}") for n, item in enumerate(value, 1))
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        raise InputError(f"{row.where}: a system message stands after others; move it to the first place.")
    if "user" not in roles:
        raise InputError(f"{row.where}: 'messages' have no user message; add the request.")
    if "user" not in roles[:-1] and roles[-1] == "assistant":
        raise InputError(f"{row.where}: no user message stands before the answer; add the request.")
    return messages


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise InputError(f'{where}: must be an object, not {_type_name(item)}; write {{"role": ..., "content": ...}}.')
    for name in ("role", "content"):
        if item.get(name) is None:
            raise InputError(f'{where}: no field \'{name}\'; write {{"role": ..., "content": ...}}.')
    if extra := [name for name, value in item.items() if name not in ("role", "content") and value is not None]:
        raise InputError(f"{where}: unknown field {_show(extra[0])}; only 'role' and 'content' are read, remove it.")
    if item["role"] not in ROLES:
        raise InputError(f"{where}: its 'role' is none of {', '.join(ROLES)}; change it to one of them.")
    if item["role"] == "system" and item["content"] == "":
        return Message(role="system", content="")  # how a chat says that it wants no system prompt
    return Message(role=item["role"], content=_checked_text(item["content"], "content", where))


# ---------------------------------------------------------------------------------------------- source -> rows


def read_rows(source: str | Path) -> Iterator[Row]:
    """The records of a source as they are, one at a time: syntax is checked, fields are not.

    Raises:
        InputError: no such file, unreadable, empty, not UTF-8, a row that is not JSON, not CSV, or over MAX_ROW bytes.
    """
    rows = _hub_rows(str(source)) if _is_hub(source) else _local_rows(_user_path(source))
    number = 0
    for number, row in enumerate(rows, 1):  # noqa: B007
        yield row
    if number == 0:
        raise InputError(f"{source} is empty; give a file with at least one row.")


def _user_path(source: str | Path) -> Path:
    return Path(os.path.expanduser(source))  # unlike Path.expanduser it leaves an unknown user's ~name alone


def _is_hub(source: str | Path) -> bool:
    return str(source).startswith("hf:")


def _local_rows(path: Path) -> Iterator[Row]:
    if os.path.isdir(path):  # unlike Path.is_dir it is False, and no error, for a name too long
        return _hex_phi_rows(path)
    _open(path).close()
    match path.suffix.lower():
        case ".jsonl":
            return _jsonl_rows(path)
        case ".json":
            return _json_rows(path)
        case ".csv":
            return _csv_rows(path)
        case ".txt":
            return _txt_rows(path)
    raise InputError(f"{path} is none of {', '.join(SUFFIXES)}; convert it to one of them.")


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = errors.nearest(path.name, names)
        advice = f"did you mean {path.parent / near}" if near else "check the path"
        raise InputError(f"There is no file {path}; {advice}.") from None
    except PermissionError:
        raise InputError(f"{path} may not be read by this user; change its permissions or give another file.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); give another file.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(1-based number, text with its newline) of each line; a line over MAX_ROW is refused before it is read whole."""
    with _open(path) as file:
        number = 0
        while raw := file.readline(MAX_ROW + 1):
            number += 1
            if len(raw) > MAX_ROW:
                raise _too_long(path, number)
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, row {number}: byte {error.start + 1} is not valid UTF-8; save the file as UTF-8."
                ) from None


def _too_long(path: Path | str, number: int) -> InputError:
    return InputError(
        f"{path}, row {number}: is longer than {MAX_ROW:,} bytes; shorten it, or check that each row ends its line."
    )


def _jsonl_rows(path: Path) -> Iterator[Row]:
    source = Source(str(path))
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, row {number}"
            yield Row(number, where, _json_object(line, where), source)


def _json_object(text: str, where: str) -> dict[str, Any]:
    value = _json_value(text, where)
    if not isinstance(value, dict):
        raise InputError(f'{where}: is {_type_name(value)}, not a JSON object; write {{"instruction": ...}}.')
    return value


def _json_value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise InputError(
            f"{where}: is not JSON ({error.msg} at {place}); write one JSON object a line, or a list of them."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits; brackets nested thousands deep
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        raise InputError(f"{where}: is not usable JSON ({reason}); write one plain JSON object a line.") from None


def _json_rows(path: Path) -> Iterator[Row]:
    """A JSON list of objects, or objects one a line."""
    with _open(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not start.startswith(b"["):
            yield from _jsonl_rows(path)
            return
        file.seek(0)
        raw = file.read()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: holds a byte that is not valid UTF-8; save the file as UTF-8."
        ) from None
    source = Source(str(path))
    for number, value in enumerate(_json_value(text, str(path)), 1):
        where = f"{path}, row {number}"
        if not isinstance(value, dict):
            raise InputError(f'{where}: is {_type_name(value)}, not a JSON object; write {{"instruction": ...}}.')
        if len(json.dumps(value)) > MAX_ROW:
            raise _too_long(path, number)
        yield Row(number, where, value, source)


def _txt_rows(path: Path) -> Iterator[Row]:
    """One instruction a line."""
    source = Source(str(path))
    for number, line in _lines(path):
        if line.strip():
            yield Row(number, f"{path}, row {number}", {"instruction": line.rstrip("\r\n")}, source)


def _csv_rows(path: Path) -> Iterator[Row]:
    records = _csv_records(path)
    first = next(records, None)
    if first is None:
        return
    number, header = first
    if (match := HEADERLESS.fullmatch(path.name)) and len(header) == 1 and header[0] not in FIELDS:
        yield from _headerless_rows(path, match, [first, *records])
        return
    if len(set(header)) < len(header) or not all(name.strip() for name in header):
        raise InputError(f"{path}, row {number}: a column name is empty or repeated; give each column its own name.")
    if not _may_be_header(header):
        raise InputError(
            f"{path}, row {number}: names no known column; start the file with a line of column names "
            f"such as instruction,response (known are {', '.join(FIELDS)})."
        )
    source = Source(str(path))
    for number, cells in records:
        where = f"{path}, row {number}"
        if len(cells) != len(header):
            raise InputError(
                f"{where}: has {len(cells)} columns and the first line {len(header)}; quote texts that hold commas."
            )
        yield Row(number, where, dict(zip(header, cells, strict=True)), source)


def _may_be_header(names: list[str]) -> bool:
    """Whether a CSV's first line names columns, so that its words may be shown in an error message."""
    known = {*FIELDS, *SAYS_THE_SAME}.union(*(known.columns for known in KNOWN))
    return any(name in known or nearest(name) for name in names)


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line the record starts on, its cells); blank lines are skipped."""
    csv.field_size_limit(MAX_ROW)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                raise _too_long(path, start) from None
            raise InputError(f"{path}, row {start}: is not CSV ({error}); check its quotes.") from None
        if sum(map(len, cells)) > MAX_ROW:
            raise _too_long(path, start)
        if cells:
            yield start, cells


def _headerless_rows(path: Path, match: re.Match[str], records: list[tuple[int, list[str]]]) -> Iterator[Row]:
    """Prompts alone, one a line, in a file known by its name; HEx-PHI's file name holds the category."""
    digits = match["category"]
    category = {} if digits is None else {"category": HEX_PHI_CATEGORIES.get(int(digits), f"category {int(digits)}")}
    source = Source(str(path), ADVBENCH if digits is None else HEX_PHI)
    for number, cells in records:
        where = f"{path}, row {number}"
        if len(cells) != 1:
            raise InputError(f"{where}: has {len(cells)} columns instead of one; quote texts that hold commas.")
        yield Row(number, where, {"prompt": cells[0], **category}, source)


def _hex_phi_rows(folder: Path) -> Iterator[Row]:
    files = [path for path in folder.iterdir() if (match := HEADERLESS.fullmatch(path.name)) and match["category"]]
    if not files:
        raise InputError(f"{folder} is a folder without HEx-PHI's category_N.csv files; give a data file.")
    for path in sorted(files, key=lambda path: int(path.stem.split("_")[1])):
        yield from _csv_rows(path)


# ----------------------------------------------------------------------------------------------- the hub

HUB_SOURCE = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^:]*))?(?::(?P<split>.+))?"
)
SPLITS = ("train", "test", "validation")


def _hub_rows(spec: str) -> Iterator[Row]:
    match = HUB_SOURCE.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec} is no hub data set; write hf:owner/name[@revision][:config][:split].")
    repo, revision = match["repo"], match["revision"]
    config, split = match["config"] or None, match["split"]
    if split is None and config in SPLITS:
        config, split = None, config
    if config and Path(config).suffix in SUFFIXES:
        return _local_rows(_fetch(spec, repo, revision, file=config))
    known = next((known for known in KNOWN if known.repo == repo), None)
    if known is HEX_PHI:  # header-less CSV files, which `datasets` would read with their first prompt as the header
        rows = list(_hex_phi_rows(_fetch(spec, repo, revision, pattern="category_*.csv")))
        _check_count(spec, known, "", len(rows), revision)
        return iter(rows)
    config = config or (known.config if known else None)
    split = split or (known.split if known else "train")
    table = _load_dataset(spec, repo, config, split, revision)
    if known:
        _check_count(spec, known, f"{config or ''}/{split}", len(table), revision)
    source = Source(spec, known, hub=True)
    return (Row(n, f"{spec}, row {n}", dict(values), source) for n, values in enumerate(table, 1))


def _load_dataset(spec: str, repo: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(repo, config, split=split, revision=revision)
    except Exception as error:  # network, login, name, split and file format all fail here, each in its own way
        raise _hub_error(spec, error) from error


def _fetch(spec: str, repo: str, revision: str | None, *, file: str = "", pattern: str = "") -> Path:
    """Download one file, or the files of a pattern, of a data set repository; returns the file or the folder."""
    import huggingface_hub

    try:
        if file:
            return Path(huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=revision))
        return Path(
            huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=[pattern])
        )
    except Exception as error:  # as above
        raise _hub_error(spec, error) from error


def _hub_error(spec: str, error: Exception) -> InputError:
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0][:200].rstrip('. ')}" if lines else type(error).__name__
    return InputError(
        f"{spec} could not be loaded ({reason}); check its name, the network and, for a gated set, your login, "
        "or download it and give the file."
    )


def _check_count(spec: str, known: Known, part: str, count: int, revision: str | None) -> None:
    """A public set that has changed its size is not the set that published numbers are about."""
    expected = (known.counts or {}).get(part)
    if revision is None and expected and count not in expected:
        raise InputError(
            f"{spec} has {count} rows and {known.name} should have {' or '.join(map(str, expected))}; "
            "name the revision you mean (hf:owner/name@revision)."
        )
