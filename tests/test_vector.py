"""Several environments as one: order of rows, seeds, saving, and what happens when one fails, dies or hangs."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest

from polydream.core.launch import make_task
from polydream.core.presets import resolve
from polydream.core.rng import seed_for
from polydream.core.specs import Spec
from polydream.core.vector import EnvError, Vector
from polydream.core.worker import describe
from polydream.tasks import gym, module, world

SOURCE = '''
import os
import time

import numpy as np

from polydream.core.specs import Space, Spec


class Odd:
    """Counts steps; does something odd at step 3. Not restorable."""

    def __init__(self, kind):
        self.kind = kind
        extras = {"task": Space(dtype="int32", classes=9)}
        self.spec = Spec(obs={"count": Space()}, action={"action": Space(dtype="int32", classes=2)}, extras=extras)

    def reset(self, seed=None):
        self.count, self.seed = 0, seed
        return self.row()

    def step(self, action):
        self.count += 1
        if self.count == 3:
            if self.kind == "raise":
                raise ZeroDivisionError("odd thing happened")
            if self.kind == "die":
                os._exit(7)
            if self.kind == "hang":
                time.sleep(1000)
        return self.row()

    def row(self):
        row = {"obs": {"count": np.float32(self.count)}, "reward": float(self.count), "task": 4}
        row |= {"is_first": self.count == 0, "is_last": self.count == 5, "is_terminal": False}
        if self.count == 3:
            row |= {"nan": {"reward": float("nan")}, "none": {"reward": None}, "terminal": {"is_terminal": True}}.get(self.kind, {})
            seen = {"shape": {"count": np.zeros(2, np.float32)}, "key": {"more": 1.0}, "infinite": {"count": np.float32("inf")}}
            row["obs"] |= seen.get(self.kind, {})
            if self.kind == "lost":
                del row["is_last"]
        return row

    def render(self):
        return np.zeros((300, 300, 3), np.uint8)

    def close(self):
        print("closed", flush=True)


def make(kind="fine"):
    if kind == "unborn":
        raise ValueError("cannot be made")
    return Odd(kind)
'''


@pytest.fixture
def odd(tmp_path, monkeypatch):
    (tmp_path / "odd_envs.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield lambda kind="fine": partial(module.make, "odd_envs:make", kind=kind)
    sys.modules.pop("odd_envs", None)


def actions_for(spec: Spec, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    each = [spec.random_action(rng) for _ in range(n)]
    return {key: np.stack([a[key] for a in each]) for key in spec.action}


def run(vector: Vector, rows: int, seed: int = 0) -> list:
    rng = np.random.default_rng(seed)
    return [vector.step(actions_for(vector.spec, vector.n, rng)) for _ in range(rows)]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        for key in ("reward", "is_first", "is_last", "is_terminal"):
            assert np.array_equal(a[key], b[key])
        assert all(np.array_equal(a["obs"][key], b["obs"][key]) for key in a["obs"])


ZERO = {"action": np.zeros(2, np.int32)}


def test_rows_and_episodes(odd):
    with Vector([odd(), odd()], seed=1) as vector:
        row = vector.step()
        assert row["obs"]["count"].shape == (2,) and row["reward"].dtype == np.float32 and row["is_first"].dtype == bool
        assert row["task"].tolist() == [4, 4] and row["is_first"].all()
        rows = [vector.step(ZERO) for _ in range(7)]
        assert [int(r["obs"]["count"][0]) for r in rows] == [1, 2, 3, 4, 5, 0, 1]
        assert [bool(r["is_last"][1]) for r in rows] == [False] * 4 + [True, False, False]
        assert [bool(r["is_first"][1]) for r in rows] == [False] * 5 + [True, False]
        assert rows[5]["reward"].tolist() == [0, 0] and rows[4]["reward"].tolist() == [5, 5]
        assert vector._envs[1]._task.seed == seed_for(1, "env1", 1)
        vector.step()
        assert vector._envs[0]._task.seed == seed_for(1, "env0", 2)


def test_an_environment_that_ends_does_not_wait_for_the_others():
    with Vector([partial(world.make, "chain", length=4)] * 2, seed=0) as vector:
        vector.step()
        for actions, lasts, firsts in (
            ((1, 0), (0, 0), (0, 0)),
            ((1, 0), (0, 0), (0, 0)),
            ((1, 1), (1, 0), (0, 0)),
            ((1, 1), (0, 0), (1, 0)),
            ((1, 1), (0, 1), (0, 0)),
            ((1, 1), (0, 0), (0, 1)),
        ):
            row = vector.step({"action": np.array(actions)})
            assert (tuple(row["is_last"]), tuple(row["is_first"])) == (lasts, firsts)
            assert tuple(row["is_terminal"]) == lasts


def test_arrays_are_new_every_step():
    with Vector([partial(world.make, "dots", size=8)], seed=0) as vector:
        row = vector.step()
        kept = {k: v.copy() for k, v in row["obs"].items()}
        run(vector, 5)
        assert all(np.array_equal(row["obs"][k], kept[k]) for k in kept)


@pytest.mark.parametrize("name", ["fourrooms", "dots", "reach"])
def test_processes_change_nothing(name):
    makers = [partial(world.make, name, obs="both", size=16)] * 2
    with Vector(makers, seed=3) as local, Vector(makers, seed=3, processes=True, timeout=60) as remote:
        assert remote.spec == local.spec and remote.n == 2
        assert_equal([local.step()], [remote.step()])
        assert_equal(run(local, 70), run(remote, 70))
        assert np.array_equal(local.render(1), remote.render(1))
        state = remote.get_state()
        before = run(remote, 30, seed=5)
        local.set_state(state)
        assert_equal(before, run(local, 30, seed=5))


def test_other_seeds_give_other_episodes():
    rows = [Vector([partial(world.make, "fourrooms")] * 2, seed=seed).step()["obs"] for seed in (0, 0, 1)]
    same, other = ([bool(np.array_equal(rows[0][k], rows[i][k])) for k in rows[0]] for i in (1, 2))
    assert all(same) and not all(other)
    assert not all(np.array_equal(v[0], v[1]) for v in rows[0].values())


@pytest.mark.parametrize("maker", [partial(world.make, "fourrooms"), partial(gym.make, "Pendulum-v1")])
def test_a_restored_vector_repeats_itself(maker):
    with Vector([maker] * 3, seed=2) as vector, Vector([maker] * 3, seed=2) as other:
        vector.step()
        run(vector, 23)
        state = vector.get_state()
        before = run(vector, 250, seed=9)
        other.set_state(state)
        assert_equal(before, run(other, 250, seed=9))
        vector.set_state(state)
        assert_equal(before, run(vector, 250, seed=9))


def test_what_cannot_be_restored_begins_its_next_episode(odd):
    with Vector([odd(), odd()], seed=1) as vector, Vector([odd(), odd()], seed=1) as other:
        vector.step()
        run(vector, 8)
        state = vector.get_state()
        assert state["tasks"] == {"0": None, "1": None} and state["episode"].tolist() == [1, 1]
        other.set_state(state)
        row = other.step(ZERO)
        assert row["is_first"].all() and other._envs[0]._task.seed == seed_for(1, "env0", 2)


def test_a_state_for_another_number_of_environments(odd):
    with Vector([odd()], seed=1) as vector, Vector([odd()] * 2, seed=1) as other:
        vector.step()
        with pytest.raises(ValueError, match="the saved state has 1 environments, this vector has 2"):
            other.set_state(vector.get_state())


@pytest.mark.parametrize("processes", [False, True])
def test_failures_name_the_environment(odd, processes):
    with Vector([odd(), odd("raise")], seed=0, processes=processes, timeout=60) as vector:
        vector.step()
        vector.step(ZERO)
        vector.step(ZERO)
        error = EnvError if processes else ZeroDivisionError
        with pytest.raises(error) as caught:
            vector.step(ZERO)
        told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
        assert "odd thing happened" in told and "environment 1" in told and "odd_envs:make" in told
        if processes:
            assert 'raise ZeroDivisionError("odd thing happened")' in told


@pytest.mark.parametrize("processes", [False, True])
def test_environments_that_cannot_be_made(odd, processes):
    with pytest.raises(EnvError if processes else ValueError) as caught:
        Vector([odd(), odd("unborn")], seed=0, processes=processes, timeout=60)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "cannot be made" in told and "environment 1" in told


def test_a_dead_worker_is_one_clear_error(odd):
    with Vector([odd(), odd("die")], seed=0, processes=True, timeout=60) as vector:
        vector.step()
        vector.step(ZERO)
        vector.step(ZERO)
        with pytest.raises(EnvError, match=r"environment 1 \(.*'die'\)\) is gone: its worker process ended with exit code 7"):
            vector.step(ZERO)
        with pytest.raises(RuntimeError, match="closed"):
            vector.step(ZERO)


def test_a_killed_worker_is_one_clear_error(odd):
    with Vector([odd()], seed=0, processes=True, timeout=60) as vector:
        vector.step()
        os.kill(vector._envs[0]._process.pid, signal.SIGKILL)
        vector._envs[0]._process.join(10)
        with pytest.raises(EnvError, match="was killed by signal 9"):
            vector.step({"action": np.zeros(1, np.int32)})


def test_a_hanging_worker_is_given_up(odd):
    vector = Vector([odd("hang"), odd()], seed=0, processes=True, timeout=60)
    vector.step()
    vector.step(ZERO)
    vector.step(ZERO)
    vector.timeout = 0.3
    processes = [env._process for env in vector._envs]
    with pytest.raises(EnvError, match=r"environment 0 \(.*'hang'\)\) hangs: no answer within 0.3 s"):
        vector.step(ZERO)
    for process in processes:
        with pytest.raises(ValueError, match="closed"):
            process.is_alive()


def test_workers_end_with_their_tasks_closed(odd, capfd):
    vector = Vector([odd()] * 2, seed=0, processes=True, timeout=60)
    pids = [env._process.pid for env in vector._envs]
    vector.step()
    vector.close()
    vector.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert capfd.readouterr().out.count("closed") == 2


def test_workers_end_when_their_parent_is_killed(tmp_path):
    code = """
