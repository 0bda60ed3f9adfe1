"""The command line: flags and YAML files -> the options of a verb -> its plan -> the work. Nothing else.

Bad input ends with one sentence and exit code 2 (`--debug` shows the traceback before it), Ctrl-C with 130, any other error with
its traceback and 70; 1 is a gate's no and nothing else.
"""

import importlib
import logging
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from inspect import BoundArguments
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from attrs import evolve
from cyclopts import App, ArgumentCollection, CycloptsError, Group, Parameter, Token, convert, exceptions
from cyclopts.help import DefaultFormatter

from tokendeep import __version__, plain, runs
from tokendeep.errors import InputError, did_you_mean, explain, nearest
from tokendeep.models.options import number, whole_number
from tokendeep.verbs import VERBS
from tokendeep.verbs.common import advanced, check_text, meaning, output, typed, yaml_settings

HELP = ("-h", "--help")
FAULT = 70  # the exit code of an error that nobody foresaw, as sysexits.h has it (EX_SOFTWARE)
PIPE = 141  # the exit code of a program that is stopped because nobody reads what it prints
UNFORESEEN = (
    f"ended by an error that it does not know, most likely a fault of its own (exit code {FAULT}); the lines above say where, "
    "and can quote texts of your data."
)
NUMBERS: dict[Any, Callable[[str], object]] = {int: whole_number, float: number}
ALONE = (*HELP, "--version", "--install-completion")  # what needs no verb


class Help(DefaultFormatter):
    """The help of a verb; `--no-switch` is told only of what is on by itself."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        entries = [entry if entry.default == "True" else evolve(entry, negative_names=()) for entry in panel.entries]
        super().__call__(console, options, evolve(panel, entries=entries))


def converted(hint: Any, tokens: Sequence[Token]) -> object:
    """What words of the command line are as a value: null is none; a whole number is not rounded, no number is infinite."""
    if tokens[0].value == "null" and type(None) in get_args(hint):
        return None
    plain = next((kind for kind in get_args(hint) if kind is not type(None)), hint)
    if plain in NUMBERS:
        return NUMBERS[plain](tokens[0].value)
    return convert(hint, tokens)


def shown(default: object) -> str | None:
    """A default in the help; nothing for what is off or empty."""
    if isinstance(default, list):
        return ",".join(map(str, default)) or None
    return None if default is None or default is False or default == "" else str(default)


COMMON = Parameter(
    show_default=shown, converter=converted, consume_multiple=1, negative_iterable=(), allow_repeating=True, json_list=False
)  # fmt: skip


def options_of(verb: str) -> type:
    """The dataclass of a verb's options."""
    module = importlib.import_module(VERBS[verb][0])
    kind: type = getattr(module, f"{verb.capitalize()}Options")
    return kind


def command(verb: str) -> Callable[..., object]:
    """What the parser calls for a verb: plan, and then print the plan or do the work; returns what the work does."""
    module = importlib.import_module(VERBS[verb][0])

    def call(options: Any, *, config: Any = None, dry_run: Any = False, debug: Any = False) -> object:
        plan = module.plan(options)
        if not dry_run:
            return module.run(plan)
        print("\n".join(plan.lines()))
        return None

    kind = options_of(verb)
    if all(field.default is not MISSING or field.default_factory is not MISSING for field in fields(kind)):
        call.__defaults__ = (kind(),)
    call.__doc__ = kind.__doc__
    call.__annotations__ = {
        "options": Annotated[kind, Parameter(name="*")],
        "config": Annotated[str | None, output(help="YAML file with any of these options; flags override it.")],
        "dry_run": Annotated[bool, output(help="Check everything and print what would be done; write nothing.")],
        "debug": Annotated[bool, advanced(help="Show the traceback of an error.")],
    }
    return call


def build(*used: str) -> App:
    """The parser of all verbs: it imports those that are `used`, and knows one line of the others."""
    app = App(
        name="tokendeep",
        help="Measure, attack, deepen and protect how many tokens deep a chat model's safety goes.",
        version=__version__, default_parameter=COMMON, help_formatter=Help(), config=read_yaml,
        group_commands=Group("Verbs", sort_key=1), exit_on_error=False, print_error=False,
        suppress_keyboard_interrupt=False, result_action="return_value",
    )  # fmt: skip
    app.register_install_completion_command()
    for place, (verb, (_, summary)) in enumerate(VERBS.items()):
        sub = App(name=verb, help=None if verb in used else summary, sort_key=place, version_flags=())
        if verb in used:
            sub.default(command(verb))
        app.command(sub)
    return app


