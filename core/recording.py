"""Updates recorded as one CUDA graph: thousands of small kernels are launched at once, with nothing in between for the host to do.

    update 1, 2     taken as they are, on a stream of their own: everything is compiled and allocated
    after them      one is recorded, which computes nothing
    later ones      batch copied to where the recording reads it, streams seeded, replayed, results copied out

An update is a function of weights, batch and draws, so a replay computes what the update would have. What the host decides otherwise,
whether the gradients are sound, is decided on the device; what it knows, rates and corrections, is handed over before each replay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict
from torch import Tensor

from .acting import leaves
from .gpumover import GPUMover
from .mover import Mover
from .optim import Optimizer
from .rng import Asked, Draws, seed_for

if TYPE_CHECKING:
    from .agent import Dreamer

Update = Callable[..., tuple[dict[str, Tensor], TensorDict]]
WARM = 2
"""Updates taken plainly before one is recorded."""


class RecordedUpdate:
    """`update` of an agent on a GPU, recorded for each set of shapes that it is called with. One that the host has to look into, because
    it branches on the value of a tensor, cannot be recorded: it is taken as it is, with a warning."""

    def __init__(self, agent: Dreamer, update: Update) -> None:
        self.agent, self.update = agent, update
        self.stream = torch.cuda.Stream()
        # Which algorithm a convolution takes is measured, not guessed. The choice may differ from run to run, and so do the last bits.
        torch.backends.cudnn.benchmark = True
        self._known: dict[Hashable, _Recording | int | None] = {}

    def __call__(self, batch: TensorDict, optimizer: Optimizer, draws: Draws, context: int) -> tuple[dict[str, Tensor], TensorDict]:
        """As `Dreamer.update`."""
        shapes = tuple((k, v.shape, v.dtype) for k, v in leaves(batch).items())
        awake = tuple(b.awake for b in self.agent.behaviors.values())
        key = (id(optimizer), self.agent.training, awake, context, tuple(sorted(draws.modes.items())), shapes)
        known = self._known.get(key, 0)
        if isinstance(known, _Recording) and not known.valid():
            known = WARM - 1
        if isinstance(known, int):
            known, out = self._first(known, batch, optimizer, draws, context)
            self._known[key] = known
            return out
        return known(batch, draws) if known else self.update(batch, optimizer, draws, context, Mover(self.agent, optimizer))

    def _first(self, count: int, batch: TensorDict, optimizer: Optimizer, draws: Draws, context: int) -> tuple[Any, Any]:
        """One of the updates before the recording; the last of them is followed by it."""
        asked = Asked(draws)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            out = self.update(batch, optimizer, asked, context, Mover(self.agent, optimizer))
        torch.cuda.current_stream().wait_stream(self.stream)
        if count + 1 < WARM:
            return count + 1, out
        try:
            return _Recording(self.agent, self.update, batch, optimizer, asked, context), out
        except RuntimeError as error:
            name, why = type(self.agent).__name__, str(error).strip().splitlines()[0]
            warnings.warn(f"updates of {name} are not recorded ({why}): each launches its kernels one by one", stacklevel=4)
            return None, out


class _Recording:
    """One update for one set of shapes."""

    def __init__(self, agent: Dreamer, update: Update, batch: TensorDict, optimizer: Optimizer, asked: Asked, context: int) -> None:
        self.tensors = [*agent.parameters(), *agent.buffers()]
        self.mover = GPUMover(agent, optimizer)
        self.mover.load()
        torch.cuda.synchronize()  # before the tables it reads are written anew
        self.batch = batch.clone()
        self._changed()  # what was laid out of the weights before is laid out again by each replay
        self.graph = torch.cuda.CUDAGraph()
        self.draws = Draws(asked.root, asked.step, asked.device, asked.modes)
        self.streams = {stream: self.draws.generator(stream) for _, stream, _ in asked.questions}
        for generator in self.streams.values():  # seeded before each replay, which draws from there
            self.graph.register_generator_state(generator)
        # Other threads may go on with their own: the next batch is on its way to the device meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            metrics, self.latents = update(self.batch, optimizer, self.draws, context, self.mover)
            self.names = [k for k, v in metrics.items() if v.is_cuda]
            self.rest = {k: v for k, v in metrics.items() if not v.is_cuda}
            self.row = torch.stack([metrics[k].float() for k in self.names])
        self._changed()

    def valid(self) -> bool:
        """Whether everything is still where it was when it was recorded."""
        return self.mover.valid()

    def __call__(self, batch: TensorDict, draws: Draws) -> tuple[dict[str, Tensor], TensorDict]:
        torch._foreach_copy_(list(leaves(self.batch).values()), list(leaves(batch).values()))
        for stream, generator in self.streams.items():
            generator.manual_seed(seed_for(draws.root, stream, draws.step))
        self.mover.turn()
        self.graph.replay()
        self._changed()
        row, latents = self.row.clone(), self.latents.clone()
        metrics = dict(zip(self.names, row.unbind(), strict=True)) | self.rest
        self.mover.moved(metrics["opt/skipped"])
        return metrics, latents

    def _changed(self) -> None:
        """Tell torch that weights have been written to, past its own bookkeeping."""
        torch.autograd.graph.increment_version(self.tensors)
