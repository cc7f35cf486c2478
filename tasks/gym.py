"""Any registered Gymnasium environment as `gym/<id>`, and any Gymnasium environment object as a task.

Discrete, continuous, nested and image spaces are flattened by `spaces.py`. `terminated` and `truncated` stay apart.
Environments whose state is plain data (classic control, toy text, MuJoCo) are restorable to the bit; others say so.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, load_env_creator, parse_env_id

from ..core.specs import Spec, Step
from . import crafter, metaworld, minigrid, physics, snapshot, spaces
from .base import Common, Episodic, decisions, hint, resize

# Families that register themselves when their package is imported: start of the id -> (package, our extra).
FAMILIES = {
    "ALE/": ("ale_py", "atari"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
    "Meta-World/": ("metaworld", "metaworld"),
    "Fetch": ("gymnasium_robotics", "robotics"),
    "HandManipulate": ("gymnasium_robotics", "robotics"),
    "HandReach": ("gymnasium_robotics", "robotics"),
    "AdroitHand": ("gymnasium_robotics", "robotics"),
    "FrankaKitchen": ("gymnasium_robotics", "robotics"),
    "PointMaze": ("gymnasium_robotics", "robotics"),
    "AntMaze": ("gymnasium_robotics", "robotics"),
    "Crafter": ("crafter", "crafter"),
}
CONSTANT = (
    gymnasium.Env,
    gymnasium.Space,
    EnvSpec,
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
)
CLOSED = "the environment has no picture: it offers no render mode 'rgb_array'"


def make(name: str, *, seed: int = 0, repeat: int = 0, obs: str = "vector", size: int = 64, camera: int = -1, **options: Any) -> GymTask:
    """A registered environment: `make("CartPole-v1")`, `make("FrozenLake-v1", is_slippery=False)`.

    camera: handed on as `camera_id`, for environments that take one. options: handed on to `gymnasium.make`.
    Raises gymnasium's own errors for ids and options that it refuses, with the extra to install where we know it.
    """
    common = Common(seed=seed, repeat=repeat, obs=obs, size=size, camera=camera)
    physics.choose_gl()
    _register(name)
    if common.camera >= 0:
        options.setdefault("camera_id", common.camera)
    try:
        if _draws(name):
            # Costs nothing until render() is called; environments open their windows and contexts then.
            options.setdefault("render_mode", "rgb_array")
        options = {"disable_env_checker": True, **options}
        arm = name.startswith(metaworld.FAMILY) and name in gymnasium.registry
        env = metaworld.make(name, options) if arm else gymnasium.make(name, **options)
        if common.vector and name.startswith(minigrid.FAMILIES):
            env = minigrid.seen(env, name)
    except (gymnasium.error.Error, ImportError) as error:
        if not (advice := _advice(name, error)):
            raise
        raise type(error)(f"{error}{advice}") from error
    return wrap(env, common, f"gym/{name}")


def wrap(env: gymnasium.Env[Any, Any], common: Common, name: str) -> GymTask:
    """An environment object as a task, restorable if everything it holds is plain data."""
    return (SavedGymTask if _is_plain(_attributes(env)) else GymTask)(env, common, name)


class GymTask(Episodic):
    """One Gymnasium environment. Rendered pictures, when asked for, are under `image`."""

    def __init__(self, env: gymnasium.Env[Any, Any], common: Common, name: str) -> None:
        self._env, self._common = env, common
        self._sees = spaces.flatten(env.observation_space) if common.vector else {}
        self._does = spaces.flatten(env.action_space, action=True)
        if common.pixels and "image" in self._sees:
            raise ValueError(f"{name} already observes an 'image': obs='both' would offer two under one name")
        if common.pixels and env.render_mode != "rgb_array":
            raise ValueError(f"{name}: obs={common.obs!r} is asked for, but {CLOSED}")
        seen = {key: leaf.space for key, leaf in self._sees.items()} | ({"image": common.image} if common.pixels else {})
        repeat = common.repeat or 1
        limit = env.spec.max_episode_steps if env.spec else None
        spec = Spec(obs=seen, action={k: leaf.space for k, leaf in self._does.items()}, repeat=repeat, limit=decisions(limit, repeat))
        super().__init__(name, spec, common.seed)
        self._now: Any = None
        self._success: bool | None = None  # since the last row, where the environment reports it

    def _begin(self, seed: int | None) -> None:
        # 31 bits: older environments hand the seed on to generators that take no more.
        self._now, info = self._env.reset(seed=None if seed is None else seed & 0x7FFFFFFF)
        self._success = _succeeded(info)

    def _advance(self, action: dict[str, np.ndarray]) -> tuple[float, bool, bool]:
        self._now, reward, terminated, truncated, info = self._env.step(spaces.write(self._env.action_space, self._does, action))
        if (found := _succeeded(info)) is not None:
            self._success = found or bool(self._success)
        return float(reward), bool(terminated), bool(truncated)

    def _row(self, reward: float, *, first: bool, last: bool, terminal: bool) -> Step:
        row = super()._row(reward, first=first, last=last, terminal=terminal)
        success, self._success = self._success, None
        return row if success is None else row | {"success": success}

    def _observe(self) -> dict[str, np.ndarray]:
        seen = spaces.read(self._sees, self._now)
        return seen | ({"image": resize(self.render(), self._common.size, self._common.size)} if self._common.pixels else {})

    def render(self) -> np.ndarray:
        """The environment's own picture. Raises RuntimeError where it has none or OpenGL is missing."""
        if self._env.render_mode != "rgb_array":
            raise RuntimeError(f"{self.name}: {CLOSED}")
        draw: Callable[[], Any] = self._env.render
        picture = np.asarray(physics.draw(draw) if _has_simulation(self._env) else draw())
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise RuntimeError(f"{self.name}: render() gave {picture.dtype} of shape {picture.shape}, not uint8 (height, width, 3)")
        return picture

    def close(self) -> None:
        """Close the environment."""
        super().close()
        self._env.close()