# --- words and files -> options ------------------------------------------------------------------


def parse(words: Sequence[str]) -> tuple[Callable[..., object], BoundArguments]:
    """What is to be called for a command line, and with which arguments; the options of a verb are the first.

    Raises:
        InputError: an unknown verb or option, a wrong value, an unreadable YAML file, a required option left out.
    """
    for word in words:
        check_text(word, "The command line")
    words = words[:1] if words and words[0] in HELP else words
    verb = _verb(words)
    app = build(*([verb] if verb else VERBS if "--install-completion" in words else []))
    try:
        function, bound, _ = app.parse_args(_joined(words, verb) if verb else words)
    except CycloptsError as error:
        raise InputError(_sentence(error, verb or "tokendeep", words)) from error
    return function, bound


def _verb(words: Sequence[str]) -> str | None:
    """The verb of a command line; None for what needs none, such as --help."""
    for word in words:
        if word in VERBS:
            return word
        if not word.startswith("-"):
            raise InputError(f"There is no verb {word!r}; {did_you_mean(word, VERBS)}.")
        if word in ALONE:
            return None
        if word != "--debug":
            raise InputError(f"{word} stands where the verb should; write tokendeep VERB {word} ...")
    raise InputError(f"No verb given; choose one of {', '.join(VERBS)} (tokendeep --help says more).")


