"""One acting step of an agent as a function of named tensors: the same function is exported, served and compared.

    (observation, state, is_first, noise) -> (action, state)

All four are explicit, so the step is the same function everywhere: what the agent remembers is handed in and out, and every random
draw is an input. Names of tensors inside a mapping join their path by "/".
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from .core.agent import Dreamer
from .core.rng import Asked, Draws, Given
from .core.specs import Space

CALLS = "state/calls"
"""Calls of a served agent so far, of each row. An episode's start does not set it back, or all episodes would see one noise."""
Tensors = dict[str, Tensor]
SIDES = ("obs", "state", "is_first", "noise")
"""The arguments of a policy step, as the names of its inputs begin."""
MODES = {"sample": {}, "mode": {"action": 0.0}}
"""Streams that give no noise, as `Draws` takes them: `mode` takes the most likely action. The posterior is drawn in both."""


class Unexportable(RuntimeError):
    """An agent whose acting step is no fixed graph of tensor operations. The message is one line."""


class Port(NamedTuple):
    """A named tensor that goes in or out: shape without rows, type, and which axis counts the rows."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int = 0

    def zeros(self, rows: Any) -> Tensor:
        """Zeros for so many rows."""
        return torch.zeros(*self.shape[: self.axis], rows, *self.shape[self.axis :], dtype=self.dtype)

    def described(self) -> dict[str, Any]:
        """As the interface file tells it."""
        return {"shape": [*self.shape[: self.axis], "batch", *self.shape[self.axis :]], "dtype": str(self.dtype).removeprefix("torch.")}


class PolicyStep(nn.Module):
    """The acting step of an agent, in float32 on its device, as a module of plain mappings of tensors.

    observation: by key, as the task gives it (bytes for images, class indices), the extras that the agent reads among them; goals and
    task numbers are such. state: what the agent remembers, zeros at first. is_first (n,): rows whose state is forgotten. noise: by
    stream, uniform in [0, 1) or standard normal, see `kinds`. Actions are in the environment's own units: numbers within its bounds,
    its class numbers.
    Raises Unexportable where the step depends on more than that.
    """

    def __init__(self, agent: Dreamer, mode: str = "sample") -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: choose {' or '.join(MODES)}")
        self.agent, self.mode, self.modes = agent.eval(), mode, MODES[mode]
        spaces = {**agent.spec.obs, **agent.spec.extras}
        self._all = {k: Port(s.shape, getattr(torch, s.dtype)) for k, s in spaces.items()}
        first, paths = self._probe(2)
        other, _ = self._probe(3)
        self._paths = paths
        self._draws, self.kinds = _ports(first, other)
        self.state = {name: Port(tuple(v.shape[1:]), v.dtype) for name, (_, v) in paths.items()}
        self.action = {k: Port(s.shape, torch.int32 if s.discrete else torch.float32) for k, s in agent.spec.action.items()}
        self.observation, self.noise = dict(self._all), dict(self._draws)
        self.read = self._read()
        self.observation = {k: p for k, p in self._all.items() if f"obs/{k}" in self.read}
        self.noise = {k: p for k, p in self._draws.items() if f"noise/{k}" in self.read}

    def forward(self, observation: Tensors, state: Tensors, is_first: Tensor, noise: Tensors) -> tuple[Tensors, Tensors]:
        rows = is_first.shape[0]
        data, memory = self.data(observation, is_first), TensorDict({}, [rows])
        for name, (path, _) in self._paths.items():
            memory.set(path, state[name])
        # What nothing reads is no input, and whatever it is makes no difference.
        values = [noise[k] if k in noise else p.zeros(rows) for k, p in self._draws.items()]
        action, after = self.agent.policy(data, memory, Given(values, self.modes))
        spaces = self.agent.spec.action
        return {k: in_units(spaces[k], action[k]) for k in self.action}, self.remembered(after)

    def initial(self, rows: int) -> Tensors:
        """The state before the first step, which `is_first` makes the agent forget anyway."""
        return {name: port.zeros(rows) for name, port in self.state.items()}

    def remembered(self, state: TensorDict) -> Tensors:
        """An acting state of the agent as named tensors."""
        return {name: state[path] for name, (path, _) in self._paths.items()}

    def draw(self, draws: Draws, rows: int) -> Tensors:
        """The noise that the agent itself would take from these draws."""
        asked: dict[str, Any] = {}
        for name, port in self._draws.items():
            shape = (*port.shape[: port.axis], rows, *port.shape[port.axis :])
            asked[name] = getattr(draws, self.kinds[name])(name.partition("#")[0], *shape)
        return {name: asked[name] for name in self.noise}

    def example(self, rows: int) -> tuple[Tensors, Tensors, Tensor, Tensors]:
        """Arguments of zeros, every row at the start of an episode."""
        observation = {k: p.zeros(rows) for k, p in self.observation.items()}
        return observation, self.initial(rows), torch.ones(rows, dtype=torch.bool), {k: p.zeros(rows) for k, p in self.noise.items()}

    def data(self, observation: Tensors, is_first: Tensor) -> TensorDict:
        """A step (n,) as agents take it; what is left out is zeros."""
        rows = is_first.shape[0]
        values = {k: observation[k] if k in observation else p.zeros(rows) for k, p in self._all.items()}
        extras = {k: values.pop(k) for k in self.agent.spec.extras}
        return TensorDict({"obs": TensorDict(values, [rows]), "is_first": is_first, **extras}, [rows])

    def _probe(self, rows: int) -> tuple[list[tuple[str, str, tuple[int, ...]]], dict[str, tuple[tuple[str, ...], Tensor]]]:
        """What the agent draws in a step of so many rows, and its state afterwards by name, each with its path."""
        found: list[tuple[Any, Any]] = []
        state = self.agent.initial(rows)
        for begins in (True, False):
            draws = Asked(Draws(0, modes=self.modes))
            _, state = self.agent.policy(self.data({}, torch.full((rows,), begins)), state, draws)
            leaves = {k if isinstance(k, tuple) else (k,): v for k, v in state.items(True, True)}
            found.append((draws.questions, {"/".join(path): (path, leaves[path]) for path in sorted(leaves)}))
        if found[0][0] != found[1][0] or found[0][1].keys() != found[1][1].keys():
            raise Unexportable("its step changes form after an episode's first")
        return cast(Any, found[0])

    def _read(self) -> set[str]:
        """Names of the weights, observations and draws that actions or state depend on."""
        weights, arguments = _weights(self), self.example(2)
        with torch.no_grad(), refusing():
            graph = make_fx(lambda w, a: functional_call(self, w, a), tracing_mode="fake")(weights, arguments).graph
        graph.eliminate_dead_code()
        names = [*weights, *(f"{side}/{k}" for side, part in zip(SIDES, arguments, strict=True) for k in _names(part))]
        holders = [node for node in graph.nodes if node.op == "placeholder"]
        return {name for name, node in zip(names, holders, strict=True) if node.users}


class Acting(nn.Module):
    """A policy step with those weights alone that it reads, as buffers named by their paths: what is written to a file."""

    def __init__(self, step: PolicyStep) -> None:
        super().__init__()
        self._step = (step,)  # in a tuple, where torch finds no weights
        for name, value in _weights(step).items():
            if name in step.read:
                self.register_buffer(name.replace(".", "/"), value.clone())

    def forward(self, observation: Tensors, state: Tensors, is_first: Tensor, noise: Tensors) -> tuple[Tensors, Tensors]:
        weights = {name.replace("/", "."): value for name, value in self.named_buffers()}
        return functional_call(self._step[0], weights, (observation, state, is_first, noise))


def _weights(step: nn.Module) -> Tensors:
    return {k: v.detach() for k, v in (*step.named_parameters(), *step.named_buffers())}


def in_units(space: Space, action: Tensor) -> Tensor:
    """Actions (n, *shape) in [-1, 1] or as indices from 0 -> in the environment's own units, as `Player.act` gives bare ones."""
    if space.discrete:
        return action + _bound(space, space.low or 0, action.dtype)
    action = action.clamp(-1, 1)
    if space.low is None or space.high is None:
        return action
    low, high = (_bound(space, b, torch.float32) for b in (space.low, space.high))
    return (action + 1) / 2 * (high - low) + low


