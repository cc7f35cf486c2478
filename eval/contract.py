"""Does a variant keep its promises? `check_variant` finds out by training it and says in plain language what is wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from ..core import checkpoint, pictures, registry
from ..core.agent import Config, Dreamer
from ..core.config import ConfigError, from_dict, override
from ..core.optim import Optimizer
from ..core.player import Player
from ..core.promises import promises_of, require
from ..core.rng import Draws
from ..core.run import RunConfig
from ..core.scene import Scene
from ..core.specs import Task
from .knobs import knob_problems
from .rollout import evaluate
from .trial import LIMIT, Trial, differing, flat, record, replayed, same

TASKS = ("world/reach", "world/fourrooms", "world/grid4", "world/dots")
"""Where a variant is tried that nobody named a task for: the first that offers what it requires."""

BEGINNING = LIMIT + 1
"""A recorded step at which new episodes begin."""


def check_variant(
    variant: str | type[Dreamer], *, task: str | Callable[[], Task] = "", settings: Mapping[str, Any] | None = None
) -> list[str]:
    """Train small agents of a variant and list every broken promise in a line; an empty list means that all is well.

    variant: a registered name, `module:Class`, a combination joined by +, or the class. task: a name as on the command line or a
    function that makes an environment; without one a small world that offers what the variant requires. settings: knobs to
    set first, by path in the variant's Config (`{"dream": 8}`).

    Looks at: final methods, names of losses and scales, finite numbers, batches left as they were, parameters that reach
    optimizer and checkpoint, a saved and loaded agent that goes on to the bit, the base agent's losses with the variant's own
    weights at zero, acting and dreaming by one rule, episodes that begin from nothing, rewards at index 0, hidden
    observations, evaluation and report as a run does them, parts of a combination that take each other's names, and that
    every knob changes something. What a variant does not promise it says in `promises.exempt`, with the reason.
    """
    try:
        cls = registry.variant(variant) if isinstance(variant, str) else variant
        if not (isinstance(cls, type) and issubclass(cls, Dreamer)):
            return [f"{variant!r} is no class that inherits from polydream.core.agent.Dreamer"]
        trial = Trial(cls, _place(cls, task), settings or {})
    except (ConfigError, KeyError) as error:
        return [str(error.args[0])]
    exempt, problems = promises_of(cls).exempt, []
    for name, (part, doing) in PARTS.items():
        if name in exempt:
            continue
        try:
            problems += part(trial)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's variant raises is a finding
            problems.append(f"while {doing} it raised {type(error).__name__}: {' '.join(str(error).split())}")
            if name == "learns":
                break
    return list(dict.fromkeys(problems))


def _place(cls: type[Dreamer], task: str | Callable[[], Task]) -> Callable[[], Task]:
    """A maker of the environment to try a variant in. Raises ConfigError where the task, or all of ours, lack what it requires."""
    if callable(task):
        return task
    task = task or promises_of(cls).home
    for name in (task,) if task else TASKS:
        make = partial(registry.task, name)
        made = make()
        made.close()
        try:
            require(cls, made.spec)
        except ConfigError:
            if task:
                raise
            continue
        return make
    needs = ", ".join(promises_of(cls).requires)
    raise ConfigError(f"{cls.__name__} requires {needs}, which none of {', '.join(TASKS)} offers: name a task that does")


def _exempt(trial: Trial, name: str) -> bool:
    """Whether a parameter or loss is exempt, by its name or by the beginning of it."""
    return any(name == said or name.startswith(f"{said}.") for said in promises_of(trial.cls).exempt)


# ---------------------------------------------------------------------------------------------------- learning


def _final(trial: Trial) -> Iterator[str]:
    """The core's own methods are the core's own."""
    agent = trial.agent()
    for name, method in vars(Dreamer).items():
        if getattr(method, "__final__", False) and getattr(getattr(agent, name), "__func__", None) is not method:
            yield f"{name} is the core's own and the same for all variants, but has been replaced: override a seam that it calls"


def _learns(trial: Trial) -> Iterator[str]:
    """Losses have scales of the same names, one number per step each, and stay finite; batches stay as they were."""
    agent = trial.agent()
    losses, scales = _losses(agent, trial.record.batches[0]), agent.scales()
    yield from (f"loss {name!r} has no scale of that name" for name in sorted(losses.keys() - scales.keys()))
    yield from (f"scale {name!r} has no loss of that name" for name in sorted(scales.keys() - losses.keys()))
    for name, loss in losses.items():
        if loss.ndim != 2:
            yield f"loss {name!r} has shape {tuple(loss.shape)}: one number per replayed step (B, T) or dreamed step (N, H) is wanted"
    if losses.keys() != scales.keys():
        return
    optimizer = agent.optimizer()
    for step, batch in enumerate(trial.record.batches):
        given = batch.clone()
        metrics, _ = agent.update(batch, optimizer, Draws(0, step))
        for key in differing(dict(flat(given)), dict(flat(batch))):
            yield f"an update changes {key!r} of the replayed batch in place: copy it in prepare()"
        for name, value in metrics.items():
            if not bool(torch.isfinite(value).all()):
                yield f"{name!r} is not finite after {step + 1} updates"


def _losses(agent: Dreamer, batch: TensorDict) -> dict[str, Tensor]:
    state, data, previous = agent.replay_context(batch, 1)
    return agent.losses(data, state, previous, Draws(0))[0]


def _parameters(trial: Trial) -> Iterator[str]:
    """Everything that learns is a parameter in the optimizer and the checkpoint; everything in them learns."""
    agent = trial.agent()
    named = dict(agent.named_parameters())
    loss, _ = agent.total(_losses(agent, trial.record.batches[0]))
    for tensor in _graph_leaves(loss):
        if not any(tensor is p for p in named.values()):
            yield f"a trainable tensor of shape {tuple(tensor.shape)} feeds the losses and is no parameter: nothing saves or steps it"
    unsaved = {k: b.clone() for k, b in agent.named_buffers() if k not in agent.state_dict()}
    optimizer, reached = agent.optimizer(), set()
    for step, batch in enumerate(trial.record.batches):
        agent.update(batch, optimizer, Draws(0, step))
        reached |= {k for k, p in named.items() if p.grad is not None}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    saved = checkpoint.agent_tensors(agent, optimizer)[0]["agent"]
    for name, parameter in named.items():
        if parameter.requires_grad and not any(parameter is p for p in held):
            yield f"parameter {name!r} is not in the optimizer"
        if name not in saved:
            yield f"parameter {name!r} is not in the checkpoint"
    idle = [k for k, p in named.items() if p.requires_grad and k not in reached and not _exempt(trial, k)]
    for module in dict.fromkeys(name.rpartition(".")[0] for name in idle):
        yield f"no loss reaches the parameters of {module!r}: train them, or freeze them with requires_grad_(False)"
    for name, buffer in agent.named_buffers():
        if name in unsaved and not same(buffer, unsaved[name]):
            yield f"buffer {name!r} changes while training and is not in the checkpoint"


def _graph_leaves(loss: Tensor) -> list[Tensor]:
    """Tensors at which a gradient of the loss would end."""
    stack: list[Any] = [loss.grad_fn]
    seen, found = set(), []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack += [following for following, _ in node.next_functions]
    return found


def _resumes(trial: Trial) -> Iterator[str]:
    """A saved and loaded agent goes on as the one that was never stopped, to the bit, whatever the global generator does."""
    first, second, last = trial.record.batches[:3]
    agent = trial.agent()
    optimizer = agent.optimizer()
    for step, batch in enumerate((first, second)):
        agent.update(batch, optimizer, Draws(0, step))
    with tempfile.TemporaryDirectory() as folder:
        tensors, counters = checkpoint.agent_tensors(agent, optimizer)
        run = checkpoint.header(RunConfig(agent=trial.cfg), trial.spec)
        path = checkpoint.save(Path(folder), 2, tensors, run | {"optimizer": counters})
        groups, state = checkpoint.read(path)
    if from_dict(type(trial.cfg), state["config"]["agent"]) != trial.cfg:
        yield "the configuration is not the same after saving and loading it"
    loaded = trial.cls(checkpoint.spec_from(state["spec"]), trial.cfg, 0)
    resumed = loaded.optimizer()
    checkpoint.restore_agent(loaded, resumed, groups, state["optimizer"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        went_on = _continued(agent, optimizer, last, trial)
        torch.manual_seed(2)
        different = differing(went_on, _continued(loaded, resumed, last, trial))
    if different:
        yield f"a saved and loaded agent does not go on as before: {_some(different)} differ{'' if len(different) > 1 else 's'}"


def _continued(agent: Dreamer, optimizer: Optimizer, batch: TensorDict, trial: Trial) -> dict[str, Tensor]:
    """One more update and a few steps of acting."""
    metrics, _ = agent.update(batch, optimizer, Draws(0, 2))
    found = {f"weights/{k}": v.clone() for k, v in agent.state_dict().items()} | metrics
    state = agent.initial(len(trial.record.states[0]))
    for t, step in enumerate(trial.record.steps[:BEGINNING]):
        _, state = agent.policy(step, state, Draws(1, t))
    return found | {f"acting/{k}": v for k, v in flat(state)}


def _some(names: list[str], most: int = 3) -> str:
    """The first few names of a list, and how many more there are."""
    shown = sorted(names, key=lambda n: (not n.startswith("loss/"), n.startswith("weights/"), n))
    return ", ".join(map(repr, shown[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _neutral(trial: Trial) -> Iterator[str]:
    """With the variant's own terms weighing nothing, the base agent's losses stay as they are, to the bit."""
    cfg = trial.cfg
    for path, value in promises_of(trial.cls).neutral.items():
        cfg = override(cfg, path, value)
    agent = trial.agent(cfg)
    plain = Dreamer(agent.spec, Config(**{f.name: getattr(cfg, f.name) for f in fields(Config)}), 3)
    base = plain.scales()
    silenced = {name: scale if name in base else 0.0 for name, scale in agent.scales().items()}
    agent.scales = lambda: silenced  # type: ignore[method-assign]
    for name, behavior in agent.behaviors.items():
        for term, objective in behavior.terms().items():  # type: ignore[operator]
            if name not in plain.behaviors or term not in plain.main.terms():
                objective.weight = 0.0
    ours, theirs = agent.optimizer(), plain.optimizer()
    different: dict[str, str] = {}
    for step, batch in enumerate(record(agent, trial.make).batches):
        mine, _ = agent.update(batch, ours, Draws(0, step))
        wanted, _ = plain.update(batch, theirs, Draws(0, step))
        for name in (n for n in base if not _exempt(trial, f"loss/{n}")):
            key = f"loss/{name}"
            if key not in mine:
                different.setdefault(name, f"{name!r} is gone")
            elif not same(mine[key], wanted[key]):
                different.setdefault(name, f"{name!r} is {mine[key]:.9g} instead of {wanted[key]:.9g} in update {step + 1}")
    if different:
        yield (
            f"with its own terms at zero, base losses are not the base agent's: {'; '.join(different.values())}. Name the knobs that "
            "switch the variant off in promises.neutral, or what it changes by nature in promises.exempt as 'loss/NAME'"
        )


# ---------------------------------------------------------------------------------------------------- acting and dreaming


def _acts(trial: Trial) -> Iterator[str]:
    """What is carried beside the latents, what is seen and what is done follow one rule in the world and in the dream."""
    agent, exempt = trial.agent(), promises_of(trial.cls).exempt
    act, seen = agent.act, []

    def watched(state: TensorDict, draws: Draws) -> TensorDict:
        chosen = act(state, draws)
        seen.append((state.clone(), chosen.clone()))
        return chosen

    agent.act = watched  # type: ignore[method-assign]
    state = agent.initial(len(trial.record.states[0]))
    for t, step in enumerate(trial.record.steps[: BEGINNING + 2]):
        _, state = agent.policy(step, state, Draws(1, t))
    del agent.act
    for t, (before, acted) in enumerate(seen):
        with torch.no_grad():
            dream = agent.imagine(before.clone(), Draws(1, t))
            apart = torch.isclose(agent.view(acted), agent.view(dream)[:, 0], rtol=1e-4, atol=1e-5)
        here, there = dict(flat(acted)), {k: v[:, 0] for k, v in flat(dream)}
        for key in sorted(here):
            if key in ("deter", "stoch") and key in there and here[key].shape != there[key].shape:
                continue  # of several latents a dream may follow one; what is seen of it is compared below
            if f"state/{key}" not in exempt and (key not in there or not same(here[key], there[key])):
                yield f"{key!r} of the same state is not the same when acting and when dreaming: act() alone may decide it"
        if not bool(apart.all()):
            yield "view() shows another picture of the same state when acting (n,) and in a dream (N, H + 1)"
    yield from _contexts(trial, agent, seen[0][0])


def _contexts(trial: Trial, agent: Dreamer, acting: TensorDict) -> Iterator[str]:
    """`context` gives the same arrays at replayed states and at an episode's first step."""
    state, data, previous = agent.replay_context(trial.record.batches[0], 1)
    post = agent.losses(data, state, previous, Draws(0))[1]
    world = {k: v for k, v in flat(acting) if k not in ("deter", "stoch") and not k.startswith("action/")}
    replay = {k: v for k, v in flat(post) if k not in ("deter", "stoch", "logits")}
    for key in sorted(world.keys() ^ replay.keys()):
        if f"state/{key}" not in promises_of(trial.cls).exempt:
            place, other = ("acting", "training") if key in world else ("training", "acting")
            yield f"context {key!r} is there when {place} and not when {other}"
    for key in sorted(world.keys() & replay.keys()):
        one, two = (world[key].shape[1:], world[key].dtype), (replay[key].shape[2:], replay[key].dtype)
        if one != two:
            yield f"context {key!r} is {tuple(one[0])} {one[1]} when acting and {tuple(two[0])} {two[1]} when training"


