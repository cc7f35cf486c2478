"""Fine-tuning from a multi-task agent: what is taken over by the names of tasks, what starts anew, what stays still."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polydream.__main__ import main
from polydream.core import checkpoint
from polydream.core.config import ConfigError
from polydream.core.run import RunConfig
from polydream.core.specs import Spec
from polydream.core.transfer import begin, configuration, inherit
from polydream.tasks.suites import make as suite
from polydream.variants.heirs import heir_of
from polydream.variants.multitask import MultiTask
from polydream.variants.patience import PatienceConfig
from tests.variants.test_multitask import ALIKE, BODIES, CLASSES, TWINS, config, make

THREE = replace(TWINS, tasks={"new": ALIKE, "b": ALIKE, "a": ALIKE})


def saved(agent: MultiTask, path: Path) -> Path:
    """A checkpoint of an agent."""
    cfg = RunConfig(variant="multitask", task="suite/world-grid4", agent=agent.cfg)
    return checkpoint.save(path, 7, {"agent": agent.state_dict()}, checkpoint.header(cfg, agent.spec))


def test_weights_go_by_the_names_of_tasks() -> None:
    ours, theirs = ["new", "b", "a"], ["a", "b"]
    assert heir_of("nets.reward.2.out.weight", ours, theirs) == "nets.reward.0.out.weight"
    assert heir_of("nets.tasks.1.weight", ours, theirs) == "nets.tasks.1.weight"
    assert heir_of("nets.cont.0.out.weight", ours, theirs) is None
    assert (
        heir_of("behaviors.main.objectives.extrinsic.retnorm.2.first", ours, theirs)
        == "behaviors.main.objectives.extrinsic.retnorm.0.first"
    )
    assert heir_of("nets.rssm.cell.weight", ours, theirs) == "nets.rssm.cell.weight"


def test_an_heir_has_what_the_tasks_share_and_anew_what_is_new(tmp_path: Path) -> None:
    donor, heir = make(TWINS), MultiTask(THREE, config(), 5)
    before = {k: v.clone() for k, v in heir.state_dict().items()}
    fresh = inherit(heir, saved(donor, tmp_path))
    old, now = donor.state_dict(), heir.state_dict()
    assert torch.equal(now["nets.tasks.2.weight"], old["nets.tasks.0.weight"])
    assert torch.equal(now["nets.reward.1.out.weight"], old["nets.reward.1.out.weight"])
    shared = [k for k in now if k.startswith(("nets.encoder", "nets.rssm", "nets.decoder", "behaviors.main.policy"))]
    assert shared and all(torch.equal(now[k], old[k]) for k in shared)
    assert {k for k in fresh if k.startswith("nets")} == {
        k for k in now if k.startswith(("nets.tasks.0", "nets.reward.0", "nets.cont.0", "nets.units.0", "nets.trust"))
    }
    assert all(torch.equal(now[k], before[k]) for k in fresh)


def test_a_task_alone_is_told_and_hears_the_same(tmp_path: Path) -> None:
    alone = replace(TWINS, tasks={"b": ALIKE})
    cfg = config(alone="told")
    heir, donor = MultiTask(alone, cfg, 1), make(TWINS)
    assert inherit(heir, saved(donor, tmp_path)) == ["updates"]
    assert torch.equal(heir.nets["tasks"][0].weight, donor.nets["tasks"][1].weight)  # type: ignore[index]
    assert not MultiTask(alone, config(), 1).many


def test_given_vectors_are_not_replaced_by_learned_ones(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"a": [3.0] + 7 * [0.0], "b": 8 * [1.0]}))
    heir = make(TWINS, vectors=str(path))
    assert {k for k in inherit(heir, saved(make(TWINS), tmp_path / "run")) if k.startswith("nets.tasks")} == {
        "nets.tasks.0.given",
        "nets.tasks.1.given",
    }
    assert heir.nets["tasks"](torch.tensor(0))[:2].tolist() == [1.0, 0.0]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="does not fit this task: nets.encoder"):
        inherit(make(replace(BODIES, obs={"pos": TWINS.obs["pos"]})), saved(make(TWINS), tmp_path))


def test_heads_alone_leave_the_world_model_to_the_bit(tmp_path: Path) -> None:
    from polydream.core.rng import Draws
    from tests.variants.test_multitask import steps

    path = saved(make(TWINS), tmp_path)
    cfg = RunConfig(variant="multitask", agent=config(), start=str(path), learn="heads")
    agent = begin(replace(cfg, agent=replace(config(), patience=PatienceConfig(trust=0.0))), THREE)
    optimizer, before = agent.optimizer(), {k: v.clone() for k, v in agent.state_dict().items()}
    for step in range(2):
        agent.update(steps(THREE, tasks=(0, 0, 0)), optimizer, Draws(0, step))
    moved = {k for k, v in agent.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(k.startswith(("nets.encoder", "nets.rssm", "nets.decoder", "nets.reward.1", "nets.tasks.1")) for k in moved)
    assert {"nets.tasks.0.weight", "nets.reward.0.out.weight"} <= moved and any(k.startswith("behaviors.main.policy") for k in moved)
    with pytest.raises(ConfigError, match="--from"):
        RunConfig(learn="heads")


def test_the_configuration_is_the_trained_ones(tmp_path: Path) -> None:
    cfg = configuration(saved(make(TWINS), tmp_path), "world/fourrooms")
    assert (cfg.task, cfg.agent.multitask.alone, cfg.agent.rssm) == ("suite/world/fourrooms", "told", config().rssm)  # type: ignore[attr-defined]
    assert list(suite("world/grid4").spec.tasks) == ["grid4"]


@pytest.mark.slow
def test_the_command_goes_on_with_another_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    quiet = ["--log.mlflow", "false", "--steps", "300", "--eval.video", "false"]
    assert main(["train", "--variant", "multitask", "--preset", "smoke", "--dir", first, *quiet]) == 0
    assert main(["train", "--from", first, "--task", "world/grid4", "--learn", "heads", "--dir", second, *quiet]) == 0
    assert "suite/world/grid4" in capsys.readouterr().out
    old, new = (checkpoint.read(checkpoint.locate(Path(d)))[0]["agent"] for d in (first, second))
    assert all(torch.equal(old[k], v) for k, v in new.items() if k.startswith("nets.rssm"))
    assert not torch.equal(old["nets.reward.0.out.weight"], new["nets.reward.0.out.weight"])
    assert main(["train", "--from", first]) == 2 and "one new task" in capsys.readouterr().err
    for option, value in (("--size", "size1m"), ("--variant", "base")):
        assert main(["train", "--from", first, "--task", "world/grid4", option, value]) == 2 and option in capsys.readouterr().err
    assert main(["resume", second, "--learn", "all"]) == 2 and "--learn" in capsys.readouterr().err


def test_the_base_agent_hands_over_everything_but_its_count(tmp_path: Path) -> None:
    from tests.fixtures import VECTOR, agent

    donor, heir = agent(VECTOR), agent(VECTOR, optim=replace(config().optim, lr=0.5))
    torch.nn.init.constant_(donor.reward.out.weight, 0.25)
    donor.updates += 9
    path = checkpoint.save(tmp_path, 3, {"agent": donor.state_dict()}, checkpoint.header(RunConfig(agent=donor.cfg), donor.spec))
    assert inherit(heir, path) == ["updates"]
    assert all(torch.equal(v, donor.state_dict()[k]) for k, v in heir.state_dict().items() if k != "updates")
    assert int(heir.updates) == 0


@pytest.mark.parametrize("spec", [TWINS, BODIES, CLASSES], ids=["twins", "bodies", "classes"])
def test_a_trained_agent_is_loaded(spec: Spec, tmp_path: Path) -> None:
    """For which its shapes are compared first, in an agent that has no memory."""
    agent = make(spec)
    loaded = checkpoint.load_agent(saved(agent, tmp_path))
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in agent.state_dict().items())
    assert {k: v.tolist() for k, v in agent.named_buffers()} == {k: v.tolist() for k, v in loaded.named_buffers()}
