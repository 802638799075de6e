from __future__ import annotations

import html
import re
import unicodedata
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from cedkv.report import escape

TEXT = st.text(st.characters())  # surrogates and control characters among them
MARKUP = st.text("`*_[]()#~$!|\\<>&@:./-+=\n\t \"'ab1w", max_size=40)


@given(TEXT)
def test_plain_text_is_one_line_of_visible_characters(text):
    shown = escape.plain(text)
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
    assert len(shown.splitlines()) <= 1
    shown.encode()


def test_hidden_characters_are_spelled_out():
    assert escape.plain("a\nb\tc\x1b[31m") == r"a\nb\tc\x1b[31m"
    assert escape.plain("\u202eabc\u2028\ud800\U000e0001") == r"\u202eabc\u2028\ud800\U000e0001"
    assert escape.plain("naïve 東京 👍") == "naïve 東京 👍"


def test_long_text_is_cut_with_a_mark():
    assert escape.plain("abcdef", 6) == "abcdef"
    assert escape.plain("abcdefg", 6) == "abcde…"


@given(MARKUP | TEXT)
def test_markdown_renders_as_the_text_itself_and_nothing_else(text):
    """Rendered by a GitHub-flavoured parser with links and HTML on, a table cell shows exactly the plain text."""
    parser = MarkdownIt("gfm-like", {"linkify": False, "html": True})
    page = parser.render(f"| head |\n| --- |\n| x {escape.markdown(text)} x |\n")
    cells = re.findall(r"<td>(.*?)</td>", page, flags=re.DOTALL)
    assert len(cells) == 1
    assert "<" not in cells[0]
    assert html.unescape(cells[0]) == f"x {escape.plain(text)} x"


@pytest.mark.parametrize("text", ["http://a.b", "www.a.b", "HTTPS://a.b", "a@b.c"])
def test_no_link_comes_about_by_itself(text):
    shown = escape.markdown(text)
    assert "://" not in shown
    assert "www." not in shown.lower()
    assert "@" not in shown
    assert html.unescape(shown) == text


@given(TEXT | MARKUP)
def test_markup_is_text_to_an_xml_parser(text):
    page = ET.fromstring(f'<a b="{escape.markup(text)}">{escape.markup(text)}</a>')  # noqa: S314 (our own)
    assert page.text == (escape.plain(text) or None)
    assert page.get("b") == escape.plain(text)
    assert len(page) == 0


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("東京", 4), ("e\u0301", 1), ("", 0)])
def test_width_is_what_a_terminal_shows(text, columns):
    assert escape.width(text) == columns
