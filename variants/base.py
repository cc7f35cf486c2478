"""The plain DreamerV3 agent, registered as any variant is."""

from __future__ import annotations

from ..core.agent import Dreamer


class Base(Dreamer):
    """DreamerV3 with nothing added (Hafner et al. 2025)."""
