"""Several environments stepped as one, in this process or in worker processes, with the same results to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, Self

import numpy as np

from .faults import Faults
from .rng import seed_for
from .specs import FLAGS, Space, Spec, Step, unjudged
from .worker import EnvError, LocalEnv, Maker, RemoteEnv

CLOSING, HASTE = 5.0, 0.5  # seconds for workers to close their tasks: usually, and when one of them has failed


class Vector:
    """n environments of one spec.

    A step is {"obs": {key: (n, ...)}, "reward": (n,) float32, "is_first", "is_last", "is_terminal": (n,) bool} with the
    extras of the spec beside, newly allocated every time. The step after an episode's last one is the next episode's
    first: the environment is reset and the action given for it is ignored, so the final observation has a row of its own.
    Episode k of environment i is reset with seed `seed_for(seed, f"env{i}", k)`.

    makers: one function without arguments per environment. In worker processes (started by "spawn", so scripts need
    `if __name__ == "__main__":`) they are sent with cloudpickle.
    timeout: seconds that worker processes may take together for one call, the first one included.
    faults: how many faults to live through. An environment that raises, dies, hangs in its process or returns what does not fit
    the spec is then made anew and begins its next episode; `broken` names those of the last step, whose episodes ended
    without a last row. Without it such errors pass through: EnvError from a process, else the task's own or ValueError.
    Raises ValueError for environments of unequal specs.
    """

    def __init__(
        self, makers: Sequence[Maker], seed: int, processes: bool = False, timeout: float = 60.0, faults: Faults | None = None
    ) -> None:
        if not makers:
            raise ValueError("a Vector needs at least one environment")
        self.n, self.seed, self.timeout, self.faults = len(makers), seed, timeout, faults
        self.broken: list[int] = []
        self._makers = list(makers)
        self._open: Callable[[Maker, int], LocalEnv | RemoteEnv] = RemoteEnv if processes else LocalEnv
        self._envs: list[LocalEnv | RemoteEnv] = []
        self._episode = np.full(self.n, -1, np.int64)
        self._over = np.ones(self.n, bool)
        try:
            for i, maker in enumerate(makers):
                self._envs.append(self._open(maker, i))
            self.spec = self._agree(self._ask_all("spec"))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def step(self, actions: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
        """One step of every environment. None resets all of them: the first call must, later ones may.

        actions: {key: (n, ...)}, continuous in [-1, 1], discrete as indices.
        Raises RuntimeError before the first reset; ValueError for actions or for steps that do not fit the spec, each naming
        environment and key.
        """
        self._check_open()
        if actions is None:
            self._over[:] = True
        else:
            self._check_actions(actions)
        self.broken = []
        row = self._step_all(actions) if self.faults is None else self._step_each(actions, self.faults)
        self._over = row["is_last"].copy()
        return row

    def _step_all(self, actions: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
        for i in range(self.n):
            self._ask(i, actions)
        return self._stack(self._receive_all())

    def _step_each(self, actions: Mapping[str, np.ndarray] | None, faults: Faults) -> dict[str, Any]:
        """As `_step_all`, with every environment's errors kept to itself."""
        errors: dict[int, Exception] = {}
        steps: list[Step] = [{} for _ in range(self.n)]
        for i in range(self.n):
            try:
                self._ask(i, actions)
            except Exception as error:  # noqa: BLE001  a task may fail in any way
                errors[i] = error
        started = time.monotonic()
        for i in range(self.n):
            try:
                if i not in errors:
                    steps[i] = self._envs[i].receive(started, self.timeout)
            except EnvError as error:
                errors[i] = error
        try:
            if not errors:
                return self._stack(steps)
        except (ValueError, TypeError, KeyError, AttributeError):
            pass  # one by one, below, shows whose
        for i in range(self.n):
            self._replace_bad(i, steps, errors.get(i), faults)
        return self._stack(steps)

    def _replace_bad(self, i: int, steps: list[Step], error: Exception | None, faults: Faults) -> None:
        """Put a first step of a new episode in place of a step that is missing or does not fit."""
        while error is not None or (error := self._unfit(i, steps[i])) is not None:
            faults.note(self._who(i), error)
            if i not in self.broken:
                self.broken.append(i)
            error = None
            try:
                self._over[i] = True
                self._revive(i)
                self._ask(i, None)
                steps[i] = self._envs[i].receive(time.monotonic(), self.timeout)
            except Exception as failure:  # noqa: BLE001  it may fail again
                error = failure

    def _revive(self, i: int) -> None:
        """End environment i and make it anew."""
        old = self._envs[i]
        with suppress(Exception):  # a task that is broken may not even close
            old.release()
            old.close(time.monotonic() + HASTE)
        self._envs[i] = self._open(self._makers[i], i)
        self._envs[i].send("spec")
        self._agree([(self.spec, None), self._envs[i].receive(time.monotonic(), self.timeout)], [old, self._envs[i]])

    def _unfit(self, i: int, step: Step) -> Exception | None:
        try:
            self._stack([step], i)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return error
        return None

    def _ask(self, i: int, actions: Mapping[str, np.ndarray] | None) -> None:
        if self._over[i]:
            self._episode[i] += 1
            self._envs[i].send("reset", seed_for(self.seed, f"env{i}", int(self._episode[i])))
        else:
            assert actions is not None
            self._envs[i].send("step", {key: np.asarray(value)[i] for key, value in actions.items()})

    def render(self, i: int) -> np.ndarray:
        """Picture of environment i: uint8 (height, width, 3)."""
        self._check_open()
        self._envs[i].send("render")
        return self._envs[i].receive(time.monotonic(), self.timeout)

    def get_state(self) -> dict[str, Any]:
        """{"episode": (n,) int64, "over": (n,) bool, "tasks": {"0": state, ...}}; the state of a task that cannot be restored is None.

        The row that `step` returned last is not part of it: whoever acts on that row keeps it.
        """
        self._check_open()
        states = self._ask_all("get_state")
        tasks = {str(i): state for i, state in enumerate(states)}
        return {"episode": self._episode.copy(), "over": self._over.copy(), "tasks": tasks}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `get_state` returned. An environment whose task could not be saved begins its next episode;
        `broken` then names those that were within one.

        Raises ValueError for a state of another number of environments.
        """
        self._check_open()
        if len(state["episode"]) != self.n:
            raise ValueError(f"the saved state has {len(state['episode'])} environments, this vector has {self.n}")
        saved = {i: state["tasks"][str(i)] for i in range(self.n) if state["tasks"][str(i)] is not None}
        for i, task in saved.items():
            self._envs[i].send("set_state", task)
        started = time.monotonic()
        restored = {i for i in saved if self._envs[i].receive(started, self.timeout)}
        self._episode = np.array(state["episode"], np.int64)
        self._over = np.array([bool(over) or i not in restored for i, over in enumerate(state["over"])])
        self.broken = [i for i, over in enumerate(state["over"]) if not over and i not in restored]

    def close(self) -> None:
        """Close every environment and end its process. Safe to call twice."""
        self._end(CLOSING)

    def _end(self, patience: float) -> None:
        envs, self._envs = self._envs, []
        with ExitStack() as last:  # whatever becomes of one, the others are closed
            for env in envs:
                last.callback(lambda env: env.close(deadline), env)
            deadline = time.monotonic() + patience
            for env in envs:
                env.release()

    def _check_open(self) -> None:
        if not self._envs:
            raise RuntimeError("this Vector is closed")

    def _ask_all(self, command: str) -> list[Any]:
        for env in self._envs:
            env.send(command)
        return self._receive_all()

    def _receive_all(self) -> list[Any]:
        started = time.monotonic()
        try:
            return [env.receive(started, self.timeout) for env in self._envs]
        except EnvError:
            self._end(HASTE)  # answers of the others would be taken for those of the next call
            raise

    def _agree(self, answers: list[tuple[Spec, str | None]], envs: Sequence[LocalEnv | RemoteEnv] = ()) -> Spec:
        """The spec that all share."""
        spec = answers[0][0]
        for env, (other, name) in zip(envs or self._envs, answers, strict=True):
            env.label = name or env.label
            for part in ("obs", "action", "extras", "hidden", "repeat"):
                mine, theirs = getattr(spec, part), getattr(other, part)
                if mine != theirs:
                    who = f"environment {env.index} ({env.label})"
                    raise ValueError(f"environments of one vector need one spec: {part} of {who} is {theirs}, of the first {mine}")
        return spec

    def _check_actions(self, actions: Mapping[str, np.ndarray]) -> None:
        if (self._episode < 0).any():
            raise RuntimeError("the first step of a Vector resets it: call step(None)")
        if actions.keys() != self.spec.action.keys():
            raise ValueError(f"actions {sorted(actions)} given, the task wants {sorted(self.spec.action)}")
        for key, space in self.spec.action.items():
            if np.shape(actions[key]) != (self.n, *space.shape):
                raise ValueError(f"action {key!r} has shape {np.shape(actions[key])}, wanted {(self.n, *space.shape)}")
            if not np.isfinite(actions[key]).all():
                raise ValueError(f"action {key!r} is not finite: {np.asarray(actions[key])}")

    def _stack(self, steps: list[Step], at: int = 0) -> dict[str, Any]:
        """Steps of the environments from number `at` on as one."""
        known, steps = {"obs", *_NUMBERS}, [unjudged(self.spec, step) for step in steps]
        row: dict[str, Any] = {"obs": self._stack_group("observation ", self.spec.obs, [step["obs"] for step in steps], at)}
        row |= self._stack_group("extra ", self.spec.extras, [{k: v for k, v in step.items() if k not in known} for step in steps], at)
        row |= self._stack_group("", _NUMBERS, [{k: step[k] for k in _NUMBERS if k in step} for step in steps], at)
        for i in np.flatnonzero(row["is_terminal"] & ~row["is_last"]):
            raise ValueError(f"{self._who(int(i) + at)}: is_terminal without is_last")
        return row

    def _stack_group(self, what: str, spaces: Mapping[str, Space], groups: list[dict[str, Any]], at: int) -> dict[str, np.ndarray]:
        """(n, ...) arrays of the spec's dtypes, refusing whatever does not fit it."""
        n = len(groups)
        for i, group in enumerate(groups, at):
            if group.keys() != spaces.keys():
                raise ValueError(f"{self._who(i)}: {what}keys are {sorted(group)}, the spec says {sorted(spaces)}")
        stacked = {}
        for key, space in spaces.items():
            whole = np.empty((n, *space.shape), space.dtype)
            for i, group in enumerate(groups):
                value = np.asarray(group[key])
                if value.shape != space.shape or not np.can_cast(value.dtype, whole.dtype, "same_kind"):
                    wanted = f"{space.dtype} of shape {space.shape}"
                    raise ValueError(f"{self._who(i + at)}: {what}{key!r} is {value.dtype} of shape {value.shape}, the spec says {wanted}")
                whole[i] = value
            if whole.dtype.kind == "f" and not np.isfinite(whole).all():
                bad = int(np.flatnonzero(~np.isfinite(whole.reshape(n, -1)).all(1))[0])
                raise ValueError(f"{self._who(bad + at)}: {what}{key!r} is not finite: {whole[bad]}")
            if space.classes and whole.dtype.kind in "iu" and ((whole < 0) | (whole >= space.classes)).any():
                bad = int(np.flatnonzero(((whole < 0) | (whole >= space.classes)).reshape(n, -1).any(1))[0])
                raise ValueError(f"{self._who(bad + at)}: {what}{key!r} is {whole[bad]}, the spec says classes 0 to {space.classes - 1}")
            stacked[key] = whole
        return stacked

    def _who(self, i: int) -> str:
        return f"environment {i} ({self._envs[i].label})"


_NUMBERS = {"reward": Space()} | {flag: Space(dtype="bool", classes=2) for flag in FLAGS}
