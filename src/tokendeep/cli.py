"""The command line: flags and YAML files -> the settings of a verb -> the verb. Nothing else.

Bad input ends with one sentence and exit code 2 (`--debug` shows the traceback), Ctrl-C with 130.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import json
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from tokendeep import __version__
from tokendeep.errors import InputError
from tokendeep.verbs import options as config

VERBS: dict[str, tuple[type, str, str]] = {
    # verb: settings, module whose run(settings) does it, one line of help
    "demo": (config.DemoConfig, "demo", "the whole story on the packaged real model; ends with a report"),
    "measure": (config.MeasureConfig, "measure", "how many tokens deep a model's safety goes"),
    "attack": (config.AttackConfig, "attack", "attack a model at inference time and judge its answers"),
    "gcg": (config.GcgConfig, "gcg", "find adversarial suffixes by gradient; attack --attack suffix tries them"),
    "deepen": (config.DeepenConfig, "deepen", "train a model to recover to a refusal at any depth"),
    "finetune": (config.FinetuneConfig, "finetune", "fine-tune on your data while protecting the first answer tokens"),
    "poison": (config.PoisonConfig, "poison", "attack a model by fine-tuning, and compare objectives that resist"),
    "report": (config.ReportConfig, "report", "one HTML file from the folders of earlier runs"),
}
REQUIRED = {"measure": ("model", "data", "out"), "attack": ("model", "data", "out"), "report": ("dirs",),
            "deepen": ("model", "data", "utility", "out"), "finetune": ("model", "data", "out"),
            "poison": ("model", "data", "test", "out"), "gcg": ("model", "data", "out"), "demo": ()}  # fmt: skip
MEANT = {  # type of a setting: what its value must be
    "bool": "true or false", "int": "a whole number", "int | None": "a whole number", "float": "a number",
    "list[float]": "numbers, such as 0.5,2,2 (in YAML [0.5, 2, 2])",
    "list[int]": "whole numbers, such as 0,5,10 (in YAML [0, 5, 10])",
    "list[str] | None": "a list of texts (in YAML [one, two])", "list[str]": "a list of texts (in YAML [one, two])",
    "str": "text (in YAML in quotes)", "str | None": "text (in YAML in quotes)",
}  # fmt: skip
NUMBERS = {
    "list[int]": r"[-+]?\d+",
    "list[float]": r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?",
}  # lists of numbers, as JSON has them
HELP = ("-h", "--help", "--version")
FULL, DENIED = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)


def build_parser() -> Any:
    """The parser of all verbs; loads nothing heavier than jsonargparse."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="tokendeep",
        description="Measure, attack, deepen and protect how many tokens deep a chat model's safety goes.",
        version=__version__,
        exit_on_error=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subcommands(required=True, dest="verb")
    for verb, (settings, _, summary) in VERBS.items():
        sub = ArgumentParser(description=settings.__doc__.split("\n\n")[0], exit_on_error=False)  # type: ignore[union-attr]
        sub.add_argument("--config", action="config", help="YAML file with any of these settings")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if verb == "report":
            sub.add_argument("dirs", nargs="*", type=str, help="folders written by the other verbs")
            sub.add_class_arguments(settings, skip={"dirs"})
        else:
            sub.add_class_arguments(settings)
        commands.add_subcommand(verb, sub, help=summary)
    return parser


def normalise(argv: Sequence[str]) -> list[str]:
    """The command line as the parser reads it: one `--name=value` for each setting, a report's folders in front.

    Dashes in names are underscores; a switch needs no value; `--k 0,5`, `--k 0 5`, `--k=5` and `--k "0, 5"` are lists,
    and so is `--prefixes ONE TWO`. What follows a setting that takes a value is that value, also with dashes in front.

    Raises:
        InputError: no verb or an unknown one, an unknown setting, a setting without its value, or a word too many.
    """
    at = next((at for at, word in enumerate(argv) if not word.startswith("-")), len(argv))
    before = list(argv[:at])
    for flag in before:
        if flag not in (*HELP, "--debug"):
            raise InputError(f"{flag} stands where the verb should; write tokendeep VERB {flag} ...")
    if at == len(argv):
        if set(before) & set(HELP):
            return before
        raise InputError(f"No verb given; choose one of {', '.join(VERBS)} (tokendeep --help says more).")
    verb = argv[at]
    if verb not in VERBS:
        raise InputError(f"There is no verb {verb!r}; {_nearest(verb, list(VERBS))}.")
    flags, loose = _settings(verb, deque(argv[at + 1 :]))
    if loose and verb != "report":
        raise InputError(f"{verb} cannot tell what {loose[0]!r} is; give every setting by its name (--data FILE).")
    return [*before, verb, *loose, *flags]


def _settings(verb: str, rest: deque[str]) -> tuple[list[str], list[str]]:
    """The flags of a verb with their values, and the words that belong to none."""
    known = known_types(verb)
    flags: list[str] = []
    loose: list[str] = []
    while rest:
        word = rest.popleft()
        flag, equals, value = word.partition("=")
        name = _name(flag)
        if not _is_flag(word):
            loose.append(word)
        elif word in HELP or name.startswith("print_"):
            flags.append("--" + name + equals + value if name.startswith("print_") else word)
        elif (kind := known.get(name.removesuffix("+"))) is None or not flag.startswith("--"):
            raise InputError(f"{verb} has no setting {flag}; {_nearest('--' + name, [f'--{name}' for name in known])}.")
        elif name == "debug":
            flags.append("--debug")
        elif kind == "bool":
            value = value if equals else rest.popleft() if rest and rest[0] in ("true", "false") else "true"
            flags.append(f"--{name}={value}")
        else:
            values = [value] if equals else _following(flag, kind, rest, known)
            flags.append(f"--{name}={_list(flag, kind, values) if name in known else values[0]}")
    return flags, loose


