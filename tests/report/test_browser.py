"""The page in a real browser: quiet, offline, sortable, zoomable, readable by eye, keyboard and screen reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from udaseg.figures import NAMES
from udaseg.report.report import FIGURES

Watch = Callable[..., Any]
PHONE = {"width": 360, "height": 740}
A4 = {"width": 703, "height": 1000}  # 186 mm: the paper without its margins

# contrast of every text with the background behind it (WCAG 2), below 4.5
FAINT = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const out = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const [a, b] = [luminance(parse(getComputedStyle(node).color)), luminance(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    seen += 1;
    if (ratio < 4.5) out.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim()}`);
  }
  return { seen, out };
}"""

UNNAMED = """() => {
  const out = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const text = (node) => node.textContent.trim() || node.getAttribute("aria-label");
  for (const image of all("img")) if (!image.alt) out.push("image without alt");
  for (const table of all("table")) {
    if (!table.caption?.textContent.trim()) out.push("table without caption");
    for (const head of table.querySelectorAll("th")) if (!head.scope) out.push(`no scope: ${head.textContent}`);
  }
  for (const node of all("button, a, summary")) if (!text(node)) out.push(`no name: ${node.outerHTML}`);
  for (const node of all("[role=region], nav, section")) {
    const label = node.getAttribute("aria-label") || document.getElementById(node.getAttribute("aria-labelledby"));
    if (!label) out.push(`region without name: ${node.outerHTML.slice(0, 80)}`);
  }
  const levels = all("h1, h2, h3, h4").filter((node) => !node.closest("dialog")).map((node) => Number(node.tagName[1]));
  levels.forEach((level, k) => { if (level > (levels[k - 1] ?? 0) + 1) out.push(`heading ${k} jumps to h${level}`); });
  if (levels.filter((level) => level === 1).length !== 1) out.push("not one h1");
  const ids = all("[id]").map((node) => node.id);
  if (new Set(ids).size !== ids.length) out.push("an id twice");
  if (!document.documentElement.lang || !document.title) out.push("no language or title");
  for (const landmark of ["header", "nav", "main"]) if (all(landmark).length !== 1) out.push(`not one ${landmark}`);
  return out;
}"""


def names(page: Any, table: str = "classes", column: int = 0) -> list[str]:
    return [
        cell.inner_text() for cell in page.query_selector_all(f"#{table}-table tbody tr > :nth-child({column + 1})")
    ]


