"""Sizes and presets: functions on frozen configurations, and the one place where a run's configuration is put together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from . import registry
from .agent import Config, Dreamer
from .config import ConfigError, from_dict, nearest, override
from .profiles import PROFILES
from .promises import promises_of
from .run import RunConfig

C = TypeVar("C", bound=Config)


def sized(cfg: C, hidden: int) -> C:
    """All widths from one number, as the released sizes do: deter 8 x hidden, units hidden, stoch 32, classes and depth hidden / 16."""
    rssm = replace(cfg.rssm, deter=8 * hidden, hidden=hidden, stoch=32, classes=hidden // 16)
    return replace(_units(cfg, hidden, hidden // 16), rssm=rssm)


def laptop_size(cfg: C) -> C:
    """A small model for minutes on two cores: below the smallest released size, which is made for hours."""
    rssm = replace(cfg.rssm, deter=256, hidden=64, stoch=16, classes=8)
    return replace(_units(cfg, 64, 4), rssm=rssm)


def _units(cfg: C, units: int, depth: int) -> C:
    policy, head = cfg.actor.policy, cfg.critic.head
    return replace(
        cfg,
        encoder=replace(cfg.encoder, units=units, depth=depth),
        decoder=replace(cfg.decoder, units=units, depth=depth),
        reward=replace(cfg.reward, units=units),
        cont=replace(cfg.cont, units=units),
        actor=replace(cfg.actor, policy=replace(policy, units=units)),
        critic=replace(cfg.critic, head=replace(head, units=units)),
    )


WIDTHS = {"size1m": 64, "size12m": 256, "size25m": 384, "size50m": 512, "size100m": 768, "size200m": 1024, "size400m": 1536}
"""Released sizes by hidden width. The names are nominal: size1m has 0.64 to 0.77 million parameters."""

SIZES: Mapping[str, Callable[[Any], Any]] = {"laptop": laptop_size} | {
    name: partial(sized, hidden=hidden) for name, hidden in WIDTHS.items()
}


def smoke(cfg: RunConfig) -> RunConfig:
    """Seconds: does everything work? Nothing is learned."""
    small = sized(cfg.agent, 16)
    # Eight blocks spread the state over the decoder's channels: depth times four must divide by eight.
    small = replace(small, encoder=replace(small.encoder, depth=2), decoder=replace(small.decoder, depth=2))
    tiny = replace(small, rssm=replace(cfg.agent.rssm, deter=32, hidden=16, stoch=4, classes=4), dream=5)
    quiet = replace(cfg.eval, every=0, episodes=1)
    return replace(
        cfg, size="laptop", agent=tiny, batch=4, length=16, ratio=8.0, steps=600, eval=quiet, log=replace(cfg.log, every=100, report=300)
    )


def laptop(cfg: RunConfig) -> RunConfig:
    """Minutes on two cores: small model, small batch, faster learning rate."""
    agent = laptop_size(cfg.agent)
    optim = replace(agent.optim, lr=4e-4, lr_model=6e-4, lr_actor=2e-4, lr_critic=2e-4, warmup=100)
    return replace(cfg, size="laptop", agent=replace(agent, optim=optim), batch=16, length=32, ratio=128.0)


def demo(cfg: RunConfig) -> RunConfig:
    """What `make demo` runs: a few minutes on a real dm_control task.

    Longer decisions, short sequences and few dreams: more updates in the same time, which is what a run of minutes lacks most. A
    horizon of 333 decisions is longer than an episode of 250. Values still climb towards it when such a run ends, and while
    they climb every action looks better than expected: policies settled on whatever they did first.
    """
    run = laptop(cfg)
    agent = replace(run.agent, starts=8, optim=replace(run.agent.optim, lr=1e-3), critic=replace(run.agent.critic, horizon=60))
    run = replace(run, agent=agent, batch=16, length=16, ratio=80.0, env=replace(run.env, repeat=4))
    watched = replace(run.eval, every=14_000, episodes=4, baseline=10)
    return replace(run, task="dmc/cartpole_swingup", steps=28_000, eval=watched, log=replace(run.log, every=1_000, report=100_000))


def reproduce(cfg: RunConfig) -> RunConfig:
    """The settings behind the published curves, by suite; nothing that shapes learning can be changed beside it."""
    family = cfg.task.partition("/")[0]
    if family != "dmc":
        raise ConfigError(f"preset reproduce has no published settings for {family!r} tasks; it knows dmc (vector and pixels)")
    pixels = cfg.env.obs != "vector"
    env = replace(cfg.env, repeat=2, count=16)
    agent = sized(cfg.agent, 256)
    return replace(cfg, size="size12m", agent=agent, env=env, batch=16, length=64, ratio=512.0, steps=1_000_000 if pixels else 500_000)


PRESETS: dict[str, Callable[[RunConfig], RunConfig]] = {
    "none": lambda cfg: cfg,
    "smoke": smoke,
    "laptop": laptop,
    "demo": demo,
    "reproduce": reproduce,
}

FREE = (
    "seed",
    "device",
    "threads",
    "precision",
    "compile",
    "dir",
    "save_every",
    "grace",
    "patience",
    "env.processes",
    "env.timeout",
    "env.restarts",
    "env.window",
    "env.obs",
    "eval",
    "log",
    "replay.memmap",
)
"""What may be chosen beside preset reproduce: nothing that changes what is learned."""

PARTS = ("model", "actor", "critic")
"""What optim.groups=split tells apart."""

SELECTIONS = ("variant", "task", "suite", "profile", "size", "preset")


def resolve(selection: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of a run: the variant's own knobs, then profile, preset, size and single options, in this order.

    A size that is named is the size, also beside a preset that has one of its own. Without a size and a preset, preset laptop
    applies; suite=NAME is short for task=suite/NAME, and a variant may have a task of its own where none is named. Raises
    ConfigError naming the key and its nearest valid value.
    """
    chosen = {k: v for k, v in selection.items() if v}
    overrides = dict(overrides or {})
    if suite := chosen.pop("suite", ""):
        if "task" in chosen:
            raise ConfigError(f"task {chosen['task']!r} and suite {suite!r} exclude each other: give one of them")
        chosen["task"] = f"suite/{suite}"
    preset = chosen.get("preset") or ("none" if "size" in chosen else "laptop")
    cls = _variant(chosen.get("variant", "base"))
    if home := promises_of(cls).home:
        chosen.setdefault("task", home)
    cfg = RunConfig(agent=cls.Config())
    cfg = replace(cfg, variant=chosen.get("variant", cfg.variant), task=chosen.get("task", cfg.task))
    profile = _pick(PROFILES, chosen.get("profile", "v3"), "profile")
    cfg = replace(cfg, agent=profile(cfg.agent), profile=chosen.get("profile", "v3"), preset=preset)
    if preset == "reproduce":
        _guard(chosen, overrides)
        # The observation kind decides which published suite is meant, so it is known before the preset.
        cfg = override(cfg, "env.obs", overrides.get("env.obs", cfg.env.obs))
    cfg = _pick(PRESETS, preset, "preset")(cfg)
    if "size" in chosen:
        cfg = replace(cfg, agent=_pick(SIZES, chosen["size"], "size")(cfg.agent), size=chosen["size"])
    if "task" in chosen:
        cfg = replace(cfg, task=chosen["task"])
    return overridden(cfg, overrides)


