"""Numbers as text. Decided here: every way in which the report writes a quantity, so that it is the same everywhere.

A value that is None or not finite is no number: each function then gives an empty string, and the caller leaves the
place out. Metrics arrive as raw fractions; percent is a way to write them. Sizes are decimal (1 MB is 10^6 bytes). A
minus is written with the typographic sign, and a space before a unit never breaks.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def is_number(value: Any) -> bool:
    """Whether a value can be written as a number: an int or a float that is finite, no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _sign(text: str) -> str:
    """Typographic minus; a negative zero loses its sign."""
    if text.startswith("-") and not text.strip("-0.,%"):
        text = text[1:]
    return text.replace("-", MINUS)


def percent(value: Any, digits: int = 1) -> str:
    """0.873 as ``87.3%``."""
    return _sign(f"{value * 100:.{digits}f}%") if is_number(value) else ""


def decimal(value: Any, digits: int = 3) -> str:
    """A plain number: fixed digits where it is of ordinary size, three significant ones where it is tiny or large."""
    if not is_number(value):
        return ""
    size = abs(value)
    if size and size < 10.0**-digits:
        mantissa, power = f"{value:.1e}".split("e")
        return _sign(f"{mantissa}e{int(power)}")
    return _sign(f"{value:,.1f}" if size >= 100 else f"{value:.{digits}f}")


def whole(value: Any) -> str:
    """12345 as ``12,345``."""
    return _sign(f"{value:,.0f}") if is_number(value) else ""


def bare(text: str) -> str:
    """A number's text without the zeros that end its decimals, for the ticks of an axis: ``20.0 MB`` as ``20 MB``."""
    return re.sub(r"(\.\d*?)0+(?!\d)", lambda at: "" if at[1] == "." else at[1], text)


def label_number(value: Any) -> str:
    """A number that is somebody's label or prediction: at most three decimals, none that say nothing."""
    return _sign(f"{value:.3f}".rstrip("0").rstrip(".")) if is_number(value) else ""


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    for factor, unit in steps:
        if abs(value) >= factor:
            scaled = value / factor
            digits = 0 if scaled >= 100 else 1 if scaled >= 10 else 2
            return f"{scaled:.{digits}f}{NBSP}{unit}"
    return f"{value:,.0f}"


def count(value: Any) -> str:
    """22713216 as ``22.7 M``; below ten thousand the number itself."""
    if not is_number(value):
        return ""
    return whole(value) if abs(value) < 10_000 else _scaled(value, ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")))


def size(value: Any) -> str:
    """90900000 bytes as ``90.9 MB``."""
    if not is_number(value):
        return ""
    return _scaled(value, ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))) + ("" if abs(value) >= 1e3 else f"{NBSP}bytes")


def milliseconds(value: Any) -> str:
    """A latency given in ms, with about three significant digits."""
    if not is_number(value):
        return ""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}{NBSP}ms"


def pixels(size: Any) -> str:
    """Height and width: ``224 x 224 pixels``; nothing where there are none."""
    return f"{size[0]} x {size[1]} pixels" if size else ""


def per_second(value: Any) -> str:
    """A throughput in rows a second."""
    return f"{value:,.{0 if value >= 100 else 1}f}{NBSP}/s" if is_number(value) else ""


def duration(value: Any) -> str:
    """Seconds as ``12.3 s``, ``9 min 12 s`` or ``2 h 05 min``."""
    if not is_number(value):
        return ""
    if value < 60:
        return f"{value:.1f}{NBSP}s"
    seconds = round(value)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours}{NBSP}h {minutes:02d}{NBSP}min"
    return f"{minutes}{NBSP}min {seconds % 60:02d}{NBSP}s"


def value(number: Any, metric: Mapping[str, Any]) -> str:
    """A metric's value as the metric says: percent or a plain number."""
    return percent(number) if metric.get("percent") else decimal(number)


def spread(number: Any, metric: Mapping[str, Any]) -> str:
    """A standard deviation beside a value: the percent sign already stands there."""
    return percent(number).rstrip("%") if metric.get("percent") else decimal(number)


def difference(number: Any, metric: Mapping[str, Any], *, unit: bool = True) -> str:
    """A signed difference: ``+0.83 points`` where the metric is a percentage, else ``+0.0130``."""
    if not is_number(number):
        return ""
    text = percent(number, 2).rstrip("%") if metric.get("percent") else _sign(f"{number:,.4f}")
    text = text if text.startswith(MINUS) or not text.strip("0.") else f"+{text}"
    return f"{text}{NBSP}points" if unit and metric.get("percent") else text


def interval(bounds: Any, form: Any) -> str:
    """``86.1% to 88.4%``, each bound written by `form`; empty unless both are numbers."""
    if not bounds or len(bounds) != 2 or not all(is_number(bound) for bound in bounds):
        return ""
    low, high = (form(bound) for bound in bounds)
    low = low.removesuffix("%") if high.endswith("%") else low
    return f"{low.removesuffix(f'{NBSP}points')} to {high}"


def label(item: Any) -> str:
    """A label or prediction of any problem: a class name, several of them, or a number."""
    if item is None:
        return ""
    if isinstance(item, list | tuple):
        return ", ".join(label(part) for part in item) or "none"
    return label_number(item) if is_number(item) else str(item)


def tidy(text: Any, longest: int = 0) -> str:
    """A text as one line of valid Unicode, cut with an ellipsis where it is longer than `longest` characters."""
    valid = str(text).encode("utf-8", "replace").decode()
    line = re.sub("[\\x00-\\x20\\x7f-\\x9f\\u2028\\u2029]+", " ", valid).strip(" ")
    return f"{line[: longest - 1].rstrip()}…" if longest and len(line) > longest else line
