"""What happens around a run: who judges it, where it lives, what its first screen says, what it runs on."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from . import durable, registry
from .agent import Dreamer
from .compiler import Compile
from .config import ConfigError, to_dict
from .player import Player
from .replay import Replay
from .run import RunConfig
from .specs import Shared, Space, Spec, Task


class Judge(Protocol):
    """What judges a run: given by whoever starts it, because judging is another room's business."""

    def evaluate(self, player: Player, make_task: Callable[[], Task], *, episodes: int, seed: int, mode: Any, video: Path | None) -> Any:
        """Play episodes; the result has `rows()` for the log, `return_mean`, `video`, `warnings`."""
        ...

    def baseline(self, make_task: Callable[[], Task], *, episodes: int, seed: int) -> list[dict[str, Any]]:
        """Rows for the log: how a uniformly random policy does on the same evaluation seeds."""
        ...

    def film(self, path: Path, frames: Mapping[str, np.ndarray], context: int) -> None:
        """Write the open-loop video: `truth` and `model` (B, T, H, W, C) in [0, 1], `context` steps of which were seen."""
        ...

    def report(self, run_dir: Path) -> Path:
        """Write the run's report page."""
        ...


def run_path(cfg: RunConfig) -> Path:
    """Where a run begun now would live."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path(cfg.dir) if cfg.dir else Path("runs") / f"{cfg.task}-{cfg.variant}-{cfg.seed}-{stamp}".replace("/", "-").replace(":", "-")


def run_directory(cfg: RunConfig) -> Path:
    """The run's own folder, created. Refuses one that holds another run."""
    path = run_path(cfg)
    if (path / "config.yaml").exists():
        raise FileExistsError(f"{path} already holds a run: continue it with `polydream resume {path}`, or choose another --dir")
    path.mkdir(parents=True, exist_ok=True)
    return path


def choose_device(name: str, compile: Compile = "none") -> torch.device:
    """`auto` takes the first GPU there is, else the processor.

    Raises ConfigError for a device that is not there, and for an update that is to be recorded on a processor.
    """
    try:
        device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ConfigError(f"no device {name!r} here, only {', '.join(there)} ({str(error).splitlines()[0][:100]})") from None
    if compile == "graph" and device.type != "cuda":
        raise ConfigError(f"compile=graph records updates on a GPU, and this run is on {device}: use compile=steps")
    return device


def make_agent(cfg: RunConfig, spec: Spec) -> Dreamer:
    """The agent of a run. Raises ConfigError where its configuration cannot be built."""
    if cfg.agent.starts == 1 and cfg.agent.scales.repval:
        raise ConfigError("agent.starts must be 0, which means all, or at least 2: a replayed step's value needs the step after it, got 1")
    try:
        agent: Dreamer = registry.variant(cfg.variant)(spec, cfg.agent, cfg.seed)
        return agent
    except ValueError as error:
        raise ConfigError(f"agent of variant {cfg.variant}: {' '.join(str(error).split())}") from error


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def prepare_processor(threads: int) -> None:
    """Set the learner's CPU threads (0 leaves torch's choice), and keep memory between updates.

    An update frees and asks for the same large arrays every time. glibc gives them back to the system and gets them zeroed again,
    a fifth of the time of a small update; told not to, it reuses them. Other C libraries are left as they are.
    """
    if threads:
        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
            mallopt(option, value)


def make_task(cfg: RunConfig, index: int = 0, count: int = 1) -> Task:
    """One environment of a run: number `index` of `count` that divide tasks among themselves, where there are several."""
    env = cfg.env
    options = dict(_option(text) for text in env.options)
    task: Task = registry.task(cfg.task, seed=cfg.seed, repeat=env.repeat, obs=env.obs, size=env.size, camera=env.camera, **options)
    if isinstance(task, Shared):
        task.share(index, count)
    return task


def _option(text: str) -> tuple[str, Any]:
    """A task option given as name=value."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise ConfigError(f"env.options wants name=value, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def overview(cfg: RunConfig, agent: Dreamer, device: torch.device, directory: Path) -> dict[str, object]:
    """The first screen: what is about to be trained, on what, for how long, at what cost."""
    spec = agent.spec
    sizes = parameters(agent)
    memory, disk = Replay.predicted_bytes(spec, agent.latent_spaces, cfg.replay)
    rate = cfg.ratio / (cfg.batch * cfg.length)
    ahead = f", stepped {cfg.env.ahead} ahead of the learner" if cfg.env.ahead else ""
    slow = " (--compile graph makes updates several times faster there)" if device.type == "cuda" and cfg.compile != "graph" else ""
    idle = " (a GPU is present but not used)" if device.type == "cpu" and torch.cuda.is_available() else ""
    return {
        "variant": f"{cfg.variant} (profile {cfg.profile}, size {cfg.size}, preset {cfg.preset})",
        "task": f"{cfg.task}, {cfg.env.count} environment{'s' if cfg.env.count > 1 else ''}, action repeat {spec.repeat}{ahead}",
        "observations": {k: _describe(s) for k, s in spec.obs.items()},
        "actions": {k: _describe(s) for k, s in spec.action.items()},
        "parameters": sizes | {"total": sum(sizes.values())},
        "replay when full": f"{cfg.replay.capacity:,} steps: {memory / 1e9:.2f} GB of memory, {disk / 1e9:.2f} GB on disk",
        "device": f"{device}, {torch.get_num_threads()} threads{idle}{slow}",
        "train ratio": f"{cfg.ratio:g} replayed steps per decision: {rate:.3g} updates of {cfg.batch} x {cfg.length}",
        "budget": f"{cfg.steps:,} environment steps, about {cfg.steps / spec.repeat * rate:,.0f} updates",
        "results": str(directory),
    }


def parameters(agent: Dreamer) -> dict[str, int]:
    """Trainable parameters by module."""
    modules = [*agent.nets.items(), *((f"behavior {name}", b) for name, b in agent.behaviors.items())]
    return {name: sum(p.numel() for p in module.parameters() if p.requires_grad) for name, module in modules}


def memory(device: torch.device) -> dict[str, float]:
    """Bytes in use: `memory` of this process, and `gpu_memory`, the most that was allocated so far."""
    import psutil

    found = {"memory": float(psutil.Process().memory_info().rss)}
    return found | ({"gpu_memory": float(torch.cuda.max_memory_allocated(device))} if device.type == "cuda" else {})


def provenance(agent: Dreamer, device: torch.device) -> dict[str, Any]:
    """What a result must be told with: command, versions, revision, machine."""
    from polydream import __version__

    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return {
        "command": command_line(sys.argv, main.name if main else ""),
        "parameters": sum(parameters(agent).values()),
        "polydream": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores",
        "git": git.stdout.strip() or "unknown",
    }


def command_line(argv: list[str], module: str) -> str:
    """What to type to do the same elsewhere: a module by its name, whatever folder it lies in here. module: "" where a script was run."""
    program = Path(argv[0])
    name = "polydream" if program.name == "polydream" else module.removesuffix(".__main__")
    return " ".join([f"python -m {name}" if name else f"python {program.name}", *argv[1:]])


def _describe(space: Space) -> str:
    return f"{space.dtype} {tuple(space.shape)}" + (f", {space.classes} classes" if space.classes else "")


def write_config(cfg: RunConfig, directory: Path) -> Path:
    """config.yaml of a run directory."""
    import yaml

    path = directory / "config.yaml"
    durable.replace(path, yaml.safe_dump(json.loads(json.dumps(to_dict(cfg))), sort_keys=False).encode())
    return path
