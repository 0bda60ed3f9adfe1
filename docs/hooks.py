"""Pages of the documentation that are made from the code: the options of every verb, the file formats, the notebook."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import tokendeep
from tokendeep import cli, records
from tokendeep.verbs import VERBS

NOTEBOOK = Path(__file__).parent / "notebooks" / "first-look.ipynb"
NAMES = {
    "Verbs": "pairs measure attack deepen audit finetune mend poison compare overlap parity load",
    "Training": "ConstrainedSFTTrainer ReferencedSFTTrainer SafetyAnchor ConstrainedSFTConfig ResponseSFTTrainer BetaSchedule",
    "The objective": "constrained_nll constraint_weights response_positions",
    "Scores": "token_logps token_kl",
    "Judging": "judge_refusal judge calibrate",
    "Rows": "read_prompts read_pairs read_triples read_chats",
    "Values": "Message Prompt Pair Triple Chat Encoded Decoding Subject InputError",
}
FORMATS = """# File formats

Every file has `schema`, the version of its format (absent in the first). Older files are read; one of a newer version is
refused with a sentence. A reader of yours should ignore keys that it does not know, and take an absent key for null where
its line says nothing else. In Python `tokendeep.records.Profile.load(folder)` and its siblings give typed values. What is
measured, and how, stands in [Concepts](concepts.md).
"""
COLOURS = re.compile("\x1b\\[[0-9;]*m")  # of a terminal
FILES = {  # what each file is, for a reader of the formats page
    "manifest.json": "Every verb writes one: what was run, with which options, data, models and versions.",
    "profile.json": "`measure`: KL by position, refusal recovery, depth figures, a task, perplexity, each prompt's values.",
    "asr.json": "`attack`: a list with a row for each attack, its parameters, judge and model.",
    "training.json": "`deepen`, `finetune` and `mend`: the log of every step.",
    "dynamics.json": "`finetune --dynamics`: what happened per token at the recorded steps.",
    "cell.json": "`poison`: one training.",
    "validation.json": "`poison --strengths`: one training on the validation rows.",
    "strengths.json": "`poison --strengths`: every strength on the validation rows, and which was chosen.",
    "verdicts.jsonl": "`judge`: a line for each verdict on an answer of a finished attack; it holds no text.",
    "outcomes.jsonl": "`attack`, `judge`: a line for each answer under each judge, by the hash of its request; it holds no text.",
    "calibration.json": "`calibrate`: how far a judge agrees with people on labelled answers; it holds no text.",
    "overlap.json": "`overlap`: requests that two data files share, by ids and hashes.",
    "audit.json": "`audit`: which rows of a data set push on refusals, by places, ids and hashes; it holds no text.",
    "parity.json": "`parity`: two engines on the same token ids; it holds no text.",
    "compare.json": "`compare`, `gate`: two sides on the same prompts, condition by condition.",
    "gate.json": "`gate`: each limit with its verdict.",
    "table.json": "`poison`: a list with a line for each objective and learning rate, over the seeds.",
    "verdict": "What a judge of ours leaves with each answer in an Inspect log (`score.metadata`).",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    pages = {
        "reference/options.md": options_page(),
        "reference/api.md": names_page(),
        "formats.md": formats_page(),
        "notebooks/first-look.md": notebook_page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


# --- public names ---------------------------------------------------------------------------------


def names_page() -> str:
    """The docstring of every public name, by what it is for; a name that no list has would be an error."""
    parts = ["# Public names", "", "What `import tokendeep` offers. Nothing heavy is loaded until a name is used."]
    missing = set(tokendeep.__all__) - {"__version__"} - {name for names in NAMES.values() for name in names.split()}
    assert not missing, f"{missing} is public and stands in no list of docs/hooks.py"
    for title, names in NAMES.items():
        parts += ["", f"## {title}", ""]
        for name in names.split():
            home = getattr(tokendeep, name).__module__
            parts += [f"::: {home}.{name}", "    options:", f"      heading: tokendeep.{name}", ""]
    return "\n".join(parts) + "\n"


# --- options -------------------------------------------------------------------------------------


def options_page() -> str:
    """Every option of every verb, by its headings, from the same source as --help."""
    parts = [
        "# Options of every verb",
        "",
        "The same as `tokendeep VERB --help`. Each can stand in a YAML file (`--config`).",
    ]
    for verb, (_, summary) in VERBS.items():
        parts += ["", f"## {verb}", "", summary, "", *_tables(cli.options_of(verb))]
    return "\n".join(parts) + "\n"


def _tables(kind: type) -> list[str]:
    hints = get_type_hints(kind, include_extras=True)
    groups: dict[str, list[str]] = {}
    order: dict[str, Any] = {}
    for field in fields(kind):
        parameter = next(p for p in reversed(get_args(hints[field.name])[1:]) if getattr(p, "help", None))
        (group,) = parameter.group if isinstance(parameter.group, tuple) else (parameter.group,)
        order[group.name] = group.sort_key
        name = f"`--{field.name.replace('_', '-')}`"
        row = f"| {name} | {_type(hints[field.name])} | {_default(field)} | {_cell(parameter.help)} |"
        groups.setdefault(group.name, []).append(row)
    lines: list[str] = []
    for name in sorted(groups, key=lambda one: str(order[one])):
        lines += [f"**{name}**", "", "| option | value | default | |", "|---|---|---|---|", *groups[name], ""]
    return lines


def _type(hint: Any) -> str:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if get_origin(hint) is Literal:
        return _cell(" or ".join(map(str, get_args(hint))))
    if get_origin(hint) is list:
        return f"list of {_type(get_args(hint)[0])}"
    parts = [_type(part) for part in get_args(hint) if part is not type(None)]
    names = {int: "whole number", float: "number", bool: "switch", str: "text"}
    return " or ".join(parts) if parts else names.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: Any) -> str:
    if field.default is MISSING and field.default_factory is MISSING:
        return "**required**"
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value in (None, "", False) or value == []:
        return ""
    return _cell(f"`{','.join(map(str, value)) if isinstance(value, list) else value}`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


# --- file formats --------------------------------------------------------------------------------


def formats_page() -> str:
    """The keys of every file and of the objects in it, each object where it is first met, and the JSON Schemas."""
    parts, shown = [FORMATS], {"JsonValue"}
    for name, schema in records.schemas().items():
        top = schema.get("items", schema)
        parts += [f"## {name}", "", FILES[name], "", *_keys(top)]
        for kind in _objects(top, top.get("$defs", {})):
            if kind not in shown:
                shown.add(kind)
                part = top["$defs"][kind]
                parts += [f"### {kind}", "", part.get("description", ""), "", *_keys(part)]
        parts += [f'??? note "JSON Schema of {name}"', ""]
        parts += [f"    ```json\n{_indented(json.dumps(schema, indent=1))}\n    ```", ""]
    return "\n".join(parts)


def _objects(value: Any, kinds: Any) -> list[str]:
    """The objects that a part of a schema refers to, as they follow each other in its keys, each before those in it."""
    names = re.findall(r'"#/\$defs/(\w+)"', json.dumps(value.get("properties", {})))
    return list(dict.fromkeys(one for name in names for one in (name, *_objects(kinds[name], kinds))))


def _keys(part: Any) -> list[str]:
    rows = [
        f"| `{key}` | {_shape(value)} | {_cell(value['description'])} |" for key, value in part["properties"].items()
    ]
    return ["| key | value | |", "|---|---|---|", *rows, ""]


def _shape(value: Any) -> str:
    """What a value is, in words; an object of ours leads to its own table."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return "anything" if name == "JsonValue" else f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        words = dict.fromkeys(_shape(one) for one in value["anyOf"])
        return " or ".join(word for word in words if word != "integer" or "number" not in words)
    if value.get("type") == "array":
        return f"list of {_inside(value.get('items', {}))}"
    if isinstance(value.get("additionalProperties"), dict):
        of = _inside(value["additionalProperties"])
        return "object" if of == "anything" else f"object of {of} by name"
    return str(value.get("type", "anything"))


def _inside(value: Any) -> str:
    shape = _shape(value)
    return f"({shape})" if " or " in shape else shape


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


# --- the notebook --------------------------------------------------------------------------------


def notebook_page() -> str:
    """The notebook with its stored output, as a page."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell_parts(cell)) + "\n"


def _cell_parts(cell: Any) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            image = "".join(data["image/png"]).replace("\n", "")
            base64.b64decode(image)
            parts.append(f"![output](data:image/png;base64,{image})")
        elif "text/plain" in data or "text" in output:
            text = "".join(output.get("text", data.get("text/plain", "")))
            parts.append(f"```text\n{COLOURS.sub('', text).rstrip()}\n```")
    return parts
