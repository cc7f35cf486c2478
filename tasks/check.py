"""Does an environment keep its promises? `check_task` finds out by playing and says in plain language what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from ..core.specs import FLAGS, REPORTED, Restorable, Space, Spec, Step, Task, unjudged

REPLAYED = 20


def check_task(task: Task, steps: int = 200) -> list[str]:
    """Play `steps` random decisions and list every kind of problem once; an empty list means that all is well.

    Looks at: the spec, keys, shapes, dtypes and ranges of every array, finite numbers, flags, rewards at the start of an
    episode, the length of episodes, actions at their bounds, equal episodes from equal seeds, `render`, and, where it is
    offered, that a restored state repeats itself exactly. The task is reset several times and left mid-episode.
    """
    problems = _spec_problems(getattr(task, "spec", None))
    if problems:
        return problems
    for part in (_play, _check_bounds, _check_seed, _check_restore, _check_render):
        try:
            problems += part(task, steps)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's environment raises is a finding
            problems.append(f"{_WHILE[part.__name__]} it raised {type(error).__name__}: {error}")
            break
    return list(dict.fromkeys(problems))


_WHILE = {
    "_play": "while playing random actions",
    "_check_bounds": "while playing actions at the bounds",
    "_check_seed": "while replaying a seed",
    "_check_restore": "while saving and restoring",
    "_check_render": "while rendering",
}


def _spec_problems(spec: Any) -> list[str]:
    if not isinstance(spec, Spec):
        return [f"task.spec must be a polydream.core.specs.Spec, not {type(spec).__name__}"]
    problems = [f"the spec offers no {name}" for name, group in (("observations", spec.obs), ("actions", spec.action)) if not group]
    for key, space in spec.action.items():
        if space.image:
            problems.append(f"action {key!r} is an image")
    problems += [f"hidden key {key!r} is no observation" for key in sorted(spec.hidden - spec.obs.keys())]
    problems += [f"repeat is {spec.repeat}, at least 1 is needed"] if spec.repeat < 1 else []
    return problems + ([f"limit is {spec.limit}, at least 1 is needed"] if spec.limit is not None and spec.limit < 1 else [])


def _play(task: Task, steps: int) -> list[str]:
    rng = np.random.default_rng(0)
    step, problems, length = task.reset(0), [], 0
    problems += _row_problems(task.spec, step, first=True)
    for _ in range(steps):
        if not isinstance(step, Mapping) or step.get("is_last"):
            step, length = task.reset(), 0
            problems += _row_problems(task.spec, step, first=True)
            continue
        step, length = task.step(task.spec.random_action(rng)), length + 1
        problems += _row_problems(task.spec, step, first=False)
        if task.spec.limit is not None and length >= task.spec.limit and not step.get("is_last"):
            problems.append(f"an episode runs past the spec's limit of {task.spec.limit} decisions")
    return problems


def _row_problems(spec: Spec, step: Any, *, first: bool) -> list[str]:
    call = "reset()" if first else "step()"
    if not isinstance(step, Mapping) or not isinstance(step.get("obs"), Mapping):
        return [f"{call} must return a dict with an 'obs' dict inside, not {type(step).__name__}"]
    problems = _group_problems(f"{call} observation", spec.obs, step["obs"])
    beside = {key: value for key, value in unjudged(spec, dict(step)).items() if key not in ("obs", "reward", *FLAGS)}
    problems += _group_problems(f"{call} extra", spec.extras, beside)
    problems += _reward_problems(call, step, first)
    for flag in (*FLAGS, *(REPORTED & step.keys())):
        if not isinstance(step.get(flag), (bool, np.bool_)):
            problems.append(f"{call} {flag} must be a bool, not {step.get(flag)!r}")
    if bool(step.get("is_first")) != first:
        problems.append(f"{call} gave is_first={step.get('is_first')}: it is true exactly for the step that reset() returns")
    if first and step.get("is_last"):
        problems.append("reset() gave is_last: an episode needs at least one action")
    if step.get("is_terminal") and not step.get("is_last"):
        problems.append("is_terminal without is_last: a terminal step ends the episode")
    return problems


def _reward_problems(call: str, step: Mapping[str, Any], first: bool) -> list[str]:
    reward = step.get("reward")
    if isinstance(reward, bool) or not isinstance(reward, (int, float, np.number, np.ndarray)) or np.shape(reward) != ():
        return [f"{call} reward must be one number, not {reward!r}"]
    if not np.isfinite(float(reward)):
        return [f"{call} reward is not finite: {reward}"]
    return [f"reset() gave reward {reward}: nothing was done yet, so it must be 0"] if first and float(reward) != 0.0 else []


def _group_problems(where: str, spaces: Mapping[str, Space], values: Mapping[str, Any]) -> list[str]:
    problems = [f"{where} {key!r} is missing" for key in spaces if key not in values]
    problems += [f"{where} {key!r} is not in the spec" for key in values if key not in spaces]
    for key in (key for key in spaces if key in values):
        problems += [f"{where} {key!r} {problem}" for problem in _array_problems(spaces[key], values[key])]
    return problems


def _array_problems(space: Space, value: Any) -> Iterator[str]:
    array = np.asarray(value)
    if array.dtype != np.dtype(space.dtype):
        yield f"has dtype {array.dtype}, the spec says {space.dtype}"
    if array.shape != space.shape:
        yield f"has shape {array.shape}, the spec says {space.shape}"
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        yield "is not finite"
    elif space.classes is not None and array.size and (array.min() < 0 or array.max() >= space.classes):
        yield f"holds classes {array.min()} ... {array.max()}, the spec says 0 ... {space.classes - 1}"
    elif space.low is not None and array.dtype.kind == "f" and (array.reshape(-1) < _bound(space.low) - _slack(space.low)).any():
        yield f"falls below the spec's low of {space.low}"
    elif space.high is not None and array.dtype.kind == "f" and (array.reshape(-1) > _bound(space.high) + _slack(space.high)).any():
        yield f"rises above the spec's high of {space.high}"


def _bound(bound: float | tuple[float, ...]) -> np.ndarray:
    return np.asarray(bound, np.float32)


def _slack(bound: float | tuple[float, ...]) -> np.ndarray:
    """What rounding to float32 may add."""
    return np.float32(1e-5) * (1.0 + np.abs(_bound(bound)))


def _extremes(spec: Spec, top: bool) -> dict[str, np.ndarray]:
    """The lowest or the highest action."""
    return {
        k: np.full(s.shape, (s.classes - 1 if top else 0) if s.classes else (1.0 if top else -1.0), s.dtype) for k, s in spec.action.items()
    }


def _check_bounds(task: Task, steps: int) -> list[str]:
    problems = []
    for top in (False, True):
        task.reset(1)
        problems += _row_problems(task.spec, task.step(_extremes(task.spec, top)), first=False)
    return problems


def _episode(task: Task, step: Step, seed: int, steps: int) -> list[Step]:
    """Random decisions from `step` on, through resets, copied so that later steps cannot change them."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(steps):
        step = task.reset() if step["is_last"] else task.step(task.spec.random_action(rng))
        rows.append(deepcopy(step))
    return rows


