"""From a matplotlib figure to an SVG that lives in the page.

Decided here: figures are made through the object API, with matplotlib's default settings and ours over them for the
time of one drawing, so that a user's own settings neither change the report nor are changed. A figure is drawn about
as wide as a phone's screen, so that its text keeps its size there. Text stays text. Every id carries the figure's key
(two figures would otherwise share theirs), and every stand-in colour becomes a CSS variable. Names come from user
data: no mathematics is parsed in them, and a glyph that the measuring font lacks is no reason to complain, since the
reader's own font draws it.
"""

import html
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from potstill.report.roles import INK, MUTED, RULE, STAND_INS
from potstill.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2  # inches of 72 units: the viewBox is 374 units wide

SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.titlecolor": MUTED,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.titlepad": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.markerscale": 0.85,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True)
class Plot:
    """One figure of the page: the drawing, what it shows in a sentence, and the same numbers as a table."""

    key: str
    title: str
    svg: str
    caption: str = ""
    table: Table | None = None


def draw(key: str, title: str, paint: Callable[["Figure", "Axes"], None], *, height: float = 3.9) -> str:
    """An SVG element of 374 units' width, `height` inches high, drawn by `paint` and labelled with `title`.

    `key` must be unique on the page and fit an id; `title` may be any text.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message=r".*Glyph .* missing from font")
        warnings.filterwarnings("ignore", message=r".*Matplotlib currently does not support .* natively")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, {**SETTINGS, "svg.hashsalt": key}))
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure, figure.add_subplot())
        buffer = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), key, title)


def legend(figure: "Figure", axes: "Axes", columns: int = 2) -> None:
    """The legend under the axes, where it hides nothing and needs no width."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.4, columnspacing=1.4)


def _inline(svg: str, key: str, title: str) -> str:
    """The bare element: no prologue, no metadata, no namespaces, own ids, CSS colours and the page's font."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    used = set(re.findall(r'href="#([^"]+)"', rest)) | set(re.findall(r"url\(#([^)]+)\)", rest))

    def own(tag: re.Match[str]) -> str:
        text = re.sub(r' id="([^"]+)"', lambda at: f' id="{key}-{at[1]}"' if at[1] in used else "", tag[0])
        text = text.replace('xlink:href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
        text = re.sub(r' transform="rotate\(-?0 [^"]*"', "", re.sub(r" font-family: [^;\"]*;", "", text))
        return re.sub(r"#0[123]0[123]0[1-6]", lambda at: STAND_INS.get(at[0], at[0]), text)

    rest = re.sub(r"<[^>]+>", own, rest)  # tags alone: what a user named a class stays as it is
    label = html.escape(title)
    name = f'<title id="{key}-title">{label}</title>'
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-labelledby="{key}-title">{name}{rest.strip()}'
