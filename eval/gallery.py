"""What a run directory has to look at: films in videos/, and in pictures/ what its variant drew. The newest of each kind."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

EMBED = 3 * 2**20  # bytes of a file up to which it is put into the page itself
KNOWN = {
    "eval": "An evaluation episode",
    "openloop": "Open loop: world, model and error from top to bottom",
    "aim": "What was aimed at, the dream that tries, and the difference, from top to bottom",
}
"""Captions by what a film's name begins with."""


@dataclass(frozen=True)
class Item:
    """A film (.mp4) or a picture (.png). label: evaluation mode or key, where its name says one."""

    path: Path
    kind: str
    label: str
    step: int

    @property
    def caption(self) -> str:
        """What is to be seen. A picture says it itself."""
        at = f", step {self.step:,}" if self.step else ""
        if self.path.suffix == ".png":
            return f"{_described(self.path)} ({self.kind}{at})"
        words = {"sample": "sampled actions", "mode": "greedy actions"}.get(self.label, self.label)
        text = KNOWN.get(self.kind, self.kind) + (f", {words}" if words else "") + at
        return text + ("; green border: the model sees the frame, red: it dreams" if self.kind in ("openloop", "aim") else "")

    def html(self, home: Path) -> str:
        """A figure; files that are too large for the page are linked from `home`, where it lies."""
        small = self.path.stat().st_size < EMBED
        kind, folder = ("image/png", "pictures") if self.path.suffix == ".png" else ("video/mp4", "videos")
        place = escape(self.path.relative_to(home).as_posix())
        source = f"data:{kind};base64,{base64.b64encode(self.path.read_bytes()).decode()}" if small else place
        text = escape(self.caption)
        if folder == "pictures":
            return f'<figure class="picture"><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'
        return (
            f'<figure><video controls muted loop playsinline preload="metadata" aria-label="{text}" src="{source}">'
            f'<a href="{place}">{text}</a></video><figcaption>{text}</figcaption></figure>'
        )


def films(directory: Path) -> list[Item]:
    """videos/`<kind>-<step>.mp4` or `<kind>-<step>-<mode or key>.mp4`."""
    return _newest((directory / "videos").glob("*.mp4"))


def pictures(directory: Path) -> list[Item]:
    """pictures/`<name>-<step>.png`."""
    return _newest((directory / "pictures").glob("*.png"))


def figures(items: Iterable[Item], home: Path) -> str:
    """Figures side by side, as many as there is room for."""
    return f'<div class="films">{"".join(item.html(home) for item in items)}</div>'


def _newest(paths: Iterable[Path]) -> list[Item]:
    found: dict[tuple[str, str], Item] = {}
    for path in sorted(paths):
        match = re.fullmatch(r"(.+?)-(\d+)(?:-(.+))?", path.stem)
        item = Item(path, match[1], match[3] or "", int(match[2])) if match else Item(path, path.stem, "", 0)
        old = found.get((item.kind, item.label))
        if old is None or item.step >= old.step:
            found[item.kind, item.label] = item
    return [item for _, item in sorted(found.items())]


def _described(path: Path) -> str:
    """The caption inside a picture, else its name."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return str(image.info.get("Description", path.stem))
