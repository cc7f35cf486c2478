"""What a variant says about itself: for building combinations, for `polydream list` and for the conformance kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .config import ConfigError, nearest
from .specs import Spec


@dataclass(frozen=True, kw_only=True)
class Promises:
    """The class attribute `promises` of a variant. Everything may be left out.

    Knobs are named by their path in the variant's Config: `price`, `goal.match`.
    """

    home: str = ""
    """Task that it is trained and tried on where nobody names one: `family/name`."""

    requires: tuple[str, ...] = ()
    """Observations or extras that the task must offer."""

    neutral: Mapping[str, Any] = field(default_factory=dict)
    """Knobs with which the base agent's losses stay as they are to the bit, once the variant's own terms weigh nothing."""

    turn: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values, any of which must change something, for knobs whose kind does not tell what to turn them to."""

    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other knobs that must be set before one does anything, by that knob: {"decay": {"schedule": "cosine"}}."""

    exempt: Mapping[str, str] = field(default_factory=dict)
    """What is not promised, with the reason. A knob, a parameter or the beginning of its name, a base loss as `loss/policy`,
    something that outlives an episode as `state/NAME`, or a whole part of the kit by its name."""


def promises_of(cls: type) -> Promises:
    """The promises of a class and of everything it inherits from, together."""
    found = [vars(c)["promises"] for c in reversed(cls.__mro__) if "promises" in vars(c)]
    if strange := [p for p in found if not isinstance(p, Promises)]:
        raise ConfigError(f"{cls.__name__}.promises is a {type(strange[0]).__name__}, not a polydream.core.promises.Promises")
    merged: dict[str, Any] = {"requires": tuple(dict.fromkeys(key for p in found for key in p.requires))}
    merged["home"] = next((p.home for p in reversed(found) if p.home), "")
    for f in fields(Promises):
        if f.name not in merged:
            merged[f.name] = {key: value for p in found for key, value in getattr(p, f.name).items()}
    return Promises(**merged)


def require(cls: type, spec: Spec) -> None:
    """Refuse a task that lacks what a variant needs. Raises ConfigError naming the first missing key and the nearest there is."""
    offered = [*spec.obs, *spec.extras]
    for key in promises_of(cls).requires:
        if key not in offered:
            near = nearest(key, offered)[0] if offered else "nothing"
            raise ConfigError(f"{cls.__name__} needs {key!r} from its task, which offers {', '.join(offered)}; the nearest is {near!r}")
