"""What every verb shares: the headings of its help, lists as they are typed, and what a plan is.

A verb is one module, named as the verb (the pattern is `measure.py`), with three things:

    @dataclass(frozen=True, kw_only=True)
    class NameOptions(ModelOptions):            # ModelOptions only where the verb loads a model
        '''What the verb does, in one line: the first line of its --help.'''

        data: Annotated[str, what(help="One plain sentence: what it is, its unit, when to change it.")]
        k: Annotated[Ints, what(help="...")] = field(default_factory=lambda: [0, 5])

    def plan(options: NameOptions, subject: Subject | None = None) -> NamePlan   # subject: the model, if in memory
    def run(plan: NamePlan, ...) -> Path                                         # does the work, returns the folder

- A field without a default is required: help marks it, the command line asks for it. Nothing is repeated elsewhere.
- Each field stands under one heading: `what` (made by `heading("What to ...")`), `loading` (the model), `output`, and
  `advanced` for what few people need. Common ones first: help keeps the order of the fields.
- A list has one of the types below, so that `--k 0,5`, `--k 0 5` and `--k "[0, 5]"` are the same; a choice is a `Literal`.
- `plan` reads and checks everything once; it loads no weights and writes nothing. A plan is a frozen dataclass that holds
  the options, what was read, and `lines()`, which `--dry-run` prints. `functions.py` calls the same two.
- Nothing heavy (torch, transformers, Inspect, trl, datasets, matplotlib) is imported at the top of a verb.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Group, Parameter, Token

from tokendeep import data, runs
from tokendeep.errors import InputError, flag
from tokendeep.models.options import TEXTS, Floats, Ints, ModelOptions, Names, Texts, advanced, check_range, loading
from tokendeep.records.base import File, read_json
from tokendeep.runs.files import user_path

if TYPE_CHECKING:
    import yaml

__all__ = ["Floats", "Ints", "Names", "Place", "Texts", "advanced", "beside", "check_place", "ending", "given", "heading",
           "loading", "made_in", "meaning", "output", "trained", "typed", "yaml_settings"]  # fmt: skip


def heading(title: str) -> partial[Parameter]:
    """The first heading of a verb's help, such as "What to measure"."""
    return partial(Parameter, group=Group(title, sort_key=1))


