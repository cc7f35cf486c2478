"""Arrays that batches are copied into, used again as soon as nobody looks at them any more."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Hashable

import numpy as np
import torch
from torch import Tensor


class Buffers:
    """Memory for outputs of the same shape again and again, saving the page faults of fresh memory (half the time of a batch).

    A buffer goes out as a numpy array for writing and a tensor of the same memory for the reader. It returns by itself when
    the tensor and all its views are gone, so a reader may keep a batch for as long as it likes.
    pin: page-locked memory for fast copies to a CUDA device.
    """

    def __init__(self, pin: bool = False) -> None:
        self.pin = pin
        self._free: defaultdict[tuple[Hashable, tuple[int, ...], np.dtype], list[np.ndarray]] = defaultdict(list)

    def take(self, name: Hashable, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, Tensor]:
        """An array of undefined contents and the tensor that shares its memory. Do not keep the array."""
        free = self._free[name, shape, dtype]
        array = free.pop() if free else self._make(shape, dtype)
        # The tensor's storage holds the view it was made of; when the storage goes, so does the view, and the array is free.
        view = array.view()
        weakref.finalize(view, free.append, array).atexit = False
        return array, torch.from_numpy(view)

    def _make(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        array = np.empty(shape, dtype)
        return torch.from_numpy(array).pin_memory().numpy() if self.pin else array
