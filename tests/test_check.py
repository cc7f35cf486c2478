"""`check_task` finds each kind of broken promise, and nothing where all is well."""

import json
import re

import numpy as np
import pytest

from polydream.core.specs import Space, Spec
from polydream.tasks.check import check_task

OBS = {"vector": Space(shape=(2,), low=-1.0, high=1.0), "kind": Space(dtype="int32", classes=3)}
SPEC = Spec(obs=OBS, action={"action": Space(dtype="int32", classes=2)}, limit=6)


class Honest:
    """Six steps of random numbers; subclasses below break one promise each."""

    spec = SPEC

    def __init__(self):
        self.rng = np.random.default_rng()

    def reset(self, seed=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.k = 0
        return self.row(0.0)

    def step(self, action):
        self.k += 1
        return self.row(1.0)

    def row(self, reward):
        obs = {"vector": self.rng.uniform(-1, 1, 2).astype(np.float32), "kind": np.array(self.k % 3, np.int32)}
        return {"obs": obs, "reward": reward, "is_first": self.k == 0, "is_last": self.k == 6, "is_terminal": False}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)

    def close(self):
        pass

    def get_state(self):
        return {"k": self.k, "rng": json.dumps(self.rng.bit_generator.state), "copy": np.full(2, self.k)}

    def set_state(self, state):
        self.k = state["k"]
        self.rng.bit_generator.state = json.loads(state["rng"])


def changed(**changes):
    """Honest, but `row` returns the changed entries; "obs/..." changes an observation."""

    class Changed(Honest):
        def row(self, reward):
            row = super().row(reward)
            for key, value in changes.items():
                group, name = (row["obs"], key[4:]) if key.startswith("obs_") else (row, key)
                value = value(self, group.get(name)) if callable(value) else value
                group.pop(name, None) if value is ... else group.update({name: value})
            return row

    return Changed()


def with_spec(**changes):
    task = Honest()
    task.spec = Spec(**({"obs": OBS, "action": SPEC.action, "limit": 6} | changes))
    return task


class Forgetful(Honest):
    def set_state(self, state):
        self.k = state["k"]


class Sharing(Honest):
    def __init__(self):
        super().__init__()
        self.array = np.zeros(2)

    def step(self, action):
        self.array += 1
        return super().step(action)

    def get_state(self):
        return super().get_state() | {"copy": self.array}


class Pickled(Honest):
    def get_state(self):
        return super().get_state() | {"thing": self.rng}


class Unseeded(Honest):
    def reset(self, seed=None):
        return super().reset()


class Crashing(Honest):
    def step(self, action):
        if self.k == 3:
            raise ZeroDivisionError("boom")
        return super().step(action)


class Blind(Honest):
    def render(self):
        return np.zeros((4, 4), np.uint8)


class Edgy(Honest):
    """Breaks only at the largest action of a continuous range."""

    spec = Spec(obs=OBS, action={"action": Space(shape=(1,), low=-1.0, high=1.0)}, limit=6)

    def step(self, action):
        if abs(float(action["action"][0])) == 1.0:
            raise OverflowError("at the edge")
        return super().step(action)


def test_an_honest_task_has_no_problems():
    assert check_task(Honest()) == []


CASES = [
    (lambda: changed(obs_vector=lambda t, v: v.astype(np.float64)), "observation 'vector' has dtype float64, the spec says float32"),
    (lambda: changed(obs_vector=np.zeros(3, np.float32)), r"observation 'vector' has shape \(3,\)"),
    (lambda: changed(obs_vector=np.full(2, np.nan, np.float32)), "observation 'vector' is not finite"),
    (lambda: changed(obs_vector=np.full(2, 1.5, np.float32)), "observation 'vector' rises above the spec's high of 1.0"),
    (lambda: changed(obs_vector=np.full(2, -1.5, np.float32)), "observation 'vector' falls below"),
    (lambda: changed(obs_kind=np.array(3, np.int32)), r"'kind' holds classes 3 \.\.\. 3, the spec says 0 \.\.\. 2"),
    (lambda: changed(obs_kind=...), "observation 'kind' is missing"),
    (lambda: changed(obs_more=np.zeros(1)), "observation 'more' is not in the spec"),
    (lambda: changed(task=3), r"extra 'task' is not in the spec"),
    (lambda: changed(reward=None), "reward must be one number, not None"),
    (lambda: changed(reward=float("inf")), "reward is not finite"),
    (lambda: changed(reward=1.0), r"reset\(\) gave reward 1.0"),
    (lambda: changed(is_last=lambda t, v: int(v)), "is_last must be a bool, not 0"),
    (lambda: changed(is_first=True), r"step\(\) gave is_first=True"),
    (lambda: changed(is_first=False), r"reset\(\) gave is_first=False"),
    (lambda: changed(is_terminal=lambda t, v: t.k == 2), "is_terminal without is_last"),
    (lambda: changed(is_last=lambda t, v: t.k in (0, 6)), r"reset\(\) gave is_last"),
    (lambda: changed(is_last=False), "runs past the spec's limit of 6"),
    (lambda: changed(obs=None), "'obs' dict"),
    (lambda: with_spec(obs={}), "offers no observations"),
    (lambda: with_spec(hidden=frozenset({"goal"})), "hidden key 'goal' is no observation"),
    (lambda: with_spec(repeat=0), "repeat is 0"),
    (lambda: with_spec(limit=0), "limit is 0"),
    (lambda: with_spec(action={"action": Space(shape=(2, 2, 3), dtype="uint8")}), "action 'action' is an image"),
    (Unseeded, "the same seed and actions give another episode: observation 'vector' after 0 steps differs"),
    (Forgetful, "a restored state does not repeat itself"),
    (Sharing, "the saved state changes while the task goes on"),
    (Pickled, r"state\['thing'\] is a Generator: only arrays"),
    (Crashing, "while playing random actions it raised ZeroDivisionError: boom"),
    (Edgy, "while playing actions at the bounds it raised OverflowError"),
    (Blind, r"render\(\) must return uint8"),
]


@pytest.mark.parametrize(("make", "words"), CASES, ids=[words[:40] for _, words in CASES])
def test_each_broken_promise_is_reported(make, words):
    problems = check_task(make())
    assert any(re.search(words, problem) for problem in problems), problems
    assert len(problems) == len(set(problems)) < 8


def test_a_task_without_spec():
    class Bare:
        pass

    assert check_task(Bare()) == ["task.spec must be a polydream.core.specs.Spec, not NoneType"]