output = partial(Parameter, group=Group("Output", sort_key=3))
ROWS = ("data", "benign", "utility", "eval_data", "probe", "test", "safety", "harmless", "prefill", "harmless_test",
        "validation", "validation_harmless")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The output folder of a run and what tells the run from another; a plan has one.

    Args:
        inputs: the files of the run by the options that name them (see `runs.open_run`).
        config: the options as the manifest keeps them, where texts of the user are among them.
        models: options that name models, beside those of all verbs.
        nested: patterns of folders below whose runs are parts of this one.
        begun: whether an unfinished run of this verb has finished a row (see `runs.open_run`).
        grows: options that list parts of the run, of which it may have more when it is called again.
    """

    verb: str
    options: Any
    inputs: Mapping[str, str | Path]
    config: Mapping[str, Any] | None = None
    models: Sequence[str] = ()
    nested: Sequence[str] = ()
    begun: Callable[[Path], bool] | None = None
    grows: Sequence[str] = ()

    def _arguments(self) -> dict[str, Any]:
        """What `runs.open_run` and `runs.look` take alike."""
        config = asdict(self.options) if self.config is None else self.config
        return {
            "out": self.options.out, "verb": self.verb, "config": config, "inputs": self.inputs,
            "overwrite": self.options.overwrite, "kind": type(self.options), "models": self.models,
            "begun": self.begun, "grows": self.grows,
        }  # fmt: skip

    def open(self) -> runs.Run:
        """Take the folder for this run (`runs.open_run`); its manifest names the public sets that are read."""
        run = runs.open_run(**self._arguments(), nested=self.nested)
        if not run.finished and (sets := self.sets()):
            run.manifest["sets"] = sets
        return run

    def sets(self) -> dict[str, str]:
        """Option -> the public set that it names."""
        named = {name: getattr(self.options, name, None) for name in ROWS}
        return {name: known for name, of in named.items() if isinstance(of, str) and (known := data.set_of(of))}

    def lines(self) -> list[str]:
        """The terms of the public sets that are read, and what lies there already, as lines of a plan."""
        terms = [f"{flag(name)}: {data.described(getattr(self.options, name), of)}" for name, of in self.sets().items()]
        return [*terms, f"out: {self.options.out or '(none)'} ({runs.look(**self._arguments())})"]


# --- results that lie in a folder without being a run -----------------------------------------------------------------------


def check_place(out: str | None, names: Sequence[str]) -> None:
    """Raises InputError where a file of these names in `out` is there and is none of ours."""
    for path in [user_path(out) / name for name in names] if out else []:
        if os.path.lexists(path) and not _ours(path):
            raise InputError(f"{path} is there already and was not written by tokendeep; give another --out.")


def made_in(out: str | None, record: File, told: str | None) -> Path | None:
    """Write the record into `out` where a folder is named, and return its file.

    Args:
        told: what it says, which is printed with the place; None: nothing is.
    """
    path = user_path(out) / record.FILE if out else None
    if path:
        runs.write_json(path, record.dump())
    if told is not None:
        print(told)
        if path:
            print(f"made: {path} (no texts)")
    return path


def _ours(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix != ".json":
        return "tokendeep gate" in path.read_text(encoding="utf-8", errors="replace")[:200]
    try:
        value = read_json(path)
    except InputError:
        return False
    return isinstance(value, dict) and "schema" in value


# --- what a verb says at its end -----------------------------------------------------------------------


def ending(made: str, *commands: Sequence[object]) -> None:
    """Say what a verb has made and where, and what can be done with it next.

    Args:
        made: the files or folders, with what they are.
        commands: the words of each command behind `tokendeep`; what a user has to fill in is in capitals.
    """
    print(f"made: {made}")
    for number, words in enumerate(commands):
        print(("      " if number else "next: ") + shlex.join(["tokendeep", *map(str, words)]))


def given(options: object, *kinds: type, without: Sequence[str] = ()) -> list[str]:
    """The words that set options of these kinds as this run has them, so that the next command asks the same model likewise.

    A system prompt can be a secret: its words are not repeated, and the user fills them in.

    Args:
        kinds: dataclasses of options, all with a default, of which the next verb has all; what stands at it is left out.
        without: options that the next command needs no more.
    """
    words = []
    defaults = {name: value for kind in kinds for name, value in vars(kind()).items() if name not in without}
    for name, default in defaults.items():
        value = getattr(options, name)
        if value == default:
            continue
        text = ",".join(value) if isinstance(value, list) else str(value)
        if name == "system" and text != "none":
            text = "YOUR-SYSTEM-PROMPT"
        if value is True:
            words.append(flag(name))
        else:
            words += [f"{flag(name)}={text}"] if text.startswith("-") else [flag(name), text]
    return words


def trained(out: Path, verb: str, options: ModelOptions) -> None:
    """The ending of a verb that trains; the checkpoint holds the chat template, and is safe to load unless it is an adapter."""
    checkpoint = out / "checkpoint"
    adapter = (checkpoint / "adapter_config.json").exists()
    without = ["chat_template", "revision", *([] if adapter else ["allow_pickle"])]
    attack = ["attack", "--model", checkpoint, *given(options, ModelOptions, without=without)]
    ending(
        f"{checkpoint} (README.md in it says how to load it); the rows beside it hold texts, readable by you alone",
        [*attack, "--data", "UNSEEN-PAIRS.jsonl", "--out", beside(out, f"attack-after-{verb}")],
    )


def beside(out: str | Path, name: str) -> Path:
    """The place for the output of a next verb: beside that of this one."""
    return Path(out).parent / name


# --- types of options ------------------------------------------------------------------------------

MEANINGS = {  # type of an option: what its value must be
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (in YAML in quotes)",
    list[int]: "whole numbers, such as 0,5,10 (in YAML [0, 5, 10])",
    list[float]: "numbers, such as 0.5,2,2 (in YAML [0.5, 2, 2])",
    list[str]: "a list of texts (in YAML [one, two])",
}


NAMED = ("attack", "judge", "judged")  # options that are names with commas between them


def typed(value: object, hint: Any, name: str) -> object:
    """A value of a file or a program as the option has it; the type must be right, but a whole number is a number too.

    Where an option is a list, one value is a list of one, and numbers and names may be written as on the command line: "0,5"
    and "one,two". An option that is names with commas between them may be given as a list.

    Args:
        hint: the option's type as its dataclass has it, also with what is `Annotated`.
    """
    from pydantic import TypeAdapter, ValidationError

    if isinstance(value, list) and name.rpartition(" ")[2] in NAMED and all(isinstance(one, str) for one in value):
        value = ",".join(value)
    hint, words = _plain(hint)
    try:
        taken = words(hint, [Token(value=value)]) if words and isinstance(value, str) else _listed(value, hint)
        checked = TypeAdapter(hint).validate_python(taken, strict=True)
        each = checked if isinstance(checked, list) else [checked]
        for one in each:
            if isinstance(one, int | float):
                check_range(one)
    except (ValidationError, ValueError, RecursionError):
        way = " without a 0 in front" if re.fullmatch(r"[-+]?0\d+", str(value)) else ""
        raise InputError(f"{name} is {str(value)[:40]!r}, but must be {meaning(hint)}{way}.") from None
    for one in each:
        if isinstance(one, str):
            check_text(one, name)
    return checked


def check_text(text: str, name: str) -> None:
    """Refuse a text that cannot be printed or written: with bytes that are not UTF-8, or half of a character."""
    if re.search("[\ud800-\udfff]", text):
        raise InputError(f"{name} holds what is not UTF-8, in {text[:60]!r}; write it in UTF-8.")


def _listed(value: object, hint: Any) -> object:
    """A value of an option that is a list: numbers in a text, or a single value, as one; any other value as it is."""
    kind = next((one for one in (hint, *get_args(hint)) if get_origin(one) is list), None)
    if kind is None:
        return value
    if kind != list[str] and isinstance(value, str) and re.fullmatch(r"[\d\s,.eE+-]+", value):
        with contextlib.suppress(ValueError):
            return list(json.loads(f"[{value}]"))
    return [value] if isinstance(value, str | int | float) else value


def meaning(hint: Any) -> str:
    """What a value of this type is, in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return meaning(next(arg for arg in get_args(hint) if arg is not type(None)))
    return MEANINGS.get(hint, str(hint))


