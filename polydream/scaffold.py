"""What `polydream new-variant` writes: a package with one variant, its test, and the entry point that registers it."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from .core import registry
from .core.config import ConfigError

PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "polydream-NAME"
version = "0.1.0"
description = "TITLE, a variant for polydream"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["polydream"]

# What makes `--variant NAME` work wherever this package is installed.
[project.entry-points."polydream.variants"]
NAME = "polydream_NAME:TITLE"

[tool.setuptools]
py-modules = ["polydream_NAME"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
"""

README = """# polydream-NAME

A variant for polydream: one class in [polydream_NAME.py](polydream_NAME.py).

    python -m pip install --no-deps --editable .
    python -m pytest                              # does it keep its promises?
    polydream list NAME                           # its seams and knobs
    polydream train --variant NAME --task dmc/cartpole_balance --agent.NAME.weight 0.1
"""

MODULE = '''"""TITLE: say in one line what it changes about the agent."""

from __future__ import annotations

from dataclasses import dataclass, field

from polydream.core.agent import Config, Dreamer
from polydream.core.heads import Head, HeadConfig
from tensordict import TensorDict
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TITLEConfig:
    """Knobs of TITLE. The comment beside each is what `polydream train --help` shows."""

    weight: float = 0.1  # of the extra loss; 0 leaves the base agent as it is
    units: int = 64  # width of the head


@dataclass(frozen=True, kw_only=True)
class TITLEAgentConfig(Config):
    """The base agent's knobs, and `NAME`."""

    NAME: TITLEConfig = field(default_factory=TITLEConfig)


class TITLE(Dreamer):
    """A starting point to replace by your idea: latents must also tell how large the reward is, whatever its sign.

    The other seams are listed by `polydream list`; each calls `super()`, so that this variant combines with others.
    """

    Config = TITLEAgentConfig
    cfg: TITLEAgentConfig

    def build(self) -> dict[str, nn.Module]:
        """Adds the head."""
        nets = super().build()
        width: int = nets["rssm"].latent_width  # type: ignore[assignment]
        return nets | {"NAME": Head(width, HeadConfig(dist="mse", units=self.cfg.NAME.units))}

    def scales(self) -> dict[str, float]:
        """Every loss has a weight of the same name."""
        return super().scales() | {"NAME": self.cfg.NAME.weight}

    def model_losses(self, batch: TensorDict, post: TensorDict) -> dict[str, Tensor]:
        """Adds the head's loss (B, T); its gradient shapes the latents."""
        loss = self.nets["NAME"](self.latent(post)).loss(batch["reward"].abs())
        return super().model_losses(batch, post) | {"NAME": loss}
'''

TEST = '''"""TITLE keeps the promises of a polydream variant."""

from __future__ import annotations

from polydream.eval.contract import check_variant
from polydream_NAME import TITLE


def test_TITLE_keeps_its_promises() -> None:
    assert check_variant(TITLE) == []
'''

FILES = {"pyproject.toml": PYPROJECT, "README.md": README, "polydream_NAME.py": MODULE, "tests/test_NAME.py": TEST}


def write_package(name: str, folder: Path) -> list[Path]:
    """Write the files of a new variant into a folder that is empty or not there yet, and return their paths.

    Raises ConfigError for a name that no Python attribute can have or that is taken, and for a folder with something in it.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"a variant's name is a word of small letters, digits and _ such as 'curious', not {name!r}")
    if name in registry.registered("polydream.variants"):
        raise ConfigError(f"the name {name!r} is taken by {registry.registered('polydream.variants')[name].value}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not an empty folder")
    title = "".join(word.capitalize() for word in name.split("_"))
    written = []
    for path, text in FILES.items():
        target = folder / path.replace("NAME", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace("TITLE", title).replace("NAME", name))
        written.append(target)
    return written
