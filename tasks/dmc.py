"""The DeepMind Control Suite: `dmc/<domain>_<task>`, states or pictures, restorable to the bit.

Tassa et al. 2018, "DeepMind Control Suite", https://arxiv.org/abs/1801.00690. Episodes are cut by time (1000 environment
steps), which is a truncation; `is_terminal` is set only where the suite's discount falls to 0.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from ..core.specs import Space, Spec
from . import physics, snapshot
from .base import Common, Episodic, bounds, decisions, hint, refuse_options, scale_action

REPEAT = 2
USUAL_CAMERA = {"quadruped": 2}
PICTURE = 256
UNBOUNDED = 1e10  # mjMAXVAL, which dm_control reports for actuators without limits


def make(
    name: str, *, seed: int = 0, repeat: int = 0, obs: str = "vector", size: int = 64, camera: int = -1, **options: Any
) -> ControlSuite:
    """A task of the suite: `make("cartpole_balance", repeat=2)`.

    options: keyword arguments of the suite's own task function, such as `time_limit` in seconds.
    Raises KeyError for an unknown name, with the nearest ones, TypeError for an option that the task does not take,
    ValueError for a camera that the model lacks, RuntimeError where pictures are wanted and no OpenGL is installed.
    """
    return ControlSuite(name, Common(seed=seed, repeat=repeat, obs=obs, size=size, camera=camera), options)


def names() -> list[str]:
    """Every `<domain>_<task>` of the installed suite."""
    return sorted(_catalogue())


def _catalogue() -> dict[str, tuple[str, str]]:
    suite = _suite()
    return {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}


def _suite() -> Any:
    physics.choose_gl()
    try:
        from dm_control import suite
    except (ImportError, AttributeError) as error:
        if "GL" in str(error):
            raise RuntimeError(f"dm_control cannot start ({error}); {physics.INSTALL}") from error
        raise
    return suite


class ControlSuite(Episodic):
    """One environment of the suite. `obs="vector"`: one float32 key per observation name; pictures are under `image`."""

    def __init__(self, name: str, common: Common, options: dict[str, Any]) -> None:
        catalogue = _catalogue()
        if name not in catalogue:
            raise KeyError(f"no task dmc/{name}; {hint(name, catalogue)}")
        if common.pixels:
            physics.require_gl()
        domain, task = catalogue[name]
        self._common = common
        self._env = _load(domain, task, common.seed, options)
        self._model, self._data = self._env.physics.model.ptr, self._env.physics.data.ptr
        self._made = physics.tunable(self._model)
        self._camera = USUAL_CAMERA.get(domain, 0) if common.camera < 0 else common.camera
        if self._camera >= self._model.ncam:
            raise ValueError(f"dmc/{name} has cameras 0 ... {self._model.ncam - 1}, not {common.camera}")
        offered = self._env.action_spec()
        self._low = np.where(np.abs(offered.minimum) < UNBOUNDED, offered.minimum, -np.inf)
        self._high = np.where(np.abs(offered.maximum) < UNBOUNDED, offered.maximum, np.inf)
        super().__init__(f"dmc/{name}", self._make_spec(), common.seed)
        self._now: dict[str, Any] = {}

    def _make_spec(self) -> Spec:
        repeat = self._common.repeat or REPEAT
        vector = {k: Space(shape=tuple(s.shape)) for k, s in self._env.observation_spec().items()} if self._common.vector else {}
        return Spec(
            obs=vector | ({"image": self._common.image} if self._common.pixels else {}),
            action={"action": Space(shape=self._low.shape, low=bounds(self._low), high=bounds(self._high))},
            repeat=repeat,
            limit=decisions(self._env._step_limit, repeat),
        )

    def _begin(self, seed: int | None) -> None:
        if seed is not None:  # RandomState takes 32-bit words; in place, because the task holds the object
            self._env.task.random.seed([seed & 0xFFFFFFFF, seed >> 32])
        self._now = self._env.reset().observation

    def _advance(self, action: dict[str, np.ndarray]) -> tuple[float, bool, bool]:
        step = self._env.step(scale_action(action["action"], self._low, self._high))
        self._now = step.observation
        return float(step.reward or 0.0), step.last() and step.discount == 0, step.last() and step.discount != 0

    def _observe(self) -> dict[str, np.ndarray]:
        arrays = {k: np.array(v, np.float32) for k, v in self._now.items()} if self._common.vector else {}
        return arrays | ({"image": self._picture(self._common.size)} if self._common.pixels else {})

    def render(self) -> np.ndarray:
        """Picture from the task's camera: (256, 256, 3). Raises RuntimeError where no OpenGL is installed."""
        return self._picture(PICTURE)

    def _picture(self, size: int) -> np.ndarray:
        return physics.draw(lambda: self._env.physics.render(size, size, camera_id=self._camera))

    def close(self) -> None:
        """Free the simulation and its OpenGL context."""
        super().close()
        self._env.close()

    def get_state(self) -> dict[str, Any]:
        """Simulation, changed model fields, the task's own attributes and random numbers, and the episode's clock."""
        return {
            "physics": physics.save(self._model, self._data, self._made),
            "task": snapshot.freeze(vars(self._env.task)),
            "clock": int(self._env._step_count),
            "running": int(self._running),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_state` returned, in this instance or in another one made with the same arguments."""
        physics.restore(self._model, self._data, self._made, state["physics"])
        for key, value in snapshot.thaw(state["task"], vars(self._env.task)).items():
            setattr(self._env.task, key, value)
        self._env._step_count = int(state["clock"])
        self._running, self._seed = bool(state["running"]), None
        self._env._reset_next_step = not self._running
        self._upload_terrain()

    def _upload_terrain(self) -> None:
        """A height field lives in the graphics memory too; a restored one must be sent there again."""
        contexts = self._env.physics.contexts if self._model.nhfield and self._env.physics._contexts else None
        if contexts:
            import mujoco

            with contexts.gl.make_current() as context:
                for number in range(self._model.nhfield):
                    context.call(mujoco.mjr_uploadHField, self._model, contexts.mujoco.ptr, number)


def _load(domain: str, task: str, seed: int, options: dict[str, Any]) -> Any:
    suite = _suite()
    function = suite._DOMAINS[domain].SUITE[task]
    fixed = {"random", "environment_kwargs"}
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    refuse_options(options, set(known) - fixed, f"dmc/{domain}_{task}")
    return suite.load(domain, task, task_kwargs={**options, "random": seed & 0xFFFFFFFF})
