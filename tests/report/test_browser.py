"""The page in a real browser: quiet, on a phone, in the dark, and what a click shows."""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from hmt.report.publish import write_report
from hmt.report.sources import Material, add_figures
from tests.report.test_page import FIGURES, HOSTILE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: apt-get install --no-install-recommends chromium"
)

PHONE = """<!doctype html><meta charset="utf-8"><body style="margin:0"><link rel="icon" href="data:,">
<iframe id="phone" style="width:390px;height:800px;border:0" src="report.html"></iframe><pre id="seen"></pre>
<script>
phone.onload = () => {
  const page = phone.contentDocument;
  const seen = { width: phone.contentWindow.innerWidth, needed: page.documentElement.scrollWidth };
  const figure = page.getElementById("recall-book");
  const look = () => [...figure.querySelectorAll(".what, .panel .text")].map((one) => one.textContent);
  const cell = (row, column) => figure.querySelector(`.map rect[x="${column}"][y="${row}"]`);
  seen.before = look();
  cell(3, 1).dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  seen.hovered = look();
  cell(4, 2).dispatchEvent(new MouseEvent("click", { bubbles: true }));
  cell(3, 1).dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  seen.clicked = look();
  seen.address = phone.contentWindow.location.hash;
  cell(4, 2).focus();
  cell(4, 2).dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
  seen.walked = look();
  seen.label = page.activeElement.getAttribute("aria-label");
  page.querySelector("#perplexity details summary").click();
  page.querySelector("#perplexity .legend button").click();
  seen.hidden = page.querySelectorAll("#perplexity .line.off").length;
  setTimeout(() => {
    seen.numbers = page.querySelectorAll("#perplexity details tbody tr").length;
    document.getElementById("seen").textContent = JSON.stringify(seen);
  }, 100);
};
</script>
"""


class Site:
    """A folder with a report, and the paths that were asked of its server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                site.asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def browse(self, page: str, *flags: str) -> tuple[str, str]:
        """Open a page: what the browser printed (with --dump-dom the elements), and what its console said."""
        assert CHROMIUM is not None
        self.asked.clear()
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--v=0",
            "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={self.folder / 'browser'}", "--virtual-time-budget=5000", *flags,
            f"http://127.0.0.1:{self.server.server_port}/{page}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A report of small figures, served on loopback."""
    folder = tmp_path_factory.mktemp("site")
    material = Material()
    add_figures(material, "figures", FIGURES)
    write_report("A run", material, folder)
    (folder / "phone.html").write_text(PHONE)
    site = Site(folder)
    thread = threading.Thread(target=site.server.serve_forever, daemon=True)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()


def told(number: int) -> str:
    return f"text of segment {number} {HOSTILE}"


def test_the_page_is_quiet_and_asks_for_nothing_else(site: Site) -> None:
    dom, console = site.browse("report.html", "--dump-dom")
    assert dom.rstrip().endswith("</html>")
    assert console == ""
    assert site.asked == ["/report.html"]


def test_an_address_opens_a_cell_with_both_texts(site: Site) -> None:
    dom, console = site.browse("report.html#cell-recall-book-3-1", "--dump-dom")
    assert console == ""
    assert "Segment 3 recalls segment 1: weight 0.25" in dom
    shown = [html.unescape(text) for text in re.findall(r'<p class="text" tabindex="0">(.*?)</p>', dom, re.DOTALL)]
    assert shown == [told(3), told(1)]


def test_a_phone_needs_no_sideways_scrolling_and_a_finger_or_keys_choose_cells(site: Site) -> None:
    dom, console = site.browse("phone.html", "--dump-dom", "--window-size=800,900")
    assert console == ""
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert (seen["width"], seen["needed"]) == (390, 390)
    assert seen["before"][1:] == ["", ""]
    assert seen["hovered"] == ["Segment 3 recalls segment 1: weight 0.25", told(3), told(1)]
    assert seen["clicked"] == ["Segment 4 recalls segment 2: weight 0.1667", told(4), told(2)]  # a click stays
    assert seen["address"] == "#cell-recall-book-4-2"
    assert seen["walked"][1:] == [told(4), told(1)]
    assert seen["label"] == "Segment 4 recalls segment 1: weight 0.25"
    assert seen["numbers"] == 4
    assert seen["hidden"] == 1


def test_the_page_is_dark_where_its_reader_wants_it_dark(site: Site) -> None:
    corners = []
    for name, flags in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        file = site.folder / f"{name}.png"
        site.browse("report.html", f"--screenshot={file}", "--window-size=1000,900", *flags)
        with Image.open(file) as picture:
            corners.append(sum(picture.convert("RGB").getpixel((2, 2))) / 3)
            assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 100
    assert corners[0] > 240
    assert corners[1] < 40
