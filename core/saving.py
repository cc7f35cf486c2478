"""The whole state of a run: taken, written beside training, and put back so that the run goes on as if it had not stopped."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict

from . import checkpoint, durable
from .archive import Archive, ArchiveError
from .checkpoint import CheckpointError
from .guard import NonFinite, first_bad
from .replay import Replay

if TYPE_CHECKING:
    from .train import Trainer

Groups = dict[str, dict[str, torch.Tensor]]


class Saver:
    """Writes checkpoints of one run, in a thread of its own where that is wanted: one at a time, in order.

    root: folder of the checkpoints. say: told of a save that went wrong unseen. `pause` is how long the last save held up training, in
    seconds; `took` all of it.
    """

    def __init__(self, root: Path, replay: Replay, say: Callable[[str], None] = print) -> None:
        self.root, self.replay, self.say = root, replay, say
        self.pause = self.took = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def submit(self, trainer: Trainer) -> Future[Path]:
        """Take the state now and write it in the background, also where the save before could not be written. Raises NonFinite."""
        try:
            self.finish()
        except (OSError, CheckpointError) as error:
            self.say(f"no checkpoint could be written ({error}); the one before is kept, and training goes on")
        begun = time.monotonic()
        tensors, state = capture(trainer)
        if bad := first_bad({"weight": tensors["agent"]}):
            raise NonFinite(f"no checkpoint is written of a state that is not finite: {bad}")
        state["replay"] = self.replay.save(self.root.parent / "replay", keep=self.versions(), wait=False)
        step = trainer.step
        self.pause = time.monotonic() - begun
        self._pending = self._thread.submit(self._write, step, tensors, state, begun)
        return self._pending

    def finish(self) -> None:
        """Wait for a save that is under way. Raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def versions(self) -> list[int]:
        """Saves of the replay that checkpoints refer to."""
        return [version for path in checkpoint.complete(self.root) if (version := _version(path)) is not None]

    def _write(self, step: int, tensors: Groups, state: dict[str, Any], begun: float) -> Path:
        self.replay.sync()
        path = checkpoint.save(self.root, step, tensors, state)
        self.took = time.monotonic() - begun
        return path

    def close(self) -> None:
        """End the thread, waiting for a save that is under way."""
        self._thread.shutdown(wait=True)


def _name(path: str | tuple[str, ...]) -> str:
    """A key of nested states as one text. Keys of actions may hold slashes themselves (`action/0` of a Tuple space)."""
    parts = [path] if isinstance(path, str) else list(path)
    return json.dumps(parts) if any("/" in part or part.startswith("[") for part in parts) else "/".join(parts)


def _path(name: str) -> tuple[str, ...]:
    """The inverse of `_name`."""
    return tuple(json.loads(name) if name.startswith("[") else name.split("/"))


def _version(path: Path) -> int | None:
    try:
        return int(checkpoint.read_json(path / "state.json")["replay"]["saved"][0])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def capture(trainer: Trainer) -> tuple[Groups, dict[str, Any]]:
    """Copies of everything that decides how a run goes on, the replay's contents aside."""
    tensors, optimizer = checkpoint.agent_tensors(trainer.agent, trainer.optimizer)
    tensors["acting"] = {_name(k): v for k, v in trainer.collector.state.items(True, True)}
    # A batch that is being prepared was already chosen: it belongs to the state of the run.
    tensors["prepared"] = trainer.batches.state_dict()
    rows = trainer.metrics
    tensors["metrics"] = {k: torch.stack([m[k].detach().float() for m in rows]) for k in (rows[-1] if rows else {})}
    state = {
        **checkpoint.header(trainer.cfg, trainer.spec),
        "optimizer": optimizer,
        "counters": vars(trainer.count),
        "ratio": trainer.ratio.state_dict(),
        "envs": trainer.envs.get_state(),
        "actions": trainer.collector.actions,
        "scores": trainer.scores,
        "lengths": trainer.lengths,
        "generators": generators(),
        **watchers(trainer),
    }
    return {g: {k: v.detach().to("cpu", copy=True) for k, v in ts.items()} for g, ts in tensors.items()}, deepcopy(state)


def watchers(trainer: Trainer) -> dict[str, Any]:
    """State of what looks on while the run is trained; an evaluation that is broken off leaves it as it was before."""
    health = {"streak": dict(trainer.health.streak), "reported": sorted(trainer.health.reported)}
    seen = {"judged": trainer.count.judged, "reported": trainer.count.reported, "best": trainer.best}
    return {"health": health, "heldout": trainer.heldout.state_dict(), "seen": seen, "rows": trainer.log.position()}