def _difference(one: list[Step], other: list[Step]) -> str | None:
    for number, (a, b) in enumerate(zip(one, other, strict=True)):
        for key in a["obs"]:
            if not np.array_equal(a["obs"][key], b["obs"][key], equal_nan=True):
                return f"observation {key!r} after {number} steps"
        for key in ("reward", *FLAGS):
            if not np.array_equal(a[key], b[key], equal_nan=True):
                return f"{key} after {number} steps"
    return None


def _check_seed(task: Task, steps: int) -> list[str]:
    rounds = []
    for _ in range(2):
        first = deepcopy(task.reset(7))
        rounds.append([first, *_episode(task, first, 2, min(steps, 50))])
    different = _difference(*rounds)
    return [f"the same seed and actions give another episode: {different} differs"] if different else []


def _check_restore(task: Task, steps: int) -> list[str]:
    if not isinstance(task, Restorable):
        return []
    start = task.reset(3)
    step = _episode(task, start, 4, 5)[-1]
    try:
        state = task.get_state()
    except NotImplementedError as error:
        return [f"get_state is offered but not possible: {error}"]
    problems, kept = _state_problems(state, "state"), deepcopy(state)
    before = _episode(task, step, 5, REPLAYED)
    task.reset(11)
    task.set_state(state)
    after = _episode(task, step, 5, REPLAYED)
    if different := _difference(before, after):
        problems.append(f"a restored state does not repeat itself: {different} differs")
    if not _equal(state, kept):
        problems.append("the saved state changes while the task goes on: get_state must copy its arrays")
    return problems


def _state_problems(state: Any, where: str) -> list[str]:
    if isinstance(state, Mapping):
        return [problem for key, value in state.items() for problem in _state_problems(value, f"{where}[{key!r}]")]
    plain = isinstance(state, (bool, int, float, str, np.generic)) or (isinstance(state, np.ndarray) and state.dtype != object)
    return [] if plain else [f"{where} is a {type(state).__name__}: only arrays, numbers, strings and dicts of them can be saved"]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, np.ndarray) and one.dtype.kind in "fc":
        return np.array_equal(one, other, equal_nan=True)
    return bool(np.array_equal(one, other))


def _check_render(task: Task, steps: int) -> list[str]:
    task.reset(0)
    try:
        picture = task.render()
    except RuntimeError as error:
        return [f"render() gives no picture, so there will be no videos: {error}"]
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        given = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        return [f"render() must return uint8 (height, width, 3), not {given}"]
    return []
