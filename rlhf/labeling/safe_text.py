"""Shows text that anyone may have written: Markdown as HTML in which nothing runs and nothing is invisible.

Raw HTML and entities stay text. Links and images are shown as their text and address, and load nothing. No attribute of
the HTML has its value from the text. Nothing that was written is left out: a labeler judges all of it.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_block.table import escapedSplit
from markdown_it.token import Token
from markupsafe import Markup

LONGEST = 30_000  # characters; a longer text is shown as it is, since parsing a hostile one takes a second
DEEPEST = 60  # lists in lists; the parser drops what is deeper
HEADING_LEVELS = 3  # of the page, above the headings of a text
JOINERS = "\u200c\u200d"  # letters of Arabic and Indic scripts, and parts of emoji, are joined or kept apart by these
BLANKS = "\u115f\u1160\u2800\u3164\uffa0"  # letters without ink
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    f"{BLANKS}\ud800-\udfff\U000e0000-\U000e0fff]"
)


def shown(text: str, breaks: bool = True) -> Markup:
    """Returns Markdown as safe HTML. What is too long or too deep for the parser is shown without Markdown.

    Args:
        breaks: lines end where they end in the text, as in most answers of models. Markdown itself joins them.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > LONGEST:
        return shown_plain(text)
    # Hidden characters are replaced before parsing, since the parser drops or changes some of them.
    markdown = _markdown(breaks)
    tokens = markdown.parse(_escape_hidden(text))
    if any(token.level >= DEEPEST - 2 for token in tokens) or _has_lost_cells(tokens, text.split("\n")):
        return shown_plain(text)
    return Markup(_with_marks(markdown.renderer.render(tokens, markdown.options, {})))


def shown_plain(text: str) -> Markup:
    """Returns text as safe HTML that keeps its lines and spaces."""
    return Markup(f'<pre class="plain">{_with_marks(escapeHtml(_escape_hidden(text)))}</pre>')


def shown_line(text: str, length: int = 120) -> Markup:
    """Returns the beginning of a text in one line, as safe HTML."""
    line = " ".join(text[: 2 * length].split())
    line = line if len(line) <= length else line[:length].rstrip() + "…"
    return Markup(_with_marks(escapeHtml(_escape_hidden(line))))


def is_long(text: str) -> bool:
    """Returns True if the text is folded at first: more than about a screen of a phone."""
    return len(text) > 1500 or text.count("\n") > 22


# Private-use characters that stand for a hidden character from before parsing to after it: the digits between the
# brackets are its code point. A text that has these characters itself has them escaped in the same way.
_OPEN, _CLOSE = "\U0010fff0", "\U0010fff1"
_ESCAPED = re.compile(f"{_OPEN}([0-9A-F]{{1,6}}){_CLOSE}")


def _escape_hidden(text: str) -> str:
    text = re.sub(f"[{_OPEN}{_CLOSE}]", lambda match: f"{_OPEN}{ord(match.group()):X}{_CLOSE}", text)
    return HIDDEN.sub(lambda match: _escaped(text, match), text)


def _escaped(text: str, match: re.Match[str]) -> str:
    character, at = match.group(), match.start()
    if character in JOINERS and _joins(text[at - 1 : at]) and _joins(text[at + 1 : at + 2]):
        return character
    return f"{_OPEN}{ord(character):X}{_CLOSE}"


def _joins(neighbor: str) -> bool:
    """Returns True for a letter of a script with joiners, or a part of an emoji."""
    return neighbor > "\u0600" and not HIDDEN.match(neighbor)


def _with_marks(html: str) -> str:
    return _ESCAPED.sub(lambda match: _mark(int(match.group(1), 16)), html)


@lru_cache(1024)
def _mark(code: int) -> str:
    name = unicodedata.name(chr(code), "invisible character").lower()
    return f'<span class="mark" title="{escapeHtml(name)}">U+{code:04X}</span>'


def _has_lost_cells(tokens: Sequence[Token], lines: Sequence[str]) -> bool:
    """Returns True if a row of a table has more cells than its head; the parser drops these."""
    for at, token in enumerate(tokens):
        if token.type == "table_open" and token.map:
            head = next(i for i in range(at, len(tokens)) if tokens[i].type == "thead_close")
            columns = sum(one.type == "th_open" for one in tokens[at:head])
            rows = (
                escapedSplit(line.strip(" \t>").removeprefix("|").removesuffix("|"))
                for line in lines[token.map[0] + 2 : token.map[1]]
            )
            if any(len(row) > columns for row in rows):
                return True
    return False


def _link_open(renderer, tokens: Sequence[Token], at: int, options, env) -> str:
    return '<span class="link">'


def _link_close(renderer, tokens: Sequence[Token], at: int, options, env) -> str:
    """Closes a link with its address in parentheses, if its text is another."""
    start = next(i for i in range(at, -1, -1) if tokens[i].type == "link_open")
    address = str(tokens[start].attrs.get("href", ""))
    text = "".join(token.content for token in tokens[start + 1 : at])
    title = tokens[start].attrs.get("title")
    same = text in (address, address.removeprefix("mailto:")) and not title
    return "</span>" if same else "</span>" + _address(address, title)


def _image(renderer, tokens: Sequence[Token], at: int, options, env) -> str:
    token = tokens[at]
    alt = renderer.renderInlineAsText(token.children, options, env) or "no description"
    address = _address(token.attrs.get("src", ""), token.attrs.get("title"))
    return f'<span class="link">[image: {escapeHtml(alt)}]</span>{address}'


def _address(address: object, title: object) -> str:
    text = f'{address} "{title}"' if title else f"{address}"
    text = HIDDEN.sub(lambda match: _mark(ord(match.group())), escapeHtml(text))  # the parser reads entities in it
    return f'<span class="address"> ({text})</span>'


def _code(renderer, tokens: Sequence[Token], at: int, options, env) -> str:
    """Returns a block of code, with the language that the text names. It can be focused: the arrow keys scroll it."""
    language = f'<span class="language">{escapeHtml(tokens[at].info.strip())}</span>' if tokens[at].info else ""
    return f'<pre tabindex="0">{language}<code>{escapeHtml(tokens[at].content)}</code></pre>\n'


def _tidy(state) -> None:
    """Puts headings below those of the page, and drops attributes: the page's policy forbids styles in them."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + HEADING_LEVELS)}"
        elif token.type in ("th_open", "td_open"):
            align = str(token.attrs.get("style", "")).removeprefix("text-align:")
            token.attrs = {"class": align} if align in ("left", "center", "right") else {}


@cache
def _markdown(breaks: bool) -> MarkdownIt:
    # markdown-it refuses addresses such as javascript: and keeps their Markdown as text.
    options = {"html": False, "xhtmlOut": False, "breaks": breaks, "maxNesting": DEEPEST}
    markdown = MarkdownIt("commonmark", options).enable(["table", "strikethrough"]).disable(["entity", "reference"])
    markdown.core.ruler.push("tidy", _tidy)
    rules = {"link_open": _link_open, "link_close": _link_close, "image": _image, "fence": _code, "code_block": _code}
    for name, rule in rules.items():
        markdown.add_render_rule(name, rule)
    return markdown