def _joined(words: Sequence[str], verb: str) -> list[str]:
    """The words from the verb on, with `--switch true` as `--switch=true` and `--text "- one"` as `--text=- one`."""
    hints = {**get_type_hints(options_of(verb)), "config": str, "dry_run": bool, "debug": bool}
    kinds = {f"--{name.replace('_', '-')}": hint for name, hint in hints.items()}
    joined: list[str] = []
    for word in words[words.index(verb) :]:
        kind = kinds.get(joined[-1].replace("_", "-")) if joined else None
        if word in ("true", "false") if kind is bool else kind and get_origin(kind) is not list and _dashed(word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _dashed(word: str) -> bool:
    """Whether a word begins with a dash and is no option."""
    return word.startswith("-") and word not in HELP and not re.match(r"--[\w-]+(=|$)", word)


def read_yaml(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Take from the file that `--config` names what no flag has set.

    Raises:
        InputError: no such file, no mapping of options, an unknown option or a value of another type.
    """
    by_name = {argument.field_info.name: argument for argument in arguments}
    if "config" not in by_name or not (tokens := by_name.pop("config").tokens):
        return
    path = tokens[-1].value
    for name in ("options", "dry_run", "debug"):
        del by_name[name]
    hints = get_type_hints(options_of(commands[0]), include_extras=True)
    for key, value in yaml_settings(path).items():
        name = str(key).replace("-", "_")
        if name not in by_name:
            raise InputError(f"{path}: {commands[0]} has no option {str(key)[:40]}; {did_you_mean(name, by_name)}.")
        argument = by_name[name]
        checked = typed(value, hints[name], f"{path}: {name}")
        if not argument.tokens:
            text = "" if isinstance(value, list) else str(value)  # cyclopts would take a list's text apart
            argument.append(Token(keyword=name, value=text, source=path, implicit_value=checked))


# --- mistakes -> one sentence --------------------------------------------------------------------


def _sentence(error: CycloptsError, verb: str, words: Sequence[str]) -> str:
    """What the parser found wrong, with the way to put it right."""
    token: Any = getattr(error, "token", None)
    if isinstance(error, exceptions.CoercionError) and error.argument:
        name, value = error.argument.name, " ".join(token.value for token in error.argument.tokens or [token])
        hint = error.argument.hint
        return f"{name} is {value[:40]!r}, but must be {meaning(hint)}{_near_choice(value, hint)}."
    if isinstance(error, exceptions.MissingArgumentError) and error.keyword:
        flag, following = error.keyword, words[words.index(error.keyword) + 1 :]
        remedy = f"write {flag}={following[0]} if {following[0]} is meant as the value" if following else "add it"
        return f"{flag} has no value; {remedy}."
    unknown = isinstance(error, exceptions.UnknownOptionError)
    loose = [token.keyword or token.value] if unknown else error.unused_tokens or []
    if flags := [word for word in loose if word.startswith("-")]:
        flag, names = flags[0].partition("=")[0], ["shell", "output"]
        if verb in VERBS:
            names = [*get_type_hints(options_of(verb)), "config", "dry-run", "debug"]
        known = [f"--{name}".replace("_", "-") for name in names]
        known.sort(
            key=lambda name: not name.startswith(f"--{flag.lstrip('-')[:1]}")
        )  # where the list is cut, these stay
        return f"{verb} has no option {flag}; {did_you_mean(flag.replace('_', '-'), known)}."
    if loose:
        return f"{verb} cannot tell what {loose[0]!r} is; give every option by its name (--data FILE)."
    if isinstance(error, exceptions.MissingArgumentError) and error.argument:
        return f"{verb} needs {error.argument.name}; tokendeep {verb} --help explains it."
    return " ".join(str(error).split())


def _near_choice(value: str, hint: Any) -> str:
    near = nearest(value, map(str, get_args(hint))) if get_origin(hint) is Literal else None
    return f"; did you mean {near}" if near else ""


# --- running -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    quiet()
    warn()
    options: object = None
    try:
        function, bound = parse(words)
        options = next(iter(bound.args), None)
        result = function(*bound.args, **bound.kwargs)
        leave()
        unread()
    except KeyboardInterrupt:
        close_bars()
        print("tokendeep: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        warn_of_replaced()
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and unread():
            return PIPE
        place = getattr(error, "filename", None) or getattr(options, "out", None) or "the output folder"
        known = error if isinstance(error, InputError) else explain(error, place)
        close_bars()
        if known is None or "--debug" in words:
            traceback.print_exception(error)
        if known is None:
            print(f"tokendeep: {UNFORESEEN}", file=sys.stderr)
            warn_of_replaced()
            return FAULT
        whole = plain.one_line(" ".join(str(known).split()))
        sentence = re.sub(r"\S{300,}", lambda word: f"{word[0][:120]}...{word[0][-60:]}", whole)
        print(f"tokendeep: {sentence}", file=sys.stderr)
        warn_of_replaced()
        return 2
    return result if isinstance(result, int) else 0  # the exit code of gate


def unread() -> bool:
    """Whether nobody reads what is printed any more, such as `head` when it has its lines; then the rest goes nowhere."""
    try:
        place, waiting = sys.stdout.fileno(), select.poll()
    except (AttributeError, OSError, ValueError):  # no stdout, or one that is no file; a system without poll
        return False
    waiting.register(place, 0)
    if gone := any(event & select.POLLERR for _, event in waiting.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return gone


def warn_of_replaced() -> None:
    """Say where the runs lie that this one was to replace."""
    for line in runs.set_aside():
        print(f"tokendeep: {line}", file=sys.stderr)


def close_bars() -> None:
    """End the lines of progress bars, so that what is said next stands on a line of its own."""
    if tqdm := sys.modules.get("tqdm"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()


def leave() -> None:
    """Close the connections to the other processes of a training; left open, a process may abort as it ends."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def warn() -> None:
    """Our own warnings on the terminal, whatever a library does to the root logger (Inspect hides all but errors)."""
    ours = logging.getLogger(__package__)
    ours.setLevel(logging.WARNING)
    if not any(isinstance(handler, _Terminal) for handler in ours.handlers):
        ours.addHandler(_Terminal())


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"tokendeep: {plain.neutralise(record.getMessage())}", file=sys.stderr)


def quiet() -> None:
    """Keep the libraries' own banners, bars and notes to developers off the terminal, their telemetry off the network."""
    on = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TRANSFORMERS_NO_ADVISORY_WARNINGS",
          "TRL_EXPERIMENTAL_SILENCE", "HF_HUB_DISABLE_TELEMETRY")  # fmt: skip
    values = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false", **dict.fromkeys(on, "1")}
    for name, value in values.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # such as of transformers, about what other libraries call
        warnings.simplefilter("ignore", FutureWarning)


if __name__ == "__main__":
    sys.exit(main())
