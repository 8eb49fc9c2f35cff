"""The report as a browser sees it: no error in the console, no request, every plot there, nothing wider than a phone.

The browser's own console and network logs are read, so nothing in the page takes part in the test. That both checks can
fail is itself tested, on a page with a broken script and files from elsewhere.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
ATTACK = "</svg></style><script>console.error('ran')</script><img src=http://127.0.0.1:9/x onerror=console.error(1)>"
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--v=0", "--dump-dom"),
]


def visit(browser: str, page: Path, folder: Path, *options: str) -> tuple[str, list[str], list[str]]:
    """The page's DOM after loading, the console's lines, and the addresses requested other than files and data."""
    log = folder / "net.json"
    own = [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}"]
    done = subprocess.run(
        [browser, *QUIET, *own, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, requested(log)


def requested(log: Path) -> list[str]:
    """Addresses in a network log that a page asked for; the browser's own calls have no origin as their initiator."""
    text = log.read_text(encoding="utf-8")
    try:
        events: list[dict[str, Any]] = json.loads(text)["events"]
    except ValueError:  # the log breaks off where the browser was ended
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    starts = [event["params"] for event in events if "initiator" in (event.get("params") or {})]
    pages = {start["url"] for start in starts if start["initiator"] != "not an origin"}
    return sorted(url for url in pages if not url.startswith(("file:", "data:")))


@pytest.mark.parametrize(
    "name",
    ["full", "many_classes", "images", f"hostile: {ATTACK}"],
    ids=["full", "many", "images", "hostile"],
)
def test_report_opens_without_error_or_request(browser: str, written: Any, tmp_path: Path, name: str) -> None:
    dom, console, requests = visit(browser, written(name).html, tmp_path)
    assert console == []
    assert requests == []
    assert dom.count("<figure") == len(re.findall(r"</figcaption>\s*<svg viewBox=", dom)) >= 10
    assert "</html>" in dom


@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_no_wider_than_the_screen(browser: str, written: Any, tmp_path: Path, width: int) -> None:
    """Measured in a frame of that width, since a browser's own window may have a least width."""
    page, frame = tmp_path / "report.html", tmp_path / "frame.html"
    page.write_bytes(written("many_classes").html.read_bytes())
    frame.write_text(
        f"<!doctype html><iframe id=f width={width} height=800 style='border:0' src=report.html></iframe>"
        "<p id=out></p><script>f.onload = () => { const d = f.contentDocument, r = d.documentElement;"
        "const drawn = [...d.querySelectorAll('figure > svg')].map(s => s.getBoundingClientRect().width);"
        "out.textContent = `${r.scrollWidth} wide, ${drawn.filter(w => w < 300).length} small figures`; }</script>",
        encoding="utf-8",
    )
    dom, console, _ = visit(browser, frame, tmp_path, "--allow-file-access-from-files")
    assert console == []
    assert f'<p id="out">{width} wide, 0 small figures</p>' in dom


def test_the_checks_can_fail(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><link rel=stylesheet href=http://fonts.invalid/css>"
        "<script>throw new Error('broken')</script><img src=http://127.0.0.1:9/x.png>",
        encoding="utf-8",
    )
    _, console, requests = visit(browser, page, tmp_path)
    assert any("broken" in line for line in console)
    assert requests == ["http://127.0.0.1:9/x.png", "http://fonts.invalid/css"]
