"""The floor under an update: its floating-point operations, and the rate at which this machine multiplies matrices.

Operations are those of matrix products and convolutions in one eager update of ours, forward and backward (two for each
multiplication with addition, as `torch.utils.flop_counter` counts). The rate is the best of many products, cubes and the
shapes that occur. Operations over rate is a time that no implementation of the same arithmetic goes below.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from . import machine
from .case import Case
from .contender import Handler, Mode, serve
from .ours import Ours

CUBES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
SHAPES = 8  # of those that occur, the ones with most operations
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Product = tuple[int, int, int, int]
"""G products of (M, K) by (K, N)."""


class Products(TorchDispatchMode):
    """Counts operations by the shape of each matrix product made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = {"aten::mm": args[:2], "aten::bmm": args[:2], "aten::addmm": args[1:3], "aten::baddbmm": args[1:3]}.get(func._schema.name)
        if factors:
            a, b = factors
            shape = (a.shape[0] if a.ndim == 3 else 1, a.shape[-2], a.shape[-1], b.shape[-1])
            self.operations[shape] += operations(shape)
        return func(*args, **(kwargs or {}))


def operations(shape: Product) -> int:
    """Of one product: a multiplication and an addition for each element."""
    g, m, k, n = shape
    return 2 * g * m * k * n


def count(update: Callable[[], object]) -> tuple[int, Counter[Product]]:
    """All operations of one call, and those of matrix products by shape."""
    with FlopCounterMode(display=False) as total, Products() as products:
        update()
    return total.get_total_flops(), products.operations


def rate(shape: Product, dtype: torch.dtype, device: str, repeats: int = 3) -> float:
    """Operations per second of the best of some products of random matrices."""
    g, m, k, n = shape
    a = torch.randn(g, m, k, device=device).to(dtype)
    b = torch.randn(g, k, n, device=device).to(dtype)
    # Small products are timed many at a time: at least about 10^8 operations between two looks at the clock.
    inner = max(1, 10**8 // operations(shape))
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        machine.synchronize(device)
        begin = time.perf_counter()
        for _ in range(inner):
            torch.bmm(a, b) if g > 1 else torch.mm(a[0], b[0])
        machine.synchronize(device)
        best = min(best, (time.perf_counter() - begin) / inner)
    return operations(shape) / best


def handlers(case: Case, settings: dict[str, Any]) -> dict[str, Handler]:
    """Counts the operations of one update, then answers {"do": "rates"} with the rates of all products by dtype: {"float32": [...]}."""
    total, by_shape = count(Ours(case, Mode()).update)
    common = [shape for shape, _ in by_shape.most_common(SHAPES)]
    cubes = [(1, n, n, n) for n in CUBES[case.device.partition(":")[0]]]
    shapes = [*cubes, *(s for s in common if s not in cubes)]
    facts = {
        "operations": total,
        "matrix products": by_shape.total(),
        "shapes": [{"shape": list(s), "share": by_shape[s] / total} for s in shapes],
    }

    def rates() -> dict[str, Any]:
        return {name: [rate(s, DTYPES[name], case.device) for s in shapes] for name in settings["dtypes"]}

    return {"ready": lambda: facts, "rates": rates}


def summarize(facts: dict[str, Any], answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Best rate of every product over all rounds, of the machine, and the floor in seconds by dtype."""
    names = list(answers[0])
    best = {name: [max(column) for column in zip(*(a[name] for a in answers), strict=True)] for name in names}
    rows = [entry | {f"{name} GFLOP/s": best[name][i] / 1e9 for name in names} for i, entry in enumerate(facts["shapes"])]
    matrix = {name: max(best[name]) for name in names}
    return {**facts, "shapes": rows, "rate": matrix, "seconds": {name: facts["operations"] / matrix[name] for name in names}}


if __name__ == "__main__":
    serve(handlers)