def head(page: Any, name: str, table: str = "classes") -> Any:
    return page.locator(f"#{table}-table th[scope=col]", has_text=name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_opens_quietly_with_every_figure_and_without_sideways_scrolling(
    watch: Watch, finished: Path, width: int, scheme: str
) -> None:
    page = watch(finished, viewport={"width": width, "height": 740}, color_scheme=scheme)
    widths = page.evaluate("[...document.querySelectorAll('figure img')].map((image) => image.naturalWidth)")
    assert widths == [400] * len(NAMES)
    for section in page.locator("details > summary").all():
        section.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    faint = page.evaluate(FAINT)
    assert faint["seen"] > 200 and not faint["out"]


def test_sorts_by_click_numbers_first_falling_then_rising(watch: Watch, finished: Path) -> None:
    page = watch(finished)
    before = names(page)
    column = head(page, "self_training")
    assert column.get_attribute("aria-sort") is None
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    assert names(page) == ["sky", "Gehweg & <b>Bäume</b>", "road", "fog"] != before
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "ascending"
    # 8.5 before 30.5: by number, not by text; a class without a value stays last
    assert names(page) == ["road", "Gehweg & <b>Bäume</b>", "sky", "fog"]
    head(page, "class").locator("button").click()
    assert column.get_attribute("aria-sort") is None and names(page)[0] == "fog"


def test_sorts_by_keyboard(watch: Watch, finished: Path) -> None:
    page = watch(finished)
    button = head(page, "mIoU %", "methods").locator("button")
    button.focus()
    page.keyboard.press("Enter")
    assert names(page, "methods") == ["oracle", "source_only", "self_training"]
    page.keyboard.press("Space")
    assert names(page, "methods") == ["self_training", "source_only", "oracle"]
    assert button.evaluate("node => node === document.activeElement")


def test_zoom_opens_by_keyboard_closes_with_escape_and_gives_the_focus_back(watch: Watch, finished: Path) -> None:
    page = watch(finished)
    opener = page.get_by_role("button", name="Enlarge: Features as a map")
    opener.focus()
    page.keyboard.press("Enter")
    zoom = page.get_by_role("dialog", name="Features as a map")
    zoom.wait_for()
    shown = zoom.locator("img")
    assert shown.evaluate("node => node.naturalHeight") == 200 + 10 * NAMES.index("tsne") and shown.get_attribute("alt")
    page.keyboard.press("Escape")
    zoom.wait_for(state="hidden")
    assert opener.evaluate("node => node === document.activeElement")


def test_zoom_shows_the_full_size_and_closes_by_button(watch: Watch, finished: Path) -> None:
    page = watch(finished, viewport=PHONE)
    page.get_by_role("button", name="Enlarge: Gain over self-training").click()
    size = page.get_by_role("button", name="Full size")
    assert page.locator("dialog img").bounding_box()["width"] <= 360 and size.get_attribute("aria-pressed") == "false"
    size.click()
    assert page.locator("dialog img").bounding_box()["width"] == 400 and size.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Close").click()
    page.locator("dialog").wait_for(state="hidden")


def test_screen_readers_find_names_captions_and_order(watch: Watch, finished: Path) -> None:
    page = watch(finished)
    for section in page.locator("details > summary").all():
        section.click()
    assert page.evaluate(UNNAMED) == []


def test_screen_readers_hear_names_without_signs_and_what_a_figure_shows(watch: Watch, finished: Path) -> None:
    """In Chromium's own accessibility tree."""
    page = watch(finished)
    head(page, "self_training").locator("button").click()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    buttons = {
        node["name"]["value"]: node.get("description", {}).get("value", "")
        for node in nodes
        if node.get("role", {}).get("value") == "button"
    }
    assert {"class", "self_training", "mIoU %"} <= set(buttons) and not re.search("[↕▲▼]", "".join(buttons))
    for title, alternative in FIGURES.values():
        assert buttons[f"Enlarge: {title}"] == alternative


def test_the_first_tab_skips_to_the_results(watch: Watch, finished: Path) -> None:
    page = watch(finished)
    page.keyboard.press("Tab")
    link = page.get_by_role("link", name="Skip to the results")
    assert link.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.wait_for_url("**/report.html#main")  # a moment later on a busy machine


def test_without_scripts_everything_is_there(watch: Watch, finished: Path) -> None:
    page = watch(finished, java_script_enabled=False)
    assert page.locator("figure img").count() == len(NAMES) and page.locator("button:visible").count() == 0
    assert "source_only" in page.locator("#methods-table").inner_text()


def test_on_paper_nothing_is_cut_and_the_ink_is_dark(watch: Watch, finished: Path) -> None:
    page = watch(finished, viewport=A4, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= A4["width"]
    assert not page.locator("nav").is_visible()
    closed = page.locator("details:not([open]) :is(pre, p, td)").all()
    assert len(closed) > 20 and all(node.evaluate("node => node.checkVisibility()") for node in closed)
    cut = "all => all.filter((node) => node.scrollWidth > node.clientWidth).length"
    assert page.eval_on_selector_all("pre", cut) == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.evaluate(FAINT)["out"]
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_column_names_are_repeated_on_each_sheet(watch: Watch, finished: Path) -> None:
    """Chromium repeats text of a table's head, and no box in it that is positioned or a button (seen in printed pages)."""
    page = watch(finished, viewport=A4)
    page.emulate_media(media="print")
    boxes = """() => [...document.querySelectorAll("thead, thead *")].filter((node) => {
        const style = getComputedStyle(node);
        return style.display !== "contents" && (style.position !== "static" || node.tagName === "BUTTON");
    }).length"""
    heads = page.eval_on_selector_all("thead", "all => all.map((node) => getComputedStyle(node).display)")
    assert len(heads) > 3 and set(heads) == {"table-header-group"} and page.evaluate(boxes) == 0


def test_figures_have_the_width_of_a_desktop(watch: Watch, finished: Path) -> None:
    page = watch(finished, viewport={"width": 1440, "height": 900})
    right = "node => node.getBoundingClientRect().right"
    assert page.locator(".figures").evaluate(right) == page.locator("main h2").first.evaluate(right)