def _begins(trial: Trial) -> Iterator[str]:
    """An episode that begins in the middle of a stream begins as the first one did."""
    agent = trial.agent()
    carried = [name.removeprefix("state/") for name in promises_of(trial.cls).exempt if name.startswith("state/")]
    step, state = trial.record.steps[BEGINNING].clone(), trial.record.states[BEGINNING - 1]
    step["is_first"] = torch.ones_like(step["is_first"])
    fresh = agent.initial(len(state))
    for key in carried:
        if (value := state.get(key, None)) is not None:
            fresh[key] = value
    (_, late), (_, early) = (agent.policy(step, s.clone(), Draws(2)) for s in (state, fresh))
    for key in sorted(differing(dict(flat(late)), dict(flat(early)))):
        if key not in carried:
            yield f"{key!r} of the last episode reaches into the next: is_first must reset it (context() gives start values)"


def _encodes(trial: Trial) -> Iterator[str]:
    """A step's tokens depend on that step alone, and on nothing that the task's spec hides."""
    agent, batch = trial.agent(), trial.record.batches[0]
    with torch.no_grad():
        tokens = agent.encode(batch)
        if not torch.allclose(tokens[:, 2], agent.encode(batch[:, 2]), rtol=1e-4, atol=1e-5):
            yield "encode() gives a step other tokens inside a sequence than alone, which is how they come when acting"
        for key in sorted(agent.spec.hidden):
            other = batch.clone()
            other["obs", key] = torch.roll(batch["obs", key], 1, 0) + (1 if agent.spec.obs[key].classes is None else 0)
            if not same(tokens, agent.encode(other)):
                yield f"encode() sees observation {key!r}, which the spec hides"