def unwatch(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put back what `watchers` took, and cut off the rows that were written since."""
    trainer.health.streak.clear()
    trainer.health.streak.update(state["health"]["streak"])
    trainer.health.reported = set(state["health"]["reported"])
    trainer.heldout.load_state_dict(state["heldout"])
    trainer.count.judged, trainer.count.reported = state["seen"]["judged"], state["seen"]["reported"]
    trainer.best = state["seen"]["best"]
    trainer.log.cut(state["rows"])


def restore(trainer: Trainer, say: Callable[[str], None] = print) -> None:
    """Go on from the newest good checkpoint of the run's directory. Raises CheckpointError where there is none."""
    root = trainer.dir / "checkpoints"
    for folder in (trainer.dir, root, root / "best", trainer.dir / "replay"):
        durable.sweep(folder)
    good = list(checkpoint.intact(root, say))
    bad = [path for path in checkpoint.folders(root) if path not in good]
    if not good:
        raise CheckpointError(f"no {'intact ' if bad else ''}checkpoint in {root}")
    groups, state = _with_replay(trainer, good, say)
    for path in bad:
        checkpoint.set_aside(path)
    Archive(trainer.dir / "replay").prune(trainer.saver.versions())  # what a killed save had begun
    checkpoint.restore_agent(trainer.agent, trainer.optimizer, groups, state["optimizer"])
    trainer.count = type(trainer.count)(**state["counters"])
    trainer.ratio.load_state_dict(state["ratio"])
    trainer.collector.actions = state["actions"]
    trainer.scores, trainer.lengths = state["scores"], state["lengths"]
    trainer.batches.load_state_dict({k: v.to(trainer.device) for k, v in groups["prepared"].items()})
    acting = trainer.collector.state = TensorDict({}, [trainer.cfg.env.count], device=trainer.device)
    for key, value in groups["acting"].items():
        acting[_path(key)] = value.to(trainer.device)
    names = list(groups["metrics"])
    count = len(groups["metrics"][names[0]]) if names else 0
    trainer.metrics = [{k: groups["metrics"][k][i] for k in names} for i in range(count)]
    unwatch(trainer, state)
    set_generators(state["generators"])
    trainer.envs.set_state(state["envs"])
    if trainer.envs.broken:
        for i in trainer.envs.broken:
            trainer.replay.close_episode(i)
        say(
            f"resumed, not exactly: {len(trainer.envs.broken)} of {trainer.envs.n} environments cannot be restored, so their episodes "
            "end here, not terminal, and new ones begin"
        )
    else:
        say(f"resumed exactly where the run stopped, at step {trainer.step:,}")


def _with_replay(trainer: Trainer, good: list[Path], say: Callable[[str], None]) -> tuple[Groups, dict[str, Any]]:
    """The newest of these checkpoints whose replay is whole; where none is, the newest, with what can be saved of the replay."""
    folder = trainer.dir / "replay"
    read: list[tuple[Groups, dict[str, Any]]] = []
    for path in good:
        try:
            groups, state = checkpoint.read(path)
            read = read or [(groups, state)]
            trainer.replay.load(folder, state["replay"])
            return groups, state
        except (ArchiveError, CheckpointError, FileNotFoundError) as error:
            say(f"checkpoint {path}: {error}")
    if not read:
        raise CheckpointError(f"no checkpoint in {trainer.dir / 'checkpoints'} can be read")
    groups, state = read[0]
    try:
        trainer.replay.load(folder, state["replay"], say)
    except (ArchiveError, FileNotFoundError) as error:
        raise CheckpointError(f"{error}; no checkpoint of {trainer.dir} has a replay that can be read") from error
    return groups, state


def generators() -> dict[str, Any]:
    """States of the process-wide random generators of Python, NumPy and torch, as plain values and arrays."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  the old one is the one that others share
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": {"version": version, "state": np.array(internal, np.uint64), "gauss": gauss},
        "numpy": {"name": name, "keys": keys, "position": position, "has_gauss": has_gauss, "cached": cached},
        "torch": torch.get_rng_state().numpy(),
        "cuda": [s.numpy() for s in cuda],
    }


def set_generators(state: dict[str, Any]) -> None:
    """Put back what `generators` took. CUDA generators of another number of devices stay as they are."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss"]))
    np.random.set_state((numpy["name"], numpy["keys"], numpy["position"], numpy["has_gauss"], numpy["cached"]))  # noqa: NPY002
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.from_numpy(s) for s in state["cuda"]])
