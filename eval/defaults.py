"""What was set by hand: a run's configuration beside the defaults of its variant, and those of several variants side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.config import ConfigError, to_dict
from .page import leaves

NAMED = ("variant", "task", "profile", "size", "preset", "seed", "dir")
"""What a run is called by, which is no difference."""


def changed(config: Mapping[str, Any]) -> dict[str, tuple[str, str]] | None:
    """Options of a configuration that differ from what its variant, profile and preset (or size) say: key -> (here, default).

    None where that is not known: a variant of a file of one's own is not imported for a report.
    """
    from ..core.presets import resolve

    variant, preset = str(config.get("variant", "base")), str(config.get("preset", "none"))
    if ":" in variant:
        return None
    shape = {"preset": preset} if preset != "none" else {"size": str(config.get("size", ""))}
    try:
        usual = leaves(to_dict(resolve({"variant": variant, "task": str(config["task"]), "profile": str(config["profile"])} | shape)))
    except (ConfigError, KeyError):  # of another version, or no run of ours
        return None
    ours = leaves(config)
    return {
        key: (ours.get(key, "–"), usual.get(key, "–"))
        for key in ours | usual
        if key not in NAMED and _canonical(ours.get(key)) != _canonical(usual.get(key))
    }


def apart(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Options in which configurations differ: key -> text in each of them, "–" where it has no such option."""
    flat = {name: leaves(config) for name, config in configs.items()}
    keys = dict.fromkeys(key for found in flat.values() for key in found if key not in NAMED)
    rows = {key: [found.get(key, "–") for found in flat.values()] for key in keys}
    return {key: texts for key, texts in rows.items() if len({_canonical(text) for text in texts}) > 1}


def _canonical(text: str | None) -> str | float | None:
    """1e-3 and 0.001 are the same number."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return text