def overridden(cfg: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """A configuration with single options changed, by path. Raises ConfigError where one of them would do nothing beside the others."""
    for path, value in options.items():
        cfg = override(cfg, path, value)
    groups = cfg.agent.optim.groups
    for path in options:
        knob, _, part = path.removeprefix("agent.optim.").partition("_")
        if path.startswith("agent.optim.") and knob in ("lr", "clip") and (part in PARTS) != (groups == "split") and part in ("", *PARTS):
            instead = f"agent.optim.{knob}" if groups == "single" else f"agent.optim.{knob}_{{{','.join(PARTS)}}}"
            raise ConfigError(f"{path} does nothing with agent.optim.groups={groups}, which goes by {instead}")
    return cfg


def restore(data: Mapping[str, Any], code: Collection[str] = ()) -> RunConfig:
    """A configuration from what `to_dict` made of it, agent knobs of its own variant included.

    A file must not choose what code runs: it may name what is installed under our entry points, and of `module:name` only what
    the caller vouches for in `code`. Raises ConfigError otherwise.
    """
    if not isinstance(data, Mapping):
        raise ConfigError("the stored configuration is not a group of options")
    refuse_code("variant", str(data.get("variant", "base")), code)
    return from_dict(RunConfig, data, groups={"agent": _variant(str(data.get("variant", "base"))).Config})


def refuse_code(key: str, name: str, code: Collection[str]) -> None:
    """Raise ConfigError where a name read from a file would import a module that is not registered and nobody vouched for."""
    if any(":" in part for part in name.split("+")) and name not in code:
        raise ConfigError(f"the stored {key} {name[:80]!r} would run code of that name; if you trust it, repeat it as --{key} {name[:80]}")


def _variant(name: str) -> Any:
    try:
        found = registry.variant(name)
    except KeyError as error:
        raise ConfigError(str(error.args[0])) from None
    except ModuleNotFoundError as error:
        if not any(f"{part.partition(':')[0]}.".startswith(f"{error.name}.") for part in name.split("+") if ":" in part):
            raise
        raise ConfigError(f"variant {name!r}: no module named {error.name!r} here ({Path.cwd()}) or installed") from None
    if not (isinstance(found, type) and issubclass(found, Dreamer)):
        raise ConfigError(f"variant {name!r} is {found!r}, not a class that inherits from polydream.core.agent.Dreamer")
    return found


def _pick(table: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in table:
        raise ConfigError(f"no {kind} {name!r}; did you mean {nearest(name, table)[0]!r}? There are {', '.join(table)}")
    return table[name]


def _guard(chosen: Mapping[str, str], overrides: Mapping[str, Any]) -> None:
    locked = [k for k in ("size", "profile") if k in chosen]
    locked += [k for k in overrides if not any(k == free or k.startswith(f"{free}.") for free in FREE)]
    if locked:
        raise ConfigError(
            f"preset reproduce carries the published settings, so {locked[0]!r} cannot be changed beside it; free are {', '.join(FREE)}"
        )
