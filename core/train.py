"""The one training loop: collect, store, sample, update, evaluate, log, save."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch

from . import checkpoint, reporting, saving, transfer
from .agent import Dreamer
from .collector import Collector, Row, stored
from .config import to_dict
from .faults import Faults, Telling
from .flight import Flight
from .guard import Guard
from .health import Health
from .heldout import Heldout
from .launch import (
    Judge,
    choose_device,
    make_task,
    memory,
    overview,
    prepare_processor,
    provenance,
    run_directory,
    run_path,
    write_config,
)
from .lock import Lock
from .log import Log
from .needs import refuse_too_large
from .player import Player
from .prefetch import Prefetch
from .progress import Progress, first_screen
from .ratio import TrainRatio
from .replay import Replay
from .rng import Draws, seed_for
from .run import RunConfig
from .saving import Saver
from .signals import Signals
from .specs import Spec
from .trace import Trace
from .vector import Vector

T = TypeVar("T")


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


def train(cfg: RunConfig, judge: Judge | None = None, resume: Path | None = None, signals: Signals | None = None) -> Path:
    """Run training to its end and return the run directory. `resume` continues the run in that directory.

    Being asked to stop by one of `signals` (SIGTERM and Ctrl-C, once it is entered) saves a checkpoint and raises Stopped.
    """
    with Trainer(cfg, judge, resume, signals) as trainer:
        return trainer.run()


class Trainer:
    """One run: environments, agent, replay and log, and the loop over them."""

    def __init__(self, cfg: RunConfig, judge: Judge | None = None, resume: Path | None = None, signals: Signals | None = None) -> None:
        self.cfg, self.judge, self.signals = cfg, judge, signals or Signals(cfg.grace)
        self.device = choose_device(cfg.device, cfg.compile)
        prepare_processor(cfg.threads)
        self.exits = ExitStack()
        self.flight: Flight | None = None
        try:
            self._begin(resume)
        except BaseException:
            self._end("FAILED")
            raise

    def _begin(self, resume: Path | None) -> None:
        cfg = self.cfg
        self.make_task = partial(make_task, cfg)
        makers = [partial(make_task, cfg, i, cfg.env.count) for i in range(cfg.env.count)]
        self.envs = self.exits.enter_context(Vector(makers, seed=cfg.seed, processes=cfg.env.apart, timeout=cfg.env.timeout))
        self.spec: Spec = self.envs.spec
        self.agent = self._made(fresh=resume is None)
        self.optimizer = self.agent.optimizer()
        refuse_too_large(cfg, self.agent.spec, self.agent.latent_spaces, resume or run_path(cfg))
        # From here on there are traces: whatever was asked for can be had.
        self.dir = resume or run_directory(cfg)
        self._settle()
        # Beside learning acts a copy, which a flight brings up to date.
        self.collector = Collector(cfg, self.envs, self._made() if cfg.env.ahead else self.agent, self.guard)
        if cfg.env.ahead:
            self.flight = self.exits.enter_context(Flight(self.collector, self.agent, cfg.env.ahead, self._warn))
        self.count = Counters()
        self.scores, self.lengths = np.zeros(cfg.env.count), np.zeros(cfg.env.count, np.int64)
        self.metrics: list[dict[str, torch.Tensor]] = []
        self.best: float | None = None  # mean return of the best evaluation so far
        self.saved = time.monotonic()
        self.warm = cfg.compile == "none"  # nothing is left to compile: tracing patches torch for all threads
        self.sound = True  # between two iterations, where the state is whole
        self.progress: Progress | None = None
        if resume:
            saving.restore(self)

    def _made(self, fresh: bool = False) -> Dreamer:
        """The agent of this run as it begins. fresh: with the weights that it starts from, where it has any."""
        agent = transfer.begin(self.cfg, self.spec, fresh).to(self.device)
        agent.accelerate(self.cfg.precision, self.cfg.compile)
        return agent

    def _settle(self) -> None:
        """Everything that lives in the run directory or feeds on what does."""
        cfg = self.cfg
        self.lock = Lock(self.dir)
        self.faults = self.envs.faults = Faults(cfg.env.restarts, cfg.env.window, self.dir, self._say)
        self.guard = Guard(cfg.patience, self.dir, self._say)
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
        self.trace = self.exits.enter_context(Trace(self.dir, cfg.log.trace))
        self.health = Health(cfg.agent, self.agent.spec)
        self.saver = Saver(self.dir / "checkpoints", self.replay, self._say)
        self.log = Log(
            self.dir,
            mlflow=cfg.log.mlflow,
            experiment=cfg.log.experiment,
            run_name=self.dir.name,
            params=to_dict(cfg),
            system=cfg.log.system,
        )

    # ---------------------------------------------------------------------------------------------- the loop

    def run(self) -> Path:
        """Collect and learn until the budget of environment steps is spent."""
        with self.signals.held():
            self._announce()
            while True:  # what is due comes first, so that a run stopped before it begins with it when resumed
                self.signals.check()
                self._log_training()
                self._evaluate_when_due()
                self._save_when_due()
                if self.step >= self.cfg.steps:
                    break
                self.sound = False
                self.collect()
                for _ in range(self._due()):
                    self.learn()
                self.land()
                self.sound = True
            self.save()
        return self.dir

    def collect(self) -> None:
        """One step of every environment: act on what was seen last, store what came back with the next action.

        With `env.ahead` so many steps begin here, beside the updates due before them, and `land` stores them.
        """
        if self.flight:
            self.flight.start(self.count.rows, self.count.decisions, beside=self.warm)
        else:
            self._store(self.collector.step(self.count.rows, self.count.decisions))

    def land(self) -> None:
        """Store what was collected beside the updates."""
        for row in self.flight.land() if self.flight else []:
            self._store(row)

    def _store(self, row: Row) -> None:
        for i in row.broken:
            self.replay.close_episode(i)
        self.replay.add({**row.steps, "action": row.actions, "latent": row.latents})
        self._account(row)

    def learn(self) -> None:
        """One update on one replayed batch; the fresh latents go back to the replay."""
        batch = self.batches.next()
        draws = Draws(self.cfg.seed, self.count.updates, self.device)
        metrics, latents = self.agent.update(batch, self.optimizer, draws, self.cfg.replay.context)
        self.count.updates += 1
        if (table := self.trace.step()) and self.progress:
            self.progress.warn(table)
        if not self.guard.watch(self.agent, batch, metrics, self.count.updates):
            return
        trained = batch["stepid"][:, self.cfg.replay.context :]
        self.replay.write(trained, stored(latents))
        if self.cfg.replay.sampler == "priority":
            self.replay.prioritise(trained, latents["priority"])
        self.metrics.append(metrics)
        self.warm = True

    def _account(self, row: Row) -> None:
        """Count steps and write down finished episodes."""
        steps = row.steps
        self.count.rows += self.cfg.env.count
        self.count.decisions += row.decisions
        self.scores = np.where(steps["is_first"], 0.0, self.scores) + steps["reward"]
        self.lengths = np.where(steps["is_first"], 0, self.lengths + 1)
        for i in np.flatnonzero(steps["is_last"]):
            self.count.episodes += 1
            named = {"task": list(self.spec.tasks)[int(steps["task"][i])]} if self.spec.tasks else {}
            self.log.episode(self.step, float(self.scores[i]), int(self.lengths[i]), int(i), **named)
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
            trouble = {"skipped_updates": self.guard.skipped, "env_faults": self.envs.faults.total if self.envs.faults else 0}
            pauses = {"save_pause": self.saver.pause, "save_time": self.saver.took}
            self.log.scalars(self.step, self.progress.speeds() | memory(self.device) | pauses | trouble, "speed")
        self._warn(self.health.check(means))

    def _say(self, text: str) -> None:
        """Warn of what was met in collecting or learning, in whichever thread."""
        if self.flight:
            self.flight.tell(text)
        else:
            self._warn([text])

    def _warn(self, warnings: list[str]) -> None:
        for text in warnings:
            self.log.health(self.step, text)
            if self.progress:
                self.progress.warn(text)

    def _evaluate_when_due(self) -> None:
        every, final = self.cfg.eval.every, self.step >= self.cfg.steps
        due = bool(every) and self.step - self.count.judged >= every
        if self.judge is None or self.count.judged == self.step or not (final or due):
            return
        before = saving.watchers(self)
        try:
            self._evaluate(final)
        except KeyboardInterrupt:
            saving.unwatch(self, before)  # so that it is done again, whole
            raise

    def _evaluate(self, final: bool) -> None:
        assert self.judge is not None
        self.count.judged = self.step
        for mode in self.cfg.eval.modes:
            # One film an evaluation: rendering in software costs more than the episodes.
            film = self.cfg.eval.video and mode == self.cfg.eval.modes[-1]
            video = self.dir / "videos" / f"eval-{self.step:09d}-{mode}.mp4" if film else None
            player = Player(self.agent, seed_for(self.cfg.seed, "evaluation", 0))
            make = partial(Telling, self.make_task)
            recorded = self.heldout.recording(make) if mode == "sample" else make
            wanted: dict[str, Any] = {"episodes": self.cfg.eval.episodes, "seed": self.cfg.seed, "mode": mode, "video": video}
            with self.signals.open():
                result = self._played(partial(self.judge.evaluate, player, recorded, **wanted))
            if mode == self.cfg.eval.modes[0]:
                self._keep_best(result.return_mean)
            for row in result.rows():
                self.log.scalars(self.step, row, "eval")
            if result.video:
                self.log.artifact(result.video)
            self._warn(list(result.warnings))
            if self.progress:
                self.progress.say(
                    f"evaluation at {self.step:,} steps, {mode}: return {result.return_mean:.1f} over {self.cfg.eval.episodes} episodes"
                )
        if final or self.step - self.count.reported >= self.cfg.log.report:
            self.count.reported = self.step
            reporting.report(self)

    def _played(self, play: Callable[[], T]) -> T:
        """An evaluation, begun anew where an environment fails in it."""
        kept = list(self.heldout.episodes)

        def forget() -> None:
            self.heldout.episodes.clear()
            self.heldout.episodes.extend(kept)

        return self.faults.lived_through("an environment of the evaluation", play, forget)

    # ---------------------------------------------------------------------------------------------- saving

    def _save_when_due(self) -> None:
        """Save now and then, beside training. A disk that refuses is a warning: the checkpoint before is still good."""
        if self.cfg.save_every and time.monotonic() - self.saved >= self.cfg.save_every:
            self.saved = time.monotonic()
            try:
                self.saver.submit(self)
            except (OSError, checkpoint.CheckpointError) as error:
                self._warn([f"no checkpoint could be written ({error}); the one before is kept, and training goes on"])

    def save(self) -> Path:
        """Write a checkpoint and the replay's new steps, and wait until they are on the disk."""
        path = self.saver.submit(self).result()
        self.saved = time.monotonic()
        return path

    def _keep_best(self, score: float) -> None:
        """Keep the weights of the best evaluation apart: `checkpoints/best`, to be loaded, not resumed."""
        if self.best is None or score > self.best:
            self.best = score
            state = {**checkpoint.header(self.cfg, self.spec), "return": score}
            try:
                checkpoint.save(self.dir / "checkpoints" / "best", self.step, {"agent": self.agent.state_dict()}, state, keep=1)
            except OSError as error:
                self._warn([f"the best agent so far could not be saved ({error})"])

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
        if self.judge is not None and self.cfg.eval.baseline and not self.step:
            wanted = {"episodes": self.cfg.eval.baseline, "seed": self.cfg.seed}
            for row in self._played(partial(self.judge.baseline, partial(Telling, self.make_task), **wanted)):
                self.log.scalars(0, row, "eval")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stopped = isinstance(error, KeyboardInterrupt)
        status = "KILLED" if stopped else "FAILED" if kind else "FINISHED"
        try:
            with self.signals.held():
                if stopped and self.sound:
                    self.save()
                with self.signals.open():
                    self._write_report()
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self._end(status, grace=min(30.0, self.cfg.grace) if stopped else 30.0)
        if stopped:
            print(f"stopped at step {self.step:,}; go on with: python -m polydream resume {self.dir}")

    def _end(self, status: str, grace: float = 30.0) -> None:
        """Close what there is, the last first, each whatever becomes of the others."""
        there = vars(self)
        with ExitStack() as last:
            for name, told in (("lock", {}), ("log", {"status": status, "grace": grace}), ("saver", {})):
                if name in there:
                    last.callback(there[name].close, **told)
            last.callback(self.exits.close)

    def _write_report(self) -> None:
        if self.judge is not None and self.count.updates:
            self.log.artifact(self.judge.report(self.dir))
