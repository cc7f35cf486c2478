"""The next batch, copied and moved to the device by a thread while the learner works on the present one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch
from tensordict import TensorDict

from .replay import Replay


class Prefetch:
    """Training batches of a replay on the learner's device, each one chosen when the one before is taken.

    What holds: the first `next()` returns what `replay.sample()` would have, and every further one, bit for bit, what
    `replay.sample()` would have at the end of the `next()` before. The choice is made in the caller's thread, and the replay
    is held still until the thread has copied, so timing decides nothing; steps added and latents written in between are seen
    one batch later than without prefetching. `state_dict` holds the batch in preparation: with it in the checkpoint, neither
    saving nor resuming changes the sequence.

    enabled: without, `next()` samples on the spot and nothing is ever in preparation.
    """

    def __init__(self, replay: Replay, device: torch.device | str = "cpu", *, enabled: bool = True) -> None:
        self.replay, self.device, self.enabled = replay, torch.device(device), enabled
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")  # starts with the first batch
        self._pending: Future[TensorDict] | None = None

    def next(self) -> TensorDict:
        """The next batch (B, K + T). Raises what went wrong in the thread; the call after it samples anew."""
        pending, self._pending = self._pending, None
        batch = pending.result() if pending else self._moved(self.replay.sample())
        if self.enabled:
            finish = self.replay.begin()
            try:
                self._pending = self._thread.submit(lambda: self._moved(finish()))
            except BaseException:
                finish()  # lets the replay go
                raise
        return batch

    def _moved(self, batch: TensorDict) -> TensorDict:
        # The arrays of a batch are written again as soon as nobody holds it, so the copy must be over by then.
        return batch.to(self.device, non_blocking=False)

    def drain(self) -> None:
        """Wait until nothing is being copied. The batch in preparation stays. Raises what went wrong in the thread."""
        if self._pending:
            self._pending.result()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The batch in preparation, on the CPU, by joined key (`obs/image`, `reward`, ...); empty when there is none."""
        if not self._pending:
            return {}
        batch = self._pending.result()
        return {k if isinstance(k, str) else "/".join(k): v.cpu() for k, v in batch.items(True, True)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Put a saved batch in preparation, in place of the present one."""
        self.drain()
        self._pending = None
        if not state:
            return
        shape = state["reward"].shape
        batch: dict[str, Any] = {}
        for name, tensor in state.items():
            group, _, key = name.partition("/")  # keys may hold further slashes
            if key:
                batch.setdefault(group, TensorDict({}, shape))[key] = tensor
            else:
                batch[group] = tensor
        self._pending = Future()
        self._pending.set_result(TensorDict(batch, shape).to(self.device))

    def close(self) -> None:
        """End the thread. A batch in preparation is dropped; its fresh stretches count as drawn."""
        self._thread.shutdown(wait=True)
        self._pending = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
