"""Exported acting steps: they are the agent's own, only what is read goes in, and a difference is noticed and leaves nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polydream import export, parity
from polydream.__main__ import main
from polydream.core import checkpoint, registry
from polydream.core.agent import Dreamer
from polydream.core.player import Player
from polydream.core.presets import resolve
from polydream.core.rng import Draws
from polydream.core.specs import Member, Space, Spec
from polydream.policystep import PolicyStep, Tensors, Unexportable, in_units
from tests.fixtures import DISCRETE, IMAGE, VECTOR, agent, tiny

BOUNDED = Spec(obs={"vector": Space(shape=(4,))}, action={"action": Space(shape=(2,), low=(0.0, -2.0), high=(10.0, 2.0))})
CLASSES = Spec(obs={"vector": Space(shape=(4,))}, action={"action": Space(dtype="int32", classes=3, low=5.0)})
BOTH = Spec(
    obs={"image": IMAGE.obs["image"], "kind": Space(dtype="int32", classes=3), "pos": Space(shape=(2,))},
    action={"grip": Space(dtype="int32", classes=2), "arm": Space(shape=(2,), low=-3.0, high=3.0)},
)
GOALS = Spec(
    obs={"observation": Space(shape=(3,)), "desired_goal": Space(shape=(2,)), "achieved_goal": Space(shape=(2,))},
    action={"action": Space(shape=(2,))},
)
SMALLER = Member(obs={"pos": Space(shape=(2,))}, action={"action": Space(shape=(1,))})
TASKS = {"large": Member(obs=VECTOR.obs, action=VECTOR.action), "small": SMALLER}
SUITE = replace(VECTOR, extras={"task": Space(dtype="int32", classes=2)}, tasks=TASKS)


def of(variant: str, spec: Spec) -> Dreamer:
    """A tiny agent of a variant."""
    cls, small = registry.variant(variant), tiny()
    shape = {k: getattr(small, k) for k in ("rssm", "encoder", "decoder", "actor", "critic", "reward", "cont")}
    made: Dreamer = cls(spec, replace(cls.Config(), **shape))
    return made


# ---------------------------------------------------------------------------------------------------- the step


@pytest.mark.parametrize("mode", ["sample", "mode"])
@pytest.mark.parametrize("spec", [BOUNDED, CLASSES])
def test_a_step_does_what_the_player_does_in_the_environments_units(spec: Spec, mode: str) -> None:
    player, step = Player(Dreamer(spec, tiny()), seed=7), PolicyStep(Dreamer(spec, tiny()), mode)
    observations, memory, state = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32), step.initial(1), None
    for t, seen in enumerate(observations):
        wanted, state = player.act(seen, state, is_first=np.array([t in (0, 3)]), mode=mode)
        given = {"vector": torch.as_tensor(seen[None])}, memory, torch.tensor([t in (0, 3)]), step.draw(Draws(7, t), 1)
        action, memory = step(*given)
        np.testing.assert_array_equal(action["action"][0].numpy(), wanted)


def test_units() -> None:
    arm = Space(shape=(2,), low=(0.0, -2.0), high=(10.0, 2.0))
    assert in_units(arm, torch.tensor([[-1.0, 0.5], [7.0, -9.0]])).tolist() == [[0.0, 1.0], [10.0, -2.0]]
    assert in_units(Space(shape=(2,)), torch.tensor([[0.25, -9.0]])).tolist() == [[0.25, -1.0]]
    assert in_units(Space(dtype="int32", classes=3, low=5.0), torch.tensor([0, 2])).tolist() == [5, 7]


def test_only_what_is_read_goes_in() -> None:
    spec = Spec(obs={"pos": Space(shape=(2,)), "secret": Space(shape=(9,))}, action=DISCRETE.action, hidden=frozenset({"secret"}))
    spec = replace(spec, extras={"idle": Space(dtype="int32", classes=2)})
    step = PolicyStep(agent(spec))
    assert list(step.observation) == ["pos"] and list(step.noise) == ["posterior", "action"] and step.kinds["action"] == "uniform"
    assert set(step.state) == {"deter", "stoch", "action/action"}
    assert list(PolicyStep(agent(spec), "mode").noise) == ["posterior"]
    assert PolicyStep(agent(VECTOR)).kinds == {"posterior": "uniform", "action": "normal"}
    assert not any("decoder" in name or "critic" in name for name in step.read) and any("encoder" in name for name in step.read)


def test_context_is_part_of_the_state() -> None:
    goal, suite = PolicyStep(of("goal", GOALS)), PolicyStep(of("multitask", SUITE))
    assert {"goal"} == set(goal.state) - {"deter", "stoch", "action/action"} and "desired_goal" in goal.observation
    assert list(goal.noise) == ["posterior", "action"], "a commanded goal is not drawn"
    assert "task" in suite.observation and "task" in suite.state
    manager = PolicyStep(of("hierarchical", VECTOR))
    assert {"clock", "code", "subgoal"} <= set(manager.state) and list(manager.noise) == ["posterior", "action/code", "action"]
    assert PolicyStep(of("goal", VECTOR)).noise["goal"].axis == 1, "drawn as (2, n)"


class Decides(Dreamer):
    """Acts by the value of a tensor."""

    def act(self, state: TensorDict, draws: Draws) -> TensorDict:
        return super().act(state, draws) if float(state["deter"].sum()) < 1e9 else state


def test_a_step_that_decides_by_values_is_refused_by_name() -> None:
    with pytest.raises(Unexportable, match=r"no fixed graph .*test_export.py:\d+, `return super\(\).act") as caught:
        PolicyStep(Decides(VECTOR, tiny()))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------- the comparison


def test_the_comparison_passes_the_step_itself() -> None:
    for spec, mode in ((VECTOR, "sample"), (DISCRETE, "mode"), (BOTH, "sample")):
        step = PolicyStep(agent(spec), mode)
        assert parity.compare(step, {"itself": step})["itself"] <= 1e-6


@pytest.mark.parametrize("fault", ["action", "state", "dtype", "missed start", "nan"])
def test_the_comparison_notices(fault: str) -> None:
    step = PolicyStep(agent(VECTOR))

    def act(seen: Tensors, state: Tensors, first: torch.Tensor, noise: Tensors) -> tuple[Tensors, Tensors]:
        action, after = step(seen, state, first & (fault != "missed start"), noise)
        if fault == "state":
            after = after | {"deter": after["deter"] + 2e-5}
        changes = {"action": lambda a: a + 2e-5, "dtype": lambda a: a.double(), "nan": lambda a: a * float("nan")}
        return {k: changes.get(fault, lambda a: a)(v) for k, v in action.items()}, after

    assert parity.compare(step, {"file": act})["file"] > parity.TOLERANCE


# ---------------------------------------------------------------------------------------------------- files


class Flagged(Dreamer):
    """Remembers a flag from an episode's start, which onnxruntime cannot choose as it chooses numbers."""

    def context(self, data: TensorDict, state: TensorDict, draws: Draws) -> TensorDict:
        return super().context(data, state, draws).set("flag", data["obs", "vector"][..., 0] > 0)


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "mode"), [(BOTH, "sample"), (CLASSES, "mode")])
def test_files_do_what_the_agent_does_for_any_number_of_rows(spec: Spec, mode: str, tmp_path: Path) -> None:
    step = PolicyStep((Flagged if spec is CLASSES else Dreamer)(spec, tiny()), mode)
    program = export.exported(step)
    acts: dict[str, Any] = {"pt2": export.to_pt2(program, step, tmp_path / "policy.pt2")}
    if all(map(find_spec, export.PACKAGES)):
        acts["onnx"] = export.to_onnx(program, step, tmp_path / "policy.onnx")
    assert all(worst <= parity.TOLERANCE for worst in parity.compare(step, acts).values())
    for act in acts.values():  # more rows than the formulas of the core work on in one piece
        action, state = act(*step.example(1100 if "image" not in spec.obs else 70))
        assert all(torch.isfinite(v).all() for v in (*action.values(), *state.values()))


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "spec"), [("goal", GOALS), ("multitask", SUITE), ("hierarchical", VECTOR)])
def test_variants_export_with_their_context(variant: str, spec: Spec, tmp_path: Path) -> None:
    step = PolicyStep(of(variant, spec))
    act = export.to_pt2(export.exported(step), step, tmp_path / "policy.pt2")
    assert parity.compare(step, {"pt2": act})["pt2"] <= parity.TOLERANCE


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the checkpoint of a tiny agent."""
    path = tmp_path / "run"
    cfg = resolve({"preset": "smoke", "task": "world/chain"})
    cfg = replace(cfg, agent=tiny())
    made = Dreamer(DISCRETE, cfg.agent, 4)
    checkpoint.save(path / "checkpoints", 7, {"agent": made.state_dict()}, checkpoint.header(cfg, DISCRETE))
    (path / "config.yaml").write_text("task: world/chain\n")
    return path


@pytest.mark.slow
def test_the_command_writes_a_folder_whole_or_not_at_all(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["export", str(run), "--format", "pt2"]) == 0
    said = capsys.readouterr().out.splitlines()
    folder = run / "export" / "sample"
    assert said[-1] == str(folder) and said[-2].startswith("policy.pt2: largest difference from the agent ")
    assert {p.name for p in folder.iterdir()} == {"policy.pt2", "policy.json", "card.md"}
    told = json.loads((folder / "policy.json").read_text())
    assert told["observation"] == {"vector": {"shape": ["batch", 4], "dtype": "float32"}}
    assert told["action"]["action"] == {"shape": ["batch"], "dtype": "int32", "low": None, "high": None, "classes": 3}
    assert told["noise"]["posterior"] == {"shape": ["batch", 1, 4], "dtype": "float32", "draw": "uniform in [0, 1)"}
    assert told["parity"]["largest_difference"]["policy.pt2"] <= told["parity"]["tolerance"] == 1e-5
    manifest = json.loads((run / "checkpoints/000000000007/manifest.json").read_text())
    assert told["weights"]["sha256"] == manifest["files"]["agent.safetensors"][1] and told["weights"]["step"] == 7
    before = (folder / "policy.json").read_bytes()
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    assert main(["export", str(run), "--format", "pt2"]) == 1
    assert "differs from the agent" in capsys.readouterr().err
    assert (folder / "policy.json").read_bytes() == before and [p.name for p in folder.parent.iterdir()] == ["sample"]
    assert main(["export", str(run), "--format", "pt2", "--out", str(run / "other")]) == 1
    assert not (run / "other").exists()


def test_the_command_refuses(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        ([], "wants one run directory or checkpoint, got none"),
        (["nowhere"], "there is no nowhere"),
        ([str(run.parent)], "no checkpoint"),
        ([str(run), "--mode", "modus"], "did you mean 'mode'?"),
        ([str(run), "--format", "onxx"], "did you mean 'onnx'?"),
        ([str(run), "--ouf", "x"], "did you mean 'out'?"),
        ([str(run), "--out", str(run)], "holds something else"),
    ):
        assert main(["export", *words]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert main(["export", str(run), "--format", "onnx"]) == 2
    assert 'ONNX needs onnxruntime: pip install "polydream[export]"' in capsys.readouterr().err


def test_the_command_names_the_variant_that_it_cannot_export(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "variant", lambda name: Decides)
    monkeypatch.setattr(checkpoint, "variant", lambda name: Decides)
    assert main(["export", str(run), "--format", "pt2"]) == 1
    assert "variant base cannot be exported: its acting step is no fixed graph" in capsys.readouterr().err
    assert not any((run / "export").iterdir())
