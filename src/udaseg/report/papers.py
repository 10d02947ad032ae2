"""What differs from the papers: the sections of docs/methods/*.md that say so, as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from udaseg import recipes
from udaseg.params import Run

DOCS = Path("docs/methods")
SECTION = re.compile("departures|deviations", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    name: str  # file without ending
    title: str
    body: Markup | None  # None: the page has no such section, or is not in this folder
    used_by: tuple[str, ...]


def pages(run: Run) -> list[str]:
    """Which pages tell about a run: its own, those of its terms, that of the step it stands on. A paper may have none."""
    own = run.method_name.split("-")[0]
    names = [recipes.papers()[name].page or name for name in (own, *run.method.terms, run.kind)]
    return [name for name in dict.fromkeys(names) if (DOCS / f"{name}.md").is_file() or not DOCS.is_dir()]


def read_all(runs: Sequence[Run], address: str) -> list[Page]:
    """Each page once, in the order of the runs.

    Args:
        address: of docs/methods, seen from the report.
    """
    used: dict[str, list[str]] = {}
    for run in runs:
        for name in pages(run):
            used.setdefault(name, []).append(run.method_name)
    return [read(name, tuple(methods), address) for name, methods in used.items()]


def read(name: str, used_by: tuple[str, ...], address: str) -> Page:
    path = DOCS / f"{name}.md"
    if not path.is_file():
        return Page(name, name, None, used_by)
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(path.read_text(encoding="utf-8"))
    heads = [k for k, token in enumerate(tokens) if token.type == "heading_open"]
    title = tokens[heads[0] + 1].content if heads else name
    for start in heads:
        heading, level = tokens[start + 1].content, tokens[start].tag
        if SECTION.search(heading):
            end = next((k for k in heads if k > start and tokens[k].tag <= level), len(tokens))
            section = adapt(tokens[start + 3 : end], f"{title}: {heading}", f"{address}/{path.name}")
            return Page(name, title, Markup(markdown.renderer.render(section, markdown.options, {})), used_by)
    return Page(name, title, None, used_by)


def adapt(tokens: list[Token], caption: str, page: str) -> list[Token]:
    """Tables with a caption, in a region that scrolls; links that lead from the report to where those of `page` lead."""
    out: list[Token] = []
    for token in tokens:
        if token.type == "table_open":
            region = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
            out += [html(region), token, html(f"<caption>{escape(caption)}</caption>")]
        elif token.type == "table_close":
            out += [token, html("</div>")]
        else:
            out.append(token)
        if token.type == "th_open":
            token.attrs["scope"] = "col"
        if token.type in ("th_open", "td_open"):
            token.attrs.pop("style", None)  # the page allows no inline style
        for child in token.children or []:
            link = str(child.attrs.get("href", ""))
            if link and not re.match(r"[a-z]+:", link):
                child.attrs["href"] = page + link if link.startswith("#") else f"{page.rpartition('/')[0]}/{link}"
    return out


def html(content: str) -> Token:
    return Token("html_block", "", 0, content=content)
