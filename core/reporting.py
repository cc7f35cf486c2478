"""What a run tells of its agent now and then: held-out losses, dreams beside what really happened, and the variant's own pictures."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tensordict import TensorDict

from . import openloop, pictures
from .faults import Telling
from .rng import Draws, seed_for
from .scene import Scene

if TYPE_CHECKING:
    from .launch import Judge
    from .train import Trainer


def report(trainer: Trainer) -> None:
    """Log the agent's report as far as there is data for it: nothing before the replay is ready, no losses before evaluations."""
    if trainer.judge is None or not trainer.replay.ready:
        return
    draws = Draws(seed_for(trainer.cfg.seed, "report", 0), trainer.count.updates, trainer.device)
    replayed = trainer.replay.sample(heldout=True).to(trainer.device)
    batch = trainer.heldout.batch(trainer.device)
    if batch is not None:
        _hold_out(trainer, trainer.judge, batch, replayed, draws)
    scene = Scene(replayed, partial(Telling, trainer.make_task), trainer.cfg.seed)
    with trainer.signals.open():
        for name, picture in trainer._played(partial(pictures.drawn, trainer.agent, scene, draws)).items():
            path = trainer.dir / "pictures" / f"{name.replace('/', '_')}-{trainer.step:09d}.png"
            trainer.log.artifact(pictures.save(path, picture))


def _hold_out(trainer: Trainer, judge: Judge, batch: TensorDict, replayed: TensorDict, draws: Draws) -> None:
    """Losses and open-loop dreams on evaluation episodes (B, T), which the agent was never trained on, and losses on replay."""
    metrics, films = trainer.agent.report(batch, draws)
    trained = openloop.inspect(trainer.agent, replayed, draws)
    row = {k: float(v) for k, v in metrics.items()}
    # Both in the same way, from nothing known at the first step; symptoms of a report show at once.
    row |= {"trained_rec": float(trained["rec"]), "overfit": row["rec"] / max(float(trained["rec"]), 1e-6) - 1}
    row["reward_extreme_error"] = float(trained["reward_extreme_error"])
    trainer.log.scalars(trainer.step, row, "report")
    trainer._warn(trainer.health.check(row, patience=1))
    for key, frames in films.items():
        kind = "openloop" if key in trainer.agent.spec.obs else "aim"
        path = trainer.dir / "videos" / f"{kind}-{trainer.step:09d}-{key.replace('/', '_')}.mp4"
        with trainer.signals.open():
            judge.film(path, {k: v.cpu().numpy() for k, v in frames.items()}, openloop.context_steps(batch))
        trainer.log.artifact(path)