class SavedGymTask(GymTask):
    """A Gymnasium environment whose attributes, through all its wrappers, are plain data or a MuJoCo simulation."""

    def __init__(self, env: gymnasium.Env[Any, Any], common: Common, name: str) -> None:
        super().__init__(env, common, name)
        base = env.unwrapped
        self._made = physics.tunable(base.model) if _has_simulation(env) else None  # type: ignore[attr-defined]

    def get_state(self) -> dict[str, Any]:
        """The attributes of the environment and its wrappers, time limit and random numbers included, and its simulation.

        Raises NotImplementedError, naming the attribute, where one has become something other than plain data.
        """
        saved = {"env": snapshot.freeze(_attributes(self._env)), "names": json.dumps(_names(self._env)), "running": int(self._running)}
        if self._made is not None:
            base: Any = self._env.unwrapped
            saved["physics"] = physics.save(base.model, base.data, self._made)
        return saved

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_state` returned, in this instance or in another one made with the same arguments."""
        saved = snapshot.thaw(state["env"], _attributes(self._env))
        for number, layer in enumerate(_layers(self._env)):
            existed = set(json.loads(state["names"])[number])
            for attribute in vars(layer).keys() - existed:
                del vars(layer)[attribute]
            for attribute in existed:
                if (name := f"{number}/{attribute}") in saved:
                    vars(layer)[attribute] = saved[name]
        if self._made is not None:
            base: Any = self._env.unwrapped
            physics.restore(base.model, base.data, self._made, state["physics"])
        self._running, self._seed = bool(state["running"]), None


def _succeeded(info: dict[str, Any]) -> bool | None:
    """What an environment says of success: under `success` (Meta-World) or `is_success` (Gymnasium-Robotics)."""
    return next((bool(info[key]) for key in ("success", "is_success") if key in info), None)


def _layers(env: gymnasium.Env[Any, Any]) -> list[gymnasium.Env[Any, Any]]:
    layers = [env]
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        layers.append(env)
    return layers


def _attributes(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """Everything that changes, by `<layer>/<attribute>`, the outermost wrapper first."""
    pairs = ((f"{i}/{k}", v) for i, layer in enumerate(_layers(env)) for k, v in vars(layer).items())
    return {k: v for k, v in pairs if not _constant(v) and not _simulation(v)}


def _is_plain(values: dict[str, Any]) -> bool:
    try:
        snapshot.freeze(values)
    except snapshot.NotPlain:
        return False
    return True


def _names(env: gymnasium.Env[Any, Any]) -> list[list[str]]:
    """Names of all attributes, layer by layer: also of those that are not saved."""
    return [list(vars(layer)) for layer in _layers(env)]


def _constant(value: Any) -> bool:
    """True for what never changes while an environment runs, or serves only to draw."""
    kind = type(value)
    if kind in (list, tuple, dict) and value:  # sprites, loaded at the first picture
        return all(map(_drawn, value.values() if kind is dict else value))
    return _drawn(value) or isinstance(value, CONSTANT)


def _drawn(value: Any) -> bool:
    kind = type(value)
    if kind in (list, tuple) and value:
        return all(map(_drawn, value))
    return kind.__module__.split(".")[0] == "pygame" or kind.__name__ == "MujocoRenderer"


def _simulation(value: Any) -> bool:
    return type(value).__module__.startswith("mujoco") and type(value).__name__ in ("MjModel", "MjData")


def _has_simulation(env: gymnasium.Env[Any, Any]) -> bool:
    base = vars(env.unwrapped)
    return _simulation(base.get("model")) and _simulation(base.get("data"))


def _family(name: str) -> tuple[str, str] | None:
    return next((found for start, found in FAMILIES.items() if name.startswith(start)), None)


def _register(name: str) -> None:
    """Import the package that an id belongs to, if it is installed and has not registered itself yet."""
    family = _family(name)
    if name not in gymnasium.registry and family and find_spec(family[0]):
        if family[0] == "crafter":
            crafter.register()
        else:
            gymnasium.register_envs(import_module(family[0]))


def _draws(name: str) -> bool:
    """True if the environment says that it can return pictures. Imports its class, which `make` would do next anyway."""
    found = gymnasium.registry.get(name)
    if found is None:  # no version was given: the latest, as `make` takes it
        space, short, _ = parse_env_id(name)
        found = gymnasium.registry.get(get_env_id(space, short, find_highest_version(space, short)))
    point = found.entry_point if found else None
    creator = load_env_creator(point) if isinstance(point, str) else point
    return "rgb_array" in (getattr(creator, "metadata", None) or {}).get("render_modes", ())


def _advice(name: str, error: Exception) -> str:
    """What to install, or which ids are near, as the end of an error message."""
    family = _family(name)
    if family and not find_spec(family[0]):
        return f' (pip install "polydream[{family[1]}]")'
    if isinstance(error, gymnasium.error.NameNotFound | gymnasium.error.NamespaceNotFound):
        return f" ({hint(name, gymnasium.registry)})" if "Did you mean" not in str(error) else ""
    return ""
