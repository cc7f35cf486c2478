"""A page that needs no network: one HTML file with its styles, its pictures and, where it has plots, Plotly inside.

Plotly (MIT, `data/plotly-basic.min.js.gz`) is handed figures as plain dicts. Their colours are the page's: `var(--train)`, or
`var(--train)/0.2` for a tint, so that one figure serves light and dark.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from math import isfinite
from pathlib import Path
from string import Template
from typing import Any

FILE = "report.html"
PLOTLY = "plotly-basic.min.js.gz"


def write(directory: Path, *, title: str, subtitle: str, parts: Iterable[str], footer: str) -> Path:
    """Write report.html into a directory, in one piece, and return its path. parts: HTML, empty ones are left out."""
    body = "\n".join(filter(None, parts))
    template = Template(_data("report.html").decode())
    text = template.substitute(title=escape(title), subtitle=escape(subtitle), body=body, footer=escape(footer), scripts=_scripts(body))
    path = Path(directory) / FILE
    fresh = path.with_suffix(".html.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
    return path


def _data(name: str) -> bytes:
    return (files(__package__) / "data" / name).read_bytes()


def _scripts(body: str) -> str:
    """Plotly and what draws with it, for pages that have plots."""
    if "data-plot=" not in body:
        return ""
    return f"<script>{gzip.decompress(_data(PLOTLY)).decode()}</script>\n<script>{_data('report.js').decode()}</script>"


def plot(name: str, figure: Mapping[str, Any], alt: str, kind: str = "") -> str:
    """A Plotly figure, read aloud as `alt`. name: unique on the page. kind: further CSS class, for its height."""
    text = json.dumps(_plain(figure), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<div class="plot {kind}" id="{escape(name)}" role="img" aria-label="{escape(alt)}"></div>'
        f'<script type="application/json" data-plot="{escape(name)}">{text}</script>'
    )


def _plain(value: Any) -> Any:
    """Numbers, texts, lists and dicts; what is not finite becomes null, a gap. Five digits are more than a screen shows."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if isfinite(value) else None
    return value


def table(head: Iterable[str], rows: Sequence[Sequence[str]], safe: bool = False) -> str:
    """An HTML table whose first column names the rows; it scrolls by itself where it is wide. safe: the texts are HTML already."""
    clean = str if safe else escape
    top = "".join(f'<th scope="col">{clean(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{clean(row[0])}</th>' + "".join(f"<td>{clean(text)}</td>" for text in row[1:]) + "</tr>" for row in rows
    )
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def cards(items: Iterable[tuple[str, str, str]], lead: bool = True) -> str:
    """Headline numbers: name, value, note. lead: the first one stands out."""
    rows = ""
    for i, (name, value, note) in enumerate(items):
        kind = "card lead" if lead and not i else "card"
        rows += f'<li class="{kind}"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span></li>'
    return f'<ul class="cards">{rows}</ul>'


def leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as texts under dotted names."""
    found: dict[str, str] = {}
    for key, value in config.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": text}
    return found
