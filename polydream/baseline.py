"""The command `baseline`: a model-free agent of stable-baselines3 on one of our tasks, logged and judged like a run of ours.

It exists for `polydream benchmark`, where it makes the cells `sb3-sac`, `sb3-ppo` and `sb3-dqn`. The agents are the library's
with its own settings (Raffin et al. 2021, JMLR 22:268); tasks, budgets, action repeat, seeds and evaluation are ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .core.config import ConfigError, nearest, to_dict
from .core.rng import seed_for
from .flags import none, parse

if TYPE_CHECKING:
    import gymnasium

    from .core.log import Log
    from .core.run import RunConfig
    from .core.specs import Space, Spec, Task

METHODS = {"sb3-sac": "SAC", "sb3-ppo": "PPO", "sb3-dqn": "DQN"}
OPTIONS = ("task", "seed", "steps", "dir", "device", "env", "eval", "log")
"""Options of `train` that mean something without a world model."""


def applies(option: str) -> bool:
    """True for an option of `train` that a baseline takes, too."""
    return option.partition(".")[0] in OPTIONS


def baseline(argv: Sequence[str]) -> int:
    """Train a model-free agent: baseline --method sb3-sac --task dmc/cartpole_balance --steps 50000 [--env.repeat 2 ...].

    Methods: sb3-sac (continuous actions), sb3-dqn (discrete actions), sb3-ppo (both). Further options are those of `polydream train`
    about the task, its evaluation and logging. A run cannot be resumed.
    """
    from .asked import resolved
    from .core.signals import Signals

    words = parse(argv)
    none(words.positional)
    method = words.flags.pop("method", None) or ""
    if method not in METHODS:
        raise ConfigError(f"no baseline {method!r}; did you mean {nearest(method, METHODS)[0]!r}? There are {', '.join(METHODS)}")
    for key in words.flags:
        if not applies(key):
            raise ConfigError(f"--{key} means nothing to {method}: it takes {', '.join(OPTIONS)}")
    cfg = replace(resolved(words.flags), variant=method)
    with Signals(cfg.grace):
        directory = learn(cfg)
    print(f"report: {directory / 'report.html'}")
    return 0


def learn(cfg: RunConfig) -> Path:
    """Train `cfg.variant` to the end of its budget; returns the run directory. Raises ConfigError where library or action does not fit."""
    try:
        import stable_baselines3
    except ModuleNotFoundError:
        raise ConfigError('baselines need stable-baselines3: pip install "polydream[baselines]"') from None
    import torch

    from .core.launch import make_task, run_directory
    from .core.log import Log
    from .eval.report import write_report

    make = partial(make_task, cfg)
    try:
        directory = run_directory(cfg)
    except FileExistsError as error:
        raise ConfigError(str(error)) from None
    torch.manual_seed(cfg.seed)
    env = as_gymnasium(make())
    _suits(cfg.variant, env)
    kind = getattr(stable_baselines3, METHODS[cfg.variant])
    model = kind("MultiInputPolicy", env, seed=cfg.seed, verbose=0, device=cfg.device)
    _write(cfg, directory, stable_baselines3.__version__)
    status, tracked = "FAILED", cfg.log
    with Log(
        directory, mlflow=tracked.mlflow, experiment=tracked.experiment, run_name=directory.name, params=_told(cfg), system=tracked.system
    ) as log:
        try:
            _train(cfg, model, env, make, log, stable_baselines3.__version__)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            env.close()
            log.artifact(write_report(directory))
            log.close(status)
    return directory


def _train(cfg: RunConfig, model: Any, env: Any, make: Any, log: Log, version: str) -> None:
    from stable_baselines3.common.callbacks import BaseCallback

    from .eval.judge import Judge

    repeat, judge = env.task.spec.repeat, Judge()

    def examine(step: int) -> None:
        for mode in cfg.eval.modes:
            seen = judge.evaluate(_Player(model, env, cfg.seed), make, episodes=cfg.eval.episodes, seed=cfg.seed, mode=mode, video=None)
            log.scalars(step, seen.row(), "eval")
            print(f"evaluation at {step:,} steps, {mode}: return {seen.return_mean:.1f} over {cfg.eval.episodes} episodes", flush=True)

    class Watch(BaseCallback):
        """Writes episodes and evaluations as our training loop does."""

        judged = 0

        def _on_step(self) -> bool:
            step = self.num_timesteps * repeat
            for info in self.locals["infos"]:
                if "episode" in info:
                    log.episode(step, float(info["episode"]["r"]), int(info["episode"]["l"]))
            if cfg.eval.every and step - self.judged >= cfg.eval.every and step < cfg.steps:
                self.judged = step
                examine(step)
            return bool(step < cfg.steps)  # PPO would finish its batch

    parameters = sum(p.numel() for p in model.policy.parameters() if p.requires_grad)
    command = " ".join(["python -m polydream", *sys.argv[1:]])
    log.scalars(0, {"command": command, "parameters": parameters, "stable_baselines3": version, "device": f"{os.cpu_count()} cores"}, "run")
    for row in judge.baseline(make, episodes=cfg.eval.baseline, seed=cfg.seed):
        log.scalars(0, row, "eval")
    watch = Watch()
    model.learn(total_timesteps=-(-cfg.steps // repeat), callback=watch)
    examine(max(watch.num_timesteps * repeat, cfg.steps))


def _told(cfg: RunConfig) -> dict[str, Any]:
    """What of the configuration holds for a baseline."""
    kept = ("variant", "task", "seed", "steps", "device", "env", "eval", "log")
    return {key: value for key, value in to_dict(cfg).items() if key in kept}


def _write(cfg: RunConfig, directory: Path, version: str) -> None:
    import yaml

    told = _told(cfg) | {"stable_baselines3": version}
    (directory / "config.yaml").write_text(yaml.safe_dump(told, sort_keys=False))


def _suits(method: str, env: gymnasium.Env[Any, Any]) -> None:
    """Refuse SAC for discrete and DQN for continuous actions."""
    discrete = hasattr(env.action_space, "n")
    if (method == "sb3-sac" and discrete) or (method == "sb3-dqn" and not discrete):
        raise ConfigError(
            f"{method} is for {'continuous' if discrete else 'discrete'} actions only; use sb3-ppo or sb3-{'dqn' if discrete else 'sac'}"
        )


class _Player:
    """A model of stable-baselines3 as a player of ours. Its noise begins anew with every evaluation, and training's goes on as it was."""

    def __init__(self, model: Any, env: Any, seed: int) -> None:
        self.model, self.env, self.seed, self.steps = model, env, seed, 0

    def initial(self, n: int) -> None:
        """No state to begin with."""
        self.steps = 0

    def act(self, obs: Mapping[str, np.ndarray], state: None, *, is_first: np.ndarray, mode: str) -> tuple[dict[str, np.ndarray], None]:
        """Actions of n environments. mode: "sample" draws, "mode" takes the most likely or, of DQN, the best action."""
        seen = {key: _observation(space, obs[key], batch=True) for key, space in self.env.task.spec.visible.items()}
        self.steps += 1
        with _noise(self.model, seed_for(self.seed, "baseline", self.steps)):
            chosen, _ = self.model.predict(seen, deterministic=mode == "mode")
        return {self.env.key: np.asarray(chosen)}, None


