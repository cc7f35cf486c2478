"""Playing episodes to judge a player: fixed seeds that training never uses, nothing learned, nothing stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ..core.rng import seed_for
from ..core.specs import FLAGS, Spec, Step, Task
from .video import Film

Mode = Literal["sample", "mode"]
DISPLAY, WITHOUT = "where there is no display, set MUJOCO_GL=egl (or osmesa)", "without videos: --eval.video false"


class Player(Protocol):
    """Whatever chooses actions for n environments at once."""

    def initial(self, n: int) -> Any:
        """State before the first step of n environments. Begins its noise anew, so that an evaluation repeats itself."""
        ...

    def act(self, obs: Mapping[str, np.ndarray], state: Any, *, is_first: np.ndarray, mode: Mode) -> tuple[Mapping[str, np.ndarray], Any]:
        """Actions by key, (n, ...), and the next state.

        obs: observations by key, (n, ...), and the extras that the task's spec names. is_first: bool (n,), rows whose part
        of the state must be forgotten. mode: "sample" draws from the policy, "mode" takes its most likely action.
        """
        ...


class RandomPlayer:
    """Uniformly random actions: numbers in [-1, 1], any class of a discrete action. The baseline that everything must beat."""

    def __init__(self, spec: Spec, seed: int) -> None:
        self.spec, self.seed = spec, seed

    def initial(self, n: int) -> tuple[int, int]:
        """How many environments, and how many steps were taken."""
        return n, 0

    def act(
        self, obs: Mapping[str, np.ndarray], state: tuple[int, int], *, is_first: np.ndarray, mode: Mode
    ) -> tuple[dict[str, np.ndarray], tuple[int, int]]:
        """Actions that depend on the seed and the number of steps taken, on nothing else."""
        n, step = state
        rng = np.random.default_rng(seed_for(self.seed, "random", step))
        return self.spec.random_action(rng, n), (n, step + 1)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What happened, episode by episode in the order of their seeds.

    returns: undiscounted sums of rewards. lengths: decisions; times `repeat` they are environment steps.
    terminated: the environment ended the episode, as against a time limit or `max_steps`.
    successes, final_successes: whether the task reported `success` at any step, and at the last one; None if it never reports.
    video: the film of the first episode, where one was asked for and could be made. warnings: what went wrong besides.
    """

    mode: Mode
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    terminated: tuple[bool, ...]
    successes: tuple[bool, ...] | None = None
    final_successes: tuple[bool, ...] | None = None
    video: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def return_mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation of the returns over episodes (population, so 0 for one episode)."""
        return float(np.std(self.returns))

    def row(self) -> dict[str, Any]:
        """The values of an "eval" row of metrics.jsonl."""
        row = {
            "mode": self.mode,
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "returns": list(self.returns),
            "length_mean": float(np.mean(self.lengths)),
            "terminated_mean": float(np.mean(self.terminated)),
        }
        if self.successes is not None and self.final_successes is not None:
            row |= {"success_mean": float(np.mean(self.successes)), "final_success_mean": float(np.mean(self.final_successes))}
        return row

    def rows(self) -> list[dict[str, Any]]:
        """All rows for the log."""
        return [self.row()]


class _Episode:
    """The account of one episode while it runs."""

    def __init__(self, index: int, step: Step) -> None:
        self.index, self.step = index, step
        self.score, self.length, self.first = float(step["reward"]), 0, True
        self.reports = "success" in step
        self.success = self.now = bool(np.any(step.get("success", False)))

    def advance(self, step: Step) -> None:
        self.step, self.first = step, False
        self.score += float(step["reward"])
        self.length += 1
        self.reports |= "success" in step
        self.now = bool(np.any(step.get("success", False)))
        self.success |= self.now


def evaluate(
    player: Player,
    make_task: Callable[[], Task],
    *,
    episodes: int,
    seed: int,
    mode: Mode = "sample",
    video: Path | None = None,
    max_steps: int | None = None,
    parallel: int = 5,
    fps: float = 30.0,
) -> Evaluation:
    """Play `episodes` episodes, `parallel` of them at a time, and tell how they went.

    Episode k begins from `seed_for(seed, "eval", k)`, a stream of its own, so no training episode is ever seen, and the same
    call gives the same result. Sampled actions also depend on `parallel`, because the noise is drawn for all at once.
    max_steps: decisions after which an episode is broken off; needed for tasks without an end.
    video: where the first episode is filmed, `fps` frames per second, one frame per decision. A failure to render costs the
    video and one warning. Raises ValueError where a number is below 1 or the mode is unknown.
    """
    _check(mode, episodes=episodes, parallel=parallel, max_steps=1 if max_steps is None else max_steps)
    n = min(episodes, parallel)
    done: dict[int, _Episode] = {}
    camera = _Camera(video, fps)
    with ExitStack() as exits:
        exits.callback(camera.close)
        tasks = [make_task() for _ in range(n)]
        for task in tasks:
            exits.callback(task.close)
        running = [_Episode(k, task.reset(seed_for(seed, "eval", k))) for k, task in enumerate(tasks)]
        camera.shoot(tasks[0])
        begun, state = n, player.initial(n)
        while len(done) < episodes:
            first = np.array([episode.first for episode in running])
            action, state = player.act(_stack(tasks, running), state, is_first=first, mode=mode)
            for i, (task, episode) in enumerate(zip(tasks, running, strict=True)):
                if episode.index in done:  # nothing left to play for this row
                    episode.first = False
                    continue
                episode.advance(task.step({key: np.asarray(value[i]) for key, value in action.items()}))
                if episode.index == 0:
                    camera.shoot(task)
                if not episode.step["is_last"] and episode.length != max_steps:
                    continue
                done[episode.index] = episode
                if begun < episodes:
                    running[i] = _Episode(begun, task.reset(seed_for(seed, "eval", begun)))
                    begun += 1
    return _summary([done[k] for k in range(episodes)], mode, camera)


def _check(mode: str, **numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if mode not in ("sample", "mode"):
        raise ValueError(f"no evaluation mode {mode!r}; use 'sample' or 'mode'")


def _stack(tasks: list[Task], running: list[_Episode]) -> dict[str, np.ndarray]:
    """Observations and the extras that the spec names, of all rows: (n, ...)."""
    spec, first = tasks[0].spec, running[0].step
    if clash := spec.obs.keys() & spec.extras.keys() | spec.extras.keys() & set(FLAGS):
        raise ValueError(f"extras of the task take the name of an observation or a flag: {', '.join(sorted(clash))}")
    stacked = {key: np.stack([episode.step["obs"][key] for episode in running]) for key in spec.obs}
    extras = [key for key in spec.extras if key in first]
    return stacked | {key: np.stack([episode.step[key] for episode in running]) for key in extras}


def _summary(episodes: list[_Episode], mode: Mode, camera: _Camera) -> Evaluation:
    reported = any(episode.reports for episode in episodes)
    return Evaluation(
        mode=mode,
        returns=tuple(episode.score for episode in episodes),
        lengths=tuple(episode.length for episode in episodes),
        terminated=tuple(bool(episode.step["is_terminal"]) for episode in episodes),
        successes=tuple(episode.success for episode in episodes) if reported else None,
        final_successes=tuple(episode.now for episode in episodes) if reported else None,
        video=camera.path if camera.shot else None,
        warnings=tuple(camera.warnings),
    )


class _Camera:
    """Films a task, or does nothing where no video is wanted or rendering has failed once."""

    def __init__(self, path: Path | None, fps: float) -> None:
        self.path, self.shot, self.warnings = path, False, list[str]()
        self._film = Film(path, fps) if path is not None else None

    def shoot(self, task: Task) -> None:
        if self._film is None:
            return
        try:
            self._film.add(task.render())
        except Exception as error:  # noqa: BLE001  drivers fail in every way, and an evaluation is worth more than its film
            self._give_up(error)

    def close(self) -> None:
        if self._film is None:
            return
        try:
            self._film.close()
            self.shot = self._film.frames > 0
        except Exception as error:  # noqa: BLE001  the same, when the file is finished
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        assert self._film is not None
        self._film.discard()
        self._film = None
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        cure = WITHOUT if "has no picture" in reason else f"{DISPLAY}; {WITHOUT}"
        self.warnings.append(f"no evaluation video: {type(error).__name__}: {reason[:200]}; {cure}")