import os, signal, time
from functools import partial
from polydream.core.worker import RemoteEnv
from polydream.tasks import world
if __name__ == "__main__":
    env = RemoteEnv(partial(world.make, "chain"), 0)
    env.send("reset", 0)
    env.receive(time.monotonic(), 60)
    print(env._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    script = tmp_path / "killed.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    pid = int(done.stdout)
    for _ in range(200):
        if not _running(pid):
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlives its parent")


def _running(pid):
    """False too for a process that has ended and that nobody has waited for."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_workers_do_not_import_torch(odd, tmp_path):
    (tmp_path / "odd_envs.py").write_text(
        SOURCE + '\n    \ndef spy():\n    import sys\n    return Odd("torch" if "torch" in sys.modules else "light")\n'
    )
    with Vector([partial(module.make, "odd_envs:spy")], seed=0, processes=True, timeout=60) as vector:
        state = vector._envs[0]
        state.send("__getattribute__", "kind")
        assert state.receive(time.monotonic(), 60) == "light"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", r"environment 1 \(.*'nan'\)\): 'reward' is not finite"),
        ("none", "environment 1 .*: 'reward' is object"),
        ("terminal", "environment 1 .*: is_terminal without is_last"),
        ("shape", r"environment 1 .*: observation 'count' is float32 of shape \(2,\), the spec says float32 of shape \(\)"),
        ("key", r"environment 1 .*: observation keys are \['count', 'more'\]"),
        ("infinite", "environment 1 .*: observation 'count' is not finite"),
        ("lost", r"environment 1 .*: keys are \['is_first', 'is_terminal', 'reward'\]"),
    ],
)
def test_steps_that_break_the_spec_are_named(odd, kind, words):
    with Vector([odd(), odd(kind)], seed=0) as vector:
        vector.step()
        vector.step(ZERO)
        vector.step(ZERO)
        with pytest.raises(ValueError, match=words):
            vector.step(ZERO)


def test_bad_calls():
    with pytest.raises(ValueError, match="at least one"):
        Vector([], seed=0)
    with pytest.raises(ValueError, match=r"obs of environment 1 \(world/reach\)"):
        Vector([partial(world.make, "chain"), partial(world.make, "reach")], seed=0)
    with Vector([partial(world.make, "chain")] * 2, seed=0) as vector:
        with pytest.raises(RuntimeError, match=r"step\(None\)"):
            vector.step(ZERO)
        vector.step()
        with pytest.raises(ValueError, match=r"\['move'\] given, the task wants \['action'\]"):
            vector.step({"move": np.zeros(2)})
        with pytest.raises(ValueError, match=r"has shape \(3,\), wanted \(2,\)"):
            vector.step({"action": np.zeros(3, np.int32)})
    with pytest.raises(RuntimeError, match="closed"):
        vector.step()


def test_a_maker_is_named_by_its_task_and_not_by_its_whole_configuration() -> None:
    cfg = resolve({"task": "world/fourrooms"}, {})
    assert describe(partial(make_task, cfg, 0, count=2)) == "make_task('world/fourrooms', 0, count=2)"
    assert describe(partial(make_task, "x" * 100)) == "make_task('str')"