@contextmanager
def _noise(model: Any, seed: int) -> Iterator[None]:
    """Everything that a model draws from begins at `seed`, and is put back after."""
    import torch

    space, numpy = model.action_space, np.random.get_state()  # noqa: NPY002  the old generator is the one that it uses
    own = space._np_random
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        space.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy)  # noqa: NPY002
            space._np_random = own


def _observation(space: Space, value: np.ndarray, batch: bool = False) -> np.ndarray:
    """One observation as SB3 takes it: pictures as they are, numbers flat, classes one-hot."""
    if space.image:
        return np.asarray(value)
    flat = np.eye(space.classes, dtype=np.float32)[np.asarray(value, int)] if space.classes else np.asarray(value, np.float32)
    return flat.reshape(len(value), -1) if batch else flat.reshape(-1)


def as_gymnasium(task: Task) -> Any:
    """A task of ours as a Gymnasium environment of boxes by key, its episodes counted. Raises ConfigError for several actions."""
    import gymnasium
    from gymnasium.spaces import Box, Dict, Discrete
    from stable_baselines3.common.monitor import Monitor

    spec: Spec = task.spec
    if len(spec.action) != 1:
        raise ConfigError(f"baselines take tasks of one action, not {', '.join(spec.action)}")
    ((key, does),) = spec.action.items()
    if does.classes is not None and does.elements != 1:
        raise ConfigError(f"baselines take one discrete action, not {does.elements} at once")

    class Adapter(gymnasium.Env[dict[str, np.ndarray], Any]):
        """Steps the task."""

        def __init__(self) -> None:
            self.task, self.key = task, key
            boxes: dict[str, gymnasium.Space[Any]] = {
                name: Box(0, 255, space.shape, np.uint8) if space.image else Box(-np.inf, np.inf, (space.width,), np.float32)
                for name, space in spec.visible.items()
            }
            self.observation_space: Any = Dict(boxes)
            self.action_space: Any = Discrete(does.classes) if does.classes else Box(-1.0, 1.0, does.shape, np.float32)

        def _seen(self, step: Mapping[str, Any]) -> dict[str, np.ndarray]:
            return {name: _observation(space, step["obs"][name]) for name, space in spec.visible.items()}

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            """First observation of an episode."""
            return self._seen(task.reset(seed)), {}

        def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
            """One decision."""
            step = task.step({key: np.asarray(action, does.dtype).reshape(does.shape)})
            ended = bool(step["is_terminal"])
            return self._seen(step), float(step["reward"]), ended, bool(step["is_last"]) and not ended, {}

        def close(self) -> None:
            """End the task."""
            task.close()

    env: Any = Monitor(Adapter())
    env.task, env.key = task, key
    return env