def _index_zero(trial: Trial) -> Iterator[str]:
    """Rewards at index 0, for arriving at the start of a dream, are never read."""
    plain, marked = trial.agent(), trial.agent()
    rewards = marked.rewards

    def spoilt(dream: TensorDict) -> dict[str, Tensor]:
        return {k: torch.cat([torch.full_like(r[:, :1], torch.nan), r[:, 1:]], 1) for k, r in rewards(dream).items()}

    marked.rewards = spoilt  # type: ignore[method-assign]
    for name in differing(_losses(plain, trial.record.batches[0]), _losses(marked, trial.record.batches[0])):
        yield f"loss {name!r} reads a dream's reward at index 0, for arriving at its start: a reward on (s_t, a_t) belongs at t + 1"


# ---------------------------------------------------------------------------------------------------- in a run


def _runs(trial: Trial) -> Iterator[str]:
    """Evaluation in both modes and the report work as a run does them, and leave the agent as it was."""
    agent = trial.agent()
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    for mode in ("sample", "mode"):
        evaluate(Player(agent), trial.make, episodes=2, seed=0, mode=mode, max_steps=LIMIT)
    agent.report(replayed(trial.record.batches[0]), Draws(0))
    pictures.drawn(agent, Scene(trial.record.batches[0], trial.make), Draws(0))
    if different := differing(before, agent.state_dict()):
        yield f"evaluation or report changes {_some(different)} of the agent"


