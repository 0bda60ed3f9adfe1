"""Code in an answer: where it stands, and whether anybody speaks in it.

Knows the look of code in general, and no programming language.
"""

import re
from collections.abc import Callable

FENCE = re.compile(r"(```.*?(?:```|\Z))", re.DOTALL)
_LANGUAGE = re.compile(r"```[\w+-]*\s")  # behind the opening of a fence
_LINE = re.compile(
    r"\s*(?:def |class |import |from \w+ import|return\b|for .+:|if .+:|while .+:|with .+:|try:|else:|except\b.*:"
    r"|raise \w+\(|throw new |select |insert |update |create table"
    r"|const |let (?!us |me )|var |function\b|public |#include|<\w+[^>]*>|[\w.\[\]'\"]+ ?=[^=]|[\w.]+\(.*\)[;:]?\s*$"
    r"|.*[;{}]\s*$)",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"^[ \t]*(?:#|//|--|/\*|\*)+[^\n]*", re.MULTILINE)
_STRING = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'")
_MARK = re.compile(r"^\s*(?:#!.*|#+|//+|--+|/?\*+/?)|\*/\s*$")
_SAYS = re.compile(
    r"\s*(?:print|echo|console\.log|return|write-host)\b\W{0,5}?[\"'](.{1,1000})[\"']\W{0,5}$", re.IGNORECASE
)
# Lines that do nothing: a frame around what is said.
_IDLE = re.compile(r"\s*(?:#!|def |function\b|pass\b|return\s*$|exit\b|import |if __name__|main\(\)|[{}]|$)")


def is_code(text: str) -> bool:
    """Whether the text holds a code block, or every second line of it looks like code."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "```" in text or sum(bool(_LINE.match(line)) for line in lines) >= 0.5 * len(lines)


def is_program(text: str) -> bool:
    """Whether several lines are code without a fence around it."""
    return "```" not in text and "\n" in text.strip() and is_code(text)


def unwrap(text: str) -> str:
    """What is said by a text that is all fence, comments and print statements around it; any other text as it is."""
    whole = text.strip()
    start = _LANGUAGE.match(whole)
    inner = whole[start.end() :].removesuffix("```") if start else text
    if "```" in inner or not (start or is_program(text)):
        return text
    lines = inner.split("\n")
    said = [_said(line) for line in lines]
    if any(said) and all(words or _IDLE.match(line) for words, line in zip(said, lines, strict=True)):
        return "\n".join(filter(None, said))
    return text if is_code(inner) else inner


def hide_words(code: str, hide: Callable[[re.Match[str]], str]) -> str:
    """Code without a fence, with its comments and the texts in its lines hidden."""
    lines = (_STRING.sub(hide, line) if _LINE.match(line) else line for line in code.split("\n"))
    return _COMMENT.sub(hide, "\n".join(lines))


def _said(line: str) -> str:
    """The words of a comment or of what a line prints."""
    if printed := _SAYS.match(line):
        return printed[1]
    return _MARK.sub("", line).strip() if _COMMENT.match(line) and not line.startswith("#!") else ""
