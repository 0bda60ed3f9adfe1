"""Names that others chose, as plain text in Markdown: no link, no markup, no mention of anybody."""

import pytest

from tokendeep.plain import markdown

NAMES = [
    "see https://example.org/x?y=1, www.example.org and ftp://example.org",
    "a@example.org asks @team about #12, GH-7 and owner/name#3",
    "costs $5 and $6, ~~not~~ *more* _than_ `that` <b>",
    "[a](http://example.org) ![b](c) | d",
]


def test_addresses_mentions_and_formulas_of_github_are_parted() -> None:
    assert markdown(NAMES[0]) == "see https\\://example.org/x?y=1, www\\.example.org and ftp\\://example.org"
    assert markdown("a@b.c, @d, #1") == "a@<!-- -->b.c, @<!-- -->d, \\#<!-- -->1"
    assert markdown("sft@tail") == "sft@tail"
    assert markdown("$5 ~~x~~") == r"\$5 \~\~x\~\~"


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_of_markdown_shows_the_name_itself(name: str) -> None:
    reader = pytest.importorskip("markdown_it").MarkdownIt("gfm-like")
    reader.linkify.set({"fuzzy_link": False})  # of bare names such as example.org GitHub makes no link
    [paragraph] = [one for one in reader.parse(markdown(name)) if one.type == "inline"]
    shown = [one for one in paragraph.children or [] if one.content != "<!-- -->"]
    assert {one.type for one in shown} == {"text"}
    assert "".join(one.content for one in shown) == name
