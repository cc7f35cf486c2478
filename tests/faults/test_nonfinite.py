"""Numbers that are none, wherever they come from: skipped and counted once, the end of the run when they stay."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from polydream.core import checkpoint, guard
from polydream.core.agent import Dreamer
from polydream.core.guard import NonFinite
from polydream.core.train import Trainer

from .harness import digest, record, tiny

pytestmark = pytest.mark.skipif("opt/skipped" not in inspect.getsource(Dreamer.update), reason="Dreamer.update does not skip yet")

PLACES = ("reward", "observation", "loss", "gradient")


def poison(trainer: Trainer, place: str, times: int) -> None:
    """Make the next updates not finite."""
    left = iter(range(times))
    if place in ("reward", "observation"):
        original = trainer.batches.next

        def batch():  # type: ignore[no-untyped-def]
            found = original()
            if next(left, None) is not None:
                (found["reward"] if place == "reward" else found["obs", "point"])[0, 3] = float("nan")
            return found

        trainer.batches.next = batch  # type: ignore[method-assign]
    elif place == "loss":
        total = trainer.agent.total

        def summed(losses):  # type: ignore[no-untyped-def]
            loss, means = total(losses)
            return (loss * float("nan") if next(left, None) is not None else loss), means

        trainer.agent.total = summed  # type: ignore[method-assign]
    else:
        weight = next(trainer.agent.reward.parameters())
        weight.register_hook(lambda g: g * float("inf") if next(left, None) is not None else g)


def trained(trainer: Trainer, updates: int = 3) -> None:
    while trainer.count.updates < updates:
        trainer.collect()
        for _ in range(trainer._due()):
            trainer.learn()


@pytest.mark.parametrize("place", PLACES)
def test_a_single_bad_update_leaves_everything_bit_unchanged(place: str, tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path / "run", steps=10**6, task="world/reach")) as trainer:
        trained(trainer)
        tensors, state = checkpoint.agent_tensors(trainer.agent, trainer.optimizer)
        latents = trainer.replay.segments.arrays["latent", "deter"]
        before = digest([tensors, state, latents])
        poison(trainer, place, 1)
        trainer.learn()
        tensors, state = checkpoint.agent_tensors(trainer.agent, trainer.optimizer)
        assert digest([tensors, state, latents]) == before
        assert trainer.guard.skipped == 1
        trainer.learn()
        assert trainer.guard.skipped == 1 and trainer.guard.streak == 0
        assert not guard.first_bad({"weight": trainer.agent.state_dict()})
        tensors, _ = checkpoint.agent_tensors(trainer.agent, trainer.optimizer)
        assert digest([tensors, state, latents]) != before
    record(f"non-finite {place}, single", 1, 1)


@pytest.mark.parametrize("place", PLACES)
def test_bad_updates_in_a_row_end_the_run_with_a_bundle(place: str, tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path / "run", steps=10**6, patience=3, task="world/reach")) as trainer:
        trained(trainer)
        good = trainer.save()
        poison(trainer, place, 100)
        for _ in range(3):
            trainer.learn()
        named = {
            "reward": "batch reward",
            "observation": "batch obs/point",
            "loss": "loss opt/loss",
            "gradient": "gradient of nets.reward",
        }[place]
        with pytest.raises(NonFinite, match=f"4 updates in a row were not finite, first of all {named}") as error:
            trainer.learn()
        assert "\n" not in str(error.value)
        (bundle,) = (tmp_path / "run").glob("nonfinite-*")
        assert {p.name for p in bundle.iterdir()} == {"batch.safetensors", "agent.safetensors", "metrics.json"}
        assert checkpoint.newest(tmp_path / "run" / "checkpoints") == good
    record(f"non-finite {place}, persistent", 1, 1)


def test_a_bad_state_is_never_saved(tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path / "run", steps=10**6)) as trainer:
        trained(trainer)
        good = trainer.save()
        with torch.no_grad():
            next(trainer.agent.decoder.parameters())[0] = float("nan")
        with pytest.raises(NonFinite, match="no checkpoint is written of a state that is not finite: weight nets.decoder"):
            trainer.save()
        assert checkpoint.newest(tmp_path / "run" / "checkpoints") == good


@pytest.mark.parametrize("times", [1, 1000])
def test_an_action_that_is_not_finite_is_never_taken(times: int, tmp_path: Path) -> None:
    with Trainer(tiny(tmp_path / "run", steps=10**6, patience=3)) as trainer:
        trained(trainer)
        original, left = trainer.agent.policy, iter(range(times))

        def policy(data, state, draws):  # type: ignore[no-untyped-def]
            action, state = original(data, state, draws)
            if next(left, None) is not None:
                state["deter"][:] = float("nan")
            return action, state

        trainer.agent.policy = policy  # type: ignore[method-assign]
        if times == 1:
            trainer.collect()
            trainer.collect()
            assert trainer.guard.acted == 1 and bool(torch.isfinite(trainer.collector.state["deter"]).all())
            assert bool(torch.isfinite(torch.from_numpy(trainer.replay.segments.arrays["latent", "deter"])).all())
        else:
            with pytest.raises(NonFinite, match="4 decisions in a row"):
                for _ in range(10):
                    trainer.collect()
    record(f"non-finite action, {'single' if times == 1 else 'persistent'}", 1, 1)