def known_types(verb: str) -> dict[str, str]:
    """Name -> type of what a verb takes by name, as the dataclass of its settings has it."""
    types = {
        field.name: str(field.type) for field in fields(VERBS[verb][0]) if (verb, field.name) != ("report", "dirs")
    }
    return {**types, "config": "str", "debug": "bool"}


def _name(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _is_flag(word: str) -> bool:
    return re.match(r"--?[^\W\d]", word) is not None


def _following(flag: str, kind: str, rest: deque[str], known: dict[str, str]) -> list[str]:
    """Take the value of a setting, or the values of a list, from the words behind it."""
    if not rest or rest[0] in HELP or (rest[0].startswith("--") and _name(rest[0].partition("=")[0]) in known):
        then = f"; write {flag}={rest[0]} if {rest[0]} is meant as the value" if rest else "; add it"
        raise InputError(f"{flag} has no value{then}.")
    values = [rest.popleft()]
    while "list" in kind and rest and not _is_flag(rest[0]):
        values.append(rest.popleft())
    return values


def _list(flag: str, kind: str, values: list[str]) -> str:
    """The value of a setting as JSON where it is a list."""
    if "list" not in kind:
        return values[0]
    text = " ".join(values).strip()
    if text.startswith("[") or (text == "null" and "None" in kind):
        return text
    if kind == "list[str]":  # names, which hold no commas
        values = [part for value in values for part in value.split(",") if part]
    if kind not in NUMBERS:
        return json.dumps(values, ensure_ascii=False)
    numbers = [part for part in re.split(r"[\s,]+", text) if part]
    if not numbers or not all(re.fullmatch(NUMBERS[kind], part) for part in numbers):
        raise InputError(f"{flag} is {text!r}, but must be {MEANT[kind]}.")
    return json.dumps([json.loads(part.lstrip("+")) for part in numbers])


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}" if close else f"the known ones are {', '.join(known)}"


def parse(argv: Sequence[str]) -> tuple[str, Any]:
    """The verb and its settings.

    Raises:
        InputError: an unknown verb or flag, a wrong value, an unreadable YAML file, a required setting left out.
    """
    words = normalise(argv)
    try:
        namespace = build_parser().parse_args(words)
    except SystemExit:
        raise
    except Exception as error:  # jsonargparse reports every mistake of the user through several classes
        raise InputError(_explained(error, words)) from error
    verb = namespace.verb
    values = {k: v for k, v in vars(namespace[verb]).items() if k not in {"config", "debug"}}
    settings = VERBS[verb][0](**values)
    for name in REQUIRED[verb]:
        if not getattr(settings, name):
            flag = "a run folder" if name == "dirs" else f"--{name}"
            raise InputError(f"{verb} needs {flag}; tokendeep {verb} --help explains it.")
    return verb, settings


def _explained(error: Exception, words: Sequence[str]) -> str:
    """What the parser found wrong, in one sentence with the way to put it right; no text of a file."""
    said = str(error)
    verb = next(word for word in words if word in VERBS)
    known = known_types(verb)
    files = ", ".join(word.partition("=")[2] for word in words if word.startswith("--config="))
    if missing := re.search(r"File does not exist: '([^']*)'", said):
        return f"There is no file {missing[1]}; check what --config names."
    if unknown := re.search(r"does not accept option '([^']+)'", said):
        names = [name for name in known if name not in ("config", "debug")]
        return f"{files}: {verb} has no setting {unknown[1][:40]}; {_nearest(_name(unknown[1]), names)}."
    key = re.search(r'[Kk]ey "(?:\w+\.)?(\w+)', said)
    if key and key[1] != "config" and (meant := MEANT.get(known.get(key[1], ""))):
        value = re.search(r"(?:Got value|Given value): (.*)", said)
        return f"--{key[1]} is {value[1][:40] if value else 'something else'}, but must be {meant}."
    if files:
        line = re.search(r"line \d+", said)
        where = f"{files}, {line[0]}" if line else files
        return f"{where}: holds no settings that can be read; write UTF-8 text with lines such as seed: 1."
    return (re.sub(r"\s+", " ", said).strip().rstrip(".") or "The command line could not be read") + "."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    quiet()
    warn()
    try:
        verb, settings = parse(words)
        run: Callable[[Any], object] = importlib.import_module(f".verbs.{VERBS[verb][1]}", __package__).run
        run(settings)
    except KeyboardInterrupt:
        print("tokendeep: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (*FULL, *DENIED):
            raise
        if "--debug" in words:
            raise
        print(f"tokendeep: {_said(error)}", file=sys.stderr)
        return 2
    return 0


def _said(error: Exception) -> str:
    if not isinstance(error, OSError):
        return " ".join(str(error).split())
    path = error.filename or "the output folder"
    if error.errno in FULL:
        return f"the disk of {path} is full; free some space or give another --out, then call again."
    return f"there is no permission to read or write {path}; change it or give another --out, then call again."


def warn() -> None:
    """Our own warnings on the terminal, whatever a library does to the root logger (Inspect hides all but errors)."""
    ours = logging.getLogger(__package__)
    ours.setLevel(logging.WARNING)
    if not any(isinstance(handler, _Terminal) for handler in ours.handlers):
        ours.addHandler(_Terminal())


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"tokendeep: {record.getMessage()}", file=sys.stderr)


def quiet() -> None:
    """Keep the libraries' own banners and progress bars off the terminal, and their telemetry off the network."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