def _plain(hint: Any) -> tuple[Any, Callable[..., Any] | None]:
    """A type without what is `Annotated`; and, of a list of names, what takes the names out of one text."""
    if get_origin(hint) in (Union, UnionType):
        inner = [_plain(one) for one in get_args(hint)]
        return Union[tuple(one for one, _ in inner)], next((words for _, words in inner if words), None)  # noqa: UP007
    if get_origin(hint) is not Annotated:
        return hint, None
    plain, *marks = get_args(hint)
    plain, words = _plain(plain)
    if plain == list[str]:
        own: list[Any] = [one.converter for one in marks if isinstance(one, Parameter) and one is not TEXTS]
        words = next(filter(None, own), words)
    return plain, words


# --- YAML files ---------------------------------------------------------------------------------


def yaml_settings(path: str) -> dict[object, object]:
    """The mapping of options that a YAML file holds.

    Raises:
        InputError: no such file, no mapping in it, or an option that stands there twice.
    """
    import yaml

    file = runs.user_file(path)
    names: list[str] = []
    try:
        loader = _loader()(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):  # which says every key; a dict, the last of those that are alike
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        settings = loader.construct_document(node) if node else None
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; check what --config names.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check what --config names.") from error
    # also dates that are none, brackets nested thousands deep
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        settings, path = None, f"{path}, line {mark.line + 1}" if mark else path
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds no options that can be read; write UTF-8 text with lines such as seed: 1.")
    _check_once(names, path)
    _check_once(map(str, settings), path)  # with those of another mapping that is merged in
    return settings


def _check_once(names: Iterable[str], path: str) -> None:
    """Raises InputError for an option that is named twice, in whichever spelling."""
    seen: dict[str, str] = {}
    for name in names:
        option = name.replace("-", "_")
        if (earlier := seen.get(option)) is not None:
            what = f"{name[:40]} is given twice" if earlier == name else f"{earlier} and {name} are one option"
            raise InputError(f"{path}: {what}; keep one of them.")
        seen[option] = name


NUMBERS = {  # YAML tag -> how a number is written: as on the command line
    "int": r"[-+]?(0|[1-9][0-9_]*)$",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$",
}


def _loader() -> type[yaml.SafeLoader]:
    """Reads YAML with numbers as people write them.

    In YAML 1.1 010 is 8 and 1:30 is 90, which nobody means; here they are texts. 2e-5 is a number, which there takes a point.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader with other forms of numbers."""

    tags = {f"tag:yaml.org,2002:{kind}": re.compile(form) for kind, form in NUMBERS.items()}
    Loader.yaml_implicit_resolvers = {
        start: [(tag, form) for tag, form in known if tag not in tags]
        for start, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, form in tags.items():
        Loader.add_implicit_resolver(tag, form, list("-+.0123456789"))
    return Loader
