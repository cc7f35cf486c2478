"""The configuration of one run: what is trained on what, how long, and where results go."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

from .agent import AgentConfig
from .compiler import Compile
from .config import ConfigError, leaves
from .replay import ReplayConfig

SIZES = ("deter", "hidden", "stoch", "classes", "units", "depth", "kernel", "blocks", "dream", "slow_every")
DECAYS = ("beta1", "beta2")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """How the task is offered to the agent."""

    count: int = 1  # environments stepped together
    processes: bool = False  # each environment in a worker process instead of in this one
    ahead: int = 0  # steps that every environment takes, in a worker process, while updates run; 0 steps and learns in turn
    repeat: int = 0  # environment steps per decision; 0 takes the family's usual value (2 for dmc, 1 elsewhere)
    obs: Literal["vector", "pixels", "both"] = "vector"
    size: int = 64  # pixels are size x size x 3
    camera: int = -1  # dm_control camera, -1 for the task's usual one
    options: tuple[str, ...] = ()  # further options of the task as name=value: goal=3,limit=100; values as in JSON, else text
    timeout: float = 60.0  # seconds a worker process may take for one step before it counts as hanging
    restarts: int = 10  # environments that may fail and be started anew, all together, within env.window seconds
    window: float = 600.0

    @property
    def apart(self) -> bool:
        """Whether environments live in worker processes: asked for, or because they are stepped while this process learns."""
        return self.processes or self.ahead > 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation during training, on seeds that training never uses."""

    every: int = 10_000  # environment steps between evaluations; 0 evaluates only at the end
    episodes: int = 5  # episodes per mode
    baseline: int = 10  # episodes of a uniformly random policy at the start of a run, to compare with; 0 plays none
    modes: tuple[Literal["sample", "mode"], ...] = ("sample", "mode")  # actions sampled from the policy, and its most likely action
    video: bool = True  # film the first episode of each evaluation, in the last of the modes


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where metrics go. metrics.jsonl in the run directory is always written."""

    every: int = 500  # environment steps between rows of training metrics
    mlflow: bool = True
    experiment: str = "polydream"
    system: bool = True  # CPU, memory and GPU use, through MLflow's system metrics
    trace: int = 0  # updates to profile, after the first three, into trace.json and a table of the most expensive parts; 0 for none
    report: int = 20_000  # environment steps between agent reports (held-out losses, open-loop video)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about a run. Frozen; resolved once on the command line, printed, saved as config.yaml and logged.

    `profile`, `size` and `preset` record which functions shaped the values below; changing them here does nothing.
    """

    variant: str = "base"
    task: str = "dmc/cartpole_balance"
    profile: str = "v3"
    size: str = "size1m"
    preset: str = "none"
    seed: int = 0
    steps: int = 100_000  # environment steps, action repeat included
    batch: int = 16  # sequences per update (B)
    length: int = 64  # replayed steps per sequence (T)
    ratio: float = 512.0  # replayed steps trained on per decision taken; updates per decision = ratio / (batch * length)
    warmup: int = 0  # decisions in the replay before the first update; 0 means batch * length
    random: int = 0  # first decisions taken uniformly at random
    device: str = "auto"
    threads: int = 0  # CPU threads of the learner; 0 leaves torch's choice
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products in updates; norms and losses are float32
    compile: Compile = "none"  # steps: single steps, norms, acting; graph: on a GPU, records all of an update too
    start: str = ""  # run or checkpoint whose weights this run begins with; `train --from` sets it and takes over its configuration
    learn: Literal["all", "heads"] = "all"  # heads: of what was started from, encoder, recurrent model and decoder stay as they are
    dir: str = ""  # run directory; empty means runs/<task>-<variant>-<seed>-<time>
    save_every: float = 300.0  # seconds between checkpoints; 0 saves only at the end and on interrupt
    grace: float = 30.0  # seconds that a run may take to save and end after SIGTERM or Ctrl-C
    patience: int = 10  # updates in a row that may be skipped because a loss or gradient is not finite
    agent: AgentConfig = field(default_factory=AgentConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        lowest = {
            "steps": 1,
            "batch": 1,
            "length": 2,
            "ratio": 0,
            "warmup": 0,
            "random": 0,
            "threads": 0,
            "save_every": 0,
            "grace": 0,
            "patience": 0,
        }
        nested = {"env.count": 1, "env.size": 1, "env.repeat": 0, "env.ahead": 0, "env.timeout": 0, "env.restarts": 0, "env.window": 0}
        nested |= {"eval.every": 0, "eval.episodes": 1, "eval.baseline": 0, "log.every": 1, "log.report": 0, "log.trace": 0}
        for name, low in (lowest | nested).items():
            value = attrgetter(name)(self)
            if value < low:
                raise ConfigError(f"{name} must be at least {low}, got {value}")
        if self.learn == "heads" and not self.start:
            raise ConfigError("learn=heads leaves the world model as it is, so it needs one that was trained: --from RUN")
        self._check_agent()

    def _check_agent(self) -> None:
        """Numbers of the base agent: none below 0, where the default is not, sizes at least 1, rates of decay below 1."""
        known = leaves(AgentConfig())
        for name, value in leaves(self.agent).items():
            default = known.get(name)
            if not isinstance(value, int | float) or isinstance(default, bool) or not isinstance(default, int | float) or default < 0:
                continue
            last = name.rpartition(".")[2]
            if value < (low := 1 if last in SIZES else 0):
                raise ConfigError(f"agent.{name} must be at least {low}, got {value}")
            if last in DECAYS and value >= 1:
                raise ConfigError(f"agent.{name} must lie below 1, got {value}")