def _bound(space: Space, value: float | tuple[float, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(np.asarray(value).reshape(space.shape if np.ndim(value) else ()), dtype=dtype)


def _names(part: Any) -> list[str]:
    return list(part) if isinstance(part, Mapping) else [""]


def _ports(two: list[Any], three: list[Any]) -> tuple[dict[str, Port], dict[str, str]]:
    """Draws by name and their kinds, from what was asked for two and for three rows: the axis that differs counts the rows.

    Named after their streams; a stream's second draw ends in #1.
    """
    ports, kinds, seen = dict[str, Port](), dict[str, str](), dict[str, int]()
    for (kind, stream, shape), (_, _, wider) in zip(two, three, strict=True):
        axes = [i for i, (a, b) in enumerate(zip(shape, wider, strict=True)) if a != b]
        if len(axes) != 1:
            raise Unexportable(f"its draw {stream!r} is not one per row")
        name = stream + (f"#{seen[stream]}" if seen.setdefault(stream, 0) else "")
        seen[stream] += 1
        ports[name], kinds[name] = Port((*shape[: axes[0]], *shape[axes[0] + 1 :]), torch.float32, axes[0]), kind
    return ports, kinds


@contextmanager
def refusing() -> Iterator[None]:
    """Turn whatever torch says about a step that it cannot trace into one line that names the place."""
    try:
        yield
    except Unexportable:
        raise
    except Exception as error:
        libraries = Path(torch.__file__).parent.parent
        frames = [f for f in traceback.extract_tb(error.__traceback__) if libraries not in Path(f.filename).parents]
        own = next((f for f in reversed(frames) if "policystep" not in f.filename and not f.filename.startswith("<")), None)
        place = f"{Path(own.filename).parent.name}/{Path(own.filename).name}:{own.lineno}, `{own.line}`" if own else "unknown place"
        raise Unexportable(f"its acting step is no fixed graph of tensor operations ({type(error).__name__} at {place})") from error