def _parts(trial: Trial) -> Iterator[str]:
    """Parts of a combination do not take each other's names."""
    bases = [c for c in trial.cls.__bases__ if issubclass(c, Dreamer)]
    if len(bases) < 2:
        return
    base = _names(Trial(Dreamer, trial.make, {}))
    added = {c.__name__: {kind: names - base[kind] for kind, names in _names(Trial(c, trial.make, {})).items()} for c in bases}
    parts = list(added)
    for i, one in enumerate(parts):
        for other in parts[i + 1 :]:
            for kind, names in added[one].items():
                for name in sorted(names & added[other][kind]):
                    yield f"{one} and {other} both add the {kind} {name!r}"


def _names(trial: Trial) -> dict[str, set[str]]:
    agent = trial.agent()
    objectives = {f"{b}/{o}" for b, behavior in agent.behaviors.items() for o in behavior.terms()}  # type: ignore[operator]
    state = {k for k, _ in flat(trial.record.states[0])}
    found = {"module": set(agent.nets), "behavior": set(agent.behaviors), "objective": objectives, "loss": set(agent.scales())}
    return found | {"replay extra": set(agent.spec.extras), "context": state}


PARTS: dict[str, tuple[Callable[[Trial], Any], str]] = {
    "final": (_final, "building an agent"),
    "learns": (_learns, "acting and training"),
    "parameters": (_parameters, "looking at its parameters"),
    "resumes": (_resumes, "saving, loading and going on"),
    "neutral": (_neutral, "training beside the base agent"),
    "acts": (_acts, "comparing acting with dreaming"),
    "begins": (_begins, "beginning a new episode"),
    "encodes": (_encodes, "encoding"),
    "index zero": (_index_zero, "looking for rewards at index 0"),
    "runs": (_runs, "evaluating and reporting"),
    "parts": (_parts, "building its parts alone"),
    "knobs": (lambda trial: knob_problems(trial, promises_of(trial.cls)), "turning its knobs"),
}
"""Parts of the kit by the name that `promises.exempt` knows them by, and what an error there interrupts."""
