"""polydream: one world model, many dreamers.

In a checkout the rooms (core/, variants/, tasks/, eval/) lie beside this folder; in a wheel, inside it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

_here = Path(__file__).parent
if not (_here / "core").is_dir():
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from .core.player import load


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import polydream` costs nothing."""
    if name == "load":
        from .core.player import load

        return load
    raise AttributeError(f"module 'polydream' has no attribute {name!r}")
