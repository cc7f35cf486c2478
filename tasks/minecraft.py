"""Minecraft Diamond around an installed MineRL 0.4.4: `polydream.tasks.minecraft:make` (Guss et al. 2019, arXiv 1907.13440).

MineRL needs Java 8 and speaks the interface of gym before its version 0.26; neither is installed with polydream. Twelve items on the
way to a diamond give reward 1 each, the first time in an episode (Hafner et al. 2023, appendix on Minecraft). The 25 actions hold one
key, one turn of the camera or one use of an item at a time. Blocks break as slowly as in the game.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium
import numpy as np

from ..core.config import ConfigError

ID = "MineRLObtainDiamond-v0"
LENGTH = 36_000  # half an hour at 20 steps per second
MILESTONES = (
    "log", "planks", "stick", "crafting_table", "wooden_pickaxe", "cobblestone", "stone_pickaxe", "iron_ore", "furnace", "iron_ingot",
    "iron_pickaxe", "diamond",
)  # fmt: skip
TURN = 15.0  # degrees of one turn of the camera
ACTIONS: tuple[dict[str, Any], ...] = (
    {}, {"attack": 1}, {"forward": 1}, {"back": 1}, {"left": 1}, {"right": 1}, {"forward": 1, "jump": 1}, {"jump": 1},
    {"camera": (-TURN, 0.0)}, {"camera": (TURN, 0.0)}, {"camera": (0.0, -TURN)}, {"camera": (0.0, TURN)},
    {"place": "dirt"}, {"place": "cobblestone"}, {"place": "crafting_table"}, {"place": "furnace"},
    {"craft": "planks"}, {"craft": "stick"}, {"craft": "crafting_table"},
    {"nearbyCraft": "wooden_pickaxe"}, {"nearbyCraft": "stone_pickaxe"}, {"nearbyCraft": "iron_pickaxe"}, {"nearbyCraft": "furnace"},
    {"nearbySmelt": "iron_ingot"}, {"equip": "best"},
)  # fmt: skip
PICKAXES = ("iron_pickaxe", "stone_pickaxe", "wooden_pickaxe")


def make(seed: int = 0) -> Minecraft:
    """The environment. Raises ConfigError where MineRL is not installed."""
    try:
        import_module("minerl")
        game = import_module("gym").make(ID)
    except ModuleNotFoundError as error:
        cure = "it needs Java 8 and an environment of its own: pip install minerl==0.4.4 (https://minerl.readthedocs.io)"
        raise ConfigError(f"Minecraft needs MineRL, and there is no {error.name} here: {cure}") from None
    return Minecraft(game, seed)


class Minecraft(gymnasium.Env[dict[str, np.ndarray], Any]):
    """MineRL's ObtainDiamond as a Gymnasium environment. Seen: `image` (64, 64, 3), and counts of items as log(1 + n) in `inventory`."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, game: Any, seed: int = 0) -> None:
        self._game, self._seed = game, seed
        self.items = tuple(sorted(game.observation_space["inventory"].spaces))
        self.observation_space: Any = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8),
                "inventory": gymnasium.spaces.Box(0.0, np.inf, (len(self.items),), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self._got: set[str] = set()
        self._clock = 0
        self._seen: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A new world. The first reset takes the seed of `make` where none is given."""
        super().reset(seed=seed)
        if (chosen := self._seed if seed is None and not self._seen else seed) is not None:
            self._game.seed(int(chosen))
        self._seen = self._game.reset()
        self._got, self._clock = {item for item in MILESTONES if self._count(item)}, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Death terminates, half an hour of play truncates. The game's own reward is not used."""
        chosen = self._game.action_space.noop() | ACTIONS[int(action)]
        if chosen.get("equip") == "best":
            chosen["equip"] = next((item for item in PICKAXES if self._count(item)), "none")
        self._seen, _, over, info = self._game.step(chosen)
        self._clock += 1
        fresh = {item for item in MILESTONES if self._count(item)} - self._got
        self._got |= fresh
        late = self._clock >= LENGTH
        return self._observation(), float(len(fresh)), bool(over and not late), late, {"milestones": len(self._got), **info}

    def render(self) -> np.ndarray:
        """What the player sees."""
        return np.asarray(self._seen["pov"])

    def close(self) -> None:
        """End the game."""
        self._game.close()

    def _count(self, item: str) -> int:
        return int(np.asarray(self._seen["inventory"].get(item, 0)).sum())

    def _observation(self) -> dict[str, np.ndarray]:
        counts = np.array([self._count(item) for item in self.items], np.float32)
        return {"image": np.asarray(self._seen["pov"], np.uint8), "inventory": np.log1p(counts)}
