"""The one training loop: collect, store, sample, update, evaluate, log, save."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from tensordict import TensorDict

from . import checkpoint, openloop, registry
from .agent import Dreamer
from .config import to_dict
from .health import Health
from .heldout import Heldout
from .launch import Judge, choose_device, make_task, overview, provenance, run_directory, write_config
from .log import Log
from .player import Player
from .prefetch import Prefetch
from .progress import Progress, first_screen
from .ratio import TrainRatio
from .replay import Replay
from .rng import Draws, seed_for
from .run import RunConfig
from .specs import Spec
from .vector import Vector


@dataclass
class Counters:
    """How far a run is."""

    rows: int = 0  # steps stored, first steps of episodes included; what the train ratio counts
    decisions: int = 0  # actions executed
    updates: int = 0
    episodes: int = 0
    logged: int = 0  # environment step of the last row of training metrics
    judged: int = 0  # environment step of the last evaluation
    reported: int = 0


def train(cfg: RunConfig, judge: Judge | None = None, resume: Path | None = None) -> Path:
    """Run training to its end and return the run directory. `resume` continues the run in that directory.

    Interrupting (Ctrl-C or SIGTERM as KeyboardInterrupt) saves a checkpoint and re-raises.
    """
    with Trainer(cfg, judge, resume) as trainer:
        return trainer.run()


class Trainer:
    """One run: environments, agent, replay and log, and the loop over them."""

    def __init__(self, cfg: RunConfig, judge: Judge | None = None, resume: Path | None = None) -> None:
        self.cfg, self.judge = cfg, judge
        self.dir = resume or run_directory(cfg)
        self.device = choose_device(cfg.device)
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        self.exits = ExitStack()
        self.make_task = partial(make_task, cfg)
        self.envs = self.exits.enter_context(
            Vector([self.make_task] * cfg.env.count, seed=cfg.seed, processes=cfg.env.processes, timeout=cfg.env.timeout)
        )
        self.spec: Spec = self.envs.spec
        self.agent: Dreamer = registry.variant(cfg.variant)(self.spec, cfg.agent, cfg.seed).to(self.device)
        self.optimizer = self.agent.optimizer()
        self.replay = Replay(
            self.agent.spec,
            self.agent.latent_spaces,
            cfg.replay,
            batch=cfg.batch,
            length=cfg.length,
            streams=cfg.env.count,
            directory=self.dir,
            pin=self.device.type == "cuda",
            seed=cfg.seed,
        )
        self.ratio = TrainRatio(cfg.ratio / (cfg.batch * cfg.length))
        # On a processor the learner uses every core already; a GPU is fed while it works.
        self.batches = self.exits.enter_context(Prefetch(self.replay, self.device, enabled=self.device.type != "cpu"))
        self.heldout = Heldout(self.agent.spec, cfg.length)
        self.health = Health(cfg.agent, self.agent.spec)
        self.count = Counters()
        self.state = self.agent.initial(cfg.env.count)
        self.actions: dict[str, np.ndarray] | None = None
        self.scores, self.lengths = np.zeros(cfg.env.count), np.zeros(cfg.env.count, np.int64)
        self.metrics: list[dict[str, torch.Tensor]] = []
        self.saved = time.monotonic()
        if resume:
            self._restore()
        self.log = Log(
            self.dir,
            mlflow=cfg.log.mlflow,
            experiment=cfg.log.experiment,
            run_name=self.dir.name,
            params=to_dict(cfg),
            system=cfg.log.system,
        )
        if resume:
            self.log.rewind(self.step)
        self.progress: Progress | None = None

    # ---------------------------------------------------------------------------------------------- the loop

    def run(self) -> Path:
        """Collect and learn until the budget of environment steps is spent."""
        self._announce()
        while self.step < self.cfg.steps:
            self.collect()
            for _ in range(self._due()):
                self.learn()
            self._log_training()
            self._evaluate_when_due()
            self._save_when_due()
        self._evaluate_when_due(final=True)
        self.save()
        return self.dir

    def collect(self) -> None:
        """One step of every environment: act on what was seen last, store what came back with the next action."""
        steps = self.envs.step(self.actions)
        actions, latents = self._decide(steps)
        self.replay.add({**steps, "action": actions, "latent": latents})
        self.actions = actions
        self._account(steps)

    def learn(self) -> None:
        """One update on one replayed batch; the fresh latents go back to the replay."""
        batch = self.batches.next()
        draws = Draws(self.cfg.seed, self.count.updates, self.device)
        metrics, latents = self.agent.update(batch, self.optimizer, draws, self.cfg.replay.context)
        trained = batch["stepid"][:, self.cfg.replay.context :]
        self.replay.write(trained, self._stored(latents))
        if self.cfg.replay.sampler == "priority":
            self.replay.prioritise(trained, latents["priority"])
        self.count.updates += 1
        self.metrics.append(metrics)

    def _decide(self, steps: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Actions of all environments and the latents they were chosen in. Episode ends get no action: it is stored as zero."""
        n = self.cfg.env.count
        arrays = {k: v for k, v in steps.items() if k not in ("reward",)}
        data = TensorDict({k: _tensors(v, self.device) for k, v in arrays.items()}, [n], device=self.device)
        draws = Draws(seed_for(self.cfg.seed, "acting", 0), self.count.rows, self.device)
        chosen, self.state = self.agent.policy(data, self.state, draws)
        actions = {k: v.cpu().numpy() for k, v in chosen.items()}
        if self.count.decisions < self.cfg.random:
            actions = self._random_actions()
        for key, value in actions.items():
            actions[key] = np.where(steps["is_last"].reshape(-1, *[1] * (value.ndim - 1)), np.zeros_like(value), value)
        return actions, {k: v.cpu().numpy() for k, v in self._stored(self.state).items()}

    def _random_actions(self) -> dict[str, np.ndarray]:
        """Uniform over the action spaces, and what the agent will believe to have done."""
        from .codec import model_actions

        rng = np.random.default_rng(seed_for(self.cfg.seed, "random", self.count.rows))
        actions = {}
        for key, space in self.spec.action.items():
            shape = (self.cfg.env.count, *space.shape)
            drawn = rng.integers(0, space.classes, shape) if space.classes else rng.uniform(-1, 1, shape)
            actions[key] = drawn.astype(space.dtype)
        told = TensorDict({k: torch.as_tensor(v, device=self.device) for k, v in actions.items()}, [self.cfg.env.count])
        self.state["action"] = model_actions(self.spec.action, told)
        return actions

    def _stored(self, state: TensorDict) -> dict[str, torch.Tensor]:
        """Latents as the replay keeps them: class indices instead of one-hot."""
        return {"deter": state["deter"], "stoch": state["stoch"].argmax(-1)}

    def _account(self, steps: Mapping[str, Any]) -> None:
        """Count steps and write down finished episodes."""
        self.count.rows += self.cfg.env.count
        self.count.decisions += int((~steps["is_first"]).sum())
        self.scores = np.where(steps["is_first"], 0.0, self.scores) + steps["reward"]
        self.lengths = np.where(steps["is_first"], 0, self.lengths + 1)
        for i in np.flatnonzero(steps["is_last"]):
            self.count.episodes += 1
            self.log.episode(self.step, float(self.scores[i]), int(self.lengths[i]), int(i))
            if self.progress:
                self.progress.update(self.step, updates=self.count.updates, score=float(self.scores[i]))
        if self.progress:
            self.progress.update(self.step, updates=self.count.updates)

    @property
    def step(self) -> int:
        """Environment steps so far, action repeat included."""
        return self.count.decisions * self.spec.repeat

    def _due(self) -> int:
        """Updates that the train ratio asks for now. None before the replay holds enough."""
        needed = self.cfg.warmup or self.cfg.batch * self.cfg.length
        return self.ratio(self.count.rows) if self.replay.ready and self.count.rows >= needed else 0

    # ---------------------------------------------------------------------------------------------- watching

    def _log_training(self) -> None:
        """Every so many steps: the mean of all metrics since, speeds, and warnings about what they show."""
        if self.step - self.count.logged < self.cfg.log.every or not self.metrics:
            return
        self.count.logged = self.step
        means = {k: float(torch.stack([m[k].float() for m in self.metrics]).mean()) for k in self.metrics[-1]}
        self.metrics.clear()
        self.log.scalars(self.step, means | {"updates": self.count.updates, "replay": self.replay.steps}, "train")
        if self.progress:
            self.log.scalars(self.step, self.progress.speeds(), "speed")
        self._warn(self.health.check(means))

    def _warn(self, warnings: list[str]) -> None:
        for text in warnings:
            self.log.health(self.step, text)
            if self.progress:
                self.progress.warn(text)

    def _evaluate_when_due(self, final: bool = False) -> None:
        every = self.cfg.eval.every
        due = bool(every) and self.step - self.count.judged >= every
        if self.judge is None or self.count.judged == self.step or not (final or due):
            return
        self.count.judged = self.step
        for mode in self.cfg.eval.modes:
            # One film an evaluation: rendering in software costs more than the episodes.
            film = self.cfg.eval.video and mode == self.cfg.eval.modes[-1]
            video = self.dir / "videos" / f"eval-{self.step:09d}-{mode}.mp4" if film else None
            player = Player(self.agent, seed_for(self.cfg.seed, "evaluation", 0))
            recorded = self.heldout.recording(self.make_task) if mode == "sample" else self.make_task
            result = self.judge.evaluate(player, recorded, episodes=self.cfg.eval.episodes, seed=self.cfg.seed, mode=mode, video=video)
            self.log.scalars(self.step, result.row(), "eval")
            if result.video:
                self.log.artifact(result.video)
            self._warn(list(result.warnings))
            if self.progress:
                self.progress.say(
                    f"evaluation at {self.step:,} steps, {mode}: return {result.return_mean:.1f} over {self.cfg.eval.episodes} episodes"
                )
        if final or self.step - self.count.reported >= self.cfg.log.report:
            self._report()

    def _report(self) -> None:
        """Held-out losses and open-loop dreams, on evaluation episodes the agent was never trained on."""
        self.count.reported = self.step
        batch = self.heldout.batch(self.device)
        if batch is None or self.judge is None:
            return
        draws = Draws(seed_for(self.cfg.seed, "report", 0), self.count.updates, self.device)
        metrics, pictures = self.agent.report(batch, draws)
        trained = openloop.inspect(self.agent, self.replay.sample(heldout=True).to(self.device), draws)
        row = {k: float(v) for k, v in metrics.items()}
        # Both in the same way, from nothing known at the first step; symptoms of a report show at once.
        row |= {"trained_rec": float(trained["rec"]), "overfit": row["rec"] / max(float(trained["rec"]), 1e-6) - 1}
        row["reward_extreme_error"] = float(trained["reward_extreme_error"])
        self.log.scalars(self.step, row, "report")
        self._warn(self.health.check(row, patience=1))
        for key, frames in pictures.items():
            path = self.dir / "videos" / f"openloop-{self.step:09d}-{key.replace('/', '_')}.mp4"
            self.judge.film(path, {k: v.cpu().numpy() for k, v in frames.items()}, openloop.context_steps(batch))
            self.log.artifact(path)

    # ---------------------------------------------------------------------------------------------- saving

    def _save_when_due(self) -> None:
        if self.cfg.save_every and time.monotonic() - self.saved >= self.cfg.save_every:
            self.save()

    def save(self) -> Path:
        """Write a checkpoint and the replay's new steps."""
        replay = self.replay.save(self.dir / "replay")
        tensors, optimizer = checkpoint.agent_tensors(self.agent, self.optimizer)
        acting = {k if isinstance(k, str) else "/".join(k): v for k, v in self.state.items(True, True)}
        state = {
            **checkpoint.header(self.cfg, self.spec),
            "optimizer": optimizer,
            "counters": vars(self.count),
            "ratio": self.ratio.state_dict(),
            "replay": replay,
            "envs": self.envs.get_state(),
            "actions": self.actions,
            "scores": self.scores,
            "lengths": self.lengths,
        }
        # A batch that is being prepared was already chosen: it belongs to the state of the run.
        tensors |= {"acting": acting, "prepared": self.batches.state_dict()}
        path = checkpoint.save(self.dir / "checkpoints", self.step, tensors, state)
        self.saved = time.monotonic()
        return path

    def _restore(self) -> None:
        """Go on from the newest good checkpoint of this run directory."""
        groups, state = checkpoint.read(checkpoint.newest(self.dir / "checkpoints"), str(self.device))
        checkpoint.restore_agent(self.agent, self.optimizer, groups, state["optimizer"])
        self.count = Counters(**state["counters"])
        self.ratio.load_state_dict(state["ratio"])
        self.replay.load(self.dir / "replay", state["replay"])
        self.envs.set_state(state["envs"])
        self.actions = state["actions"]
        self.scores, self.lengths = state["scores"], state["lengths"]
        self.batches.load_state_dict(groups["prepared"])
        flat = {tuple(k.split("/")): v for k, v in groups["acting"].items()}
        self.state = TensorDict({}, [self.cfg.env.count], device=self.device)
        for key, value in flat.items():
            self.state[key] = value

    # ---------------------------------------------------------------------------------------------- beginning and end

    def _announce(self) -> None:
        """The first screen, config.yaml, what the report must know, and the progress display."""
        write_config(self.cfg, self.dir)
        print(first_screen(overview(self.cfg, self.agent, self.device, self.dir)), end="", flush=True)
        self.progress = Progress(self.cfg.steps, start=self.step)
        self.exits.callback(self.progress.close)
        self.log.say = self.progress.warn
        self.log.scalars(self.step, provenance(self.agent, self.device), "run")
        self.log.artifact(self.dir / "config.yaml")
        if self.judge is not None and not self.step:
            self.log.scalars(0, self.judge.baseline(self.make_task, episodes=self.cfg.eval.baseline, seed=self.cfg.seed), "eval")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        try:
            if interrupted and self.count.updates:
                self.save()
            self._write_report()
        finally:
            self.exits.close()
            self.log.close("KILLED" if interrupted else "FAILED" if kind else "FINISHED")
        if interrupted:
            print(f"stopped at step {self.step:,}; go on with: python -m polydream resume {self.dir}")

    def _write_report(self) -> None:
        if self.judge is not None and self.count.updates:
            self.log.artifact(self.judge.report(self.dir))


def _tensors(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {k: _tensors(v, device) for k, v in value.items()}
    return torch.as_tensor(value, device=device)
