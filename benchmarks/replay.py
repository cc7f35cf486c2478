"""Replay: time to add a step and to sample a batch, bytes per step, and whether they stay flat as the replay grows.

    python -m benchmarks.replay [--sizes 10000 100000] [--small 5000000] [--dir .] [--json FILE] [--torchrl]

Two series, both written to scratch files step by step (no sparse stand-ins): images of 64 x 64 x 3, for as many sizes as free
disk and memory hold, and images of 16 x 16 x 3 up to the largest size. Sequences are drawn uniformly from the whole
replay. A replay larger than free memory is read from disk, and the disk is then what is measured: such sizes are left out
and named. 5 million steps of 64 x 64 x 3 take 67 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch

from polydream.core.replay import Replay, ReplayConfig
from polydream.core.specs import Space, Spec

BATCH, LENGTH = 16, 64
LATENT = {"deter": Space(shape=(512,)), "stoch": Space(shape=(32,), dtype="uint8", classes=4)}  # size1m
ROUNDS = 5  # the best of their medians is compared between sizes: other programs on the machine only ever add time
LIMITS = {"grow us": 50.0, "add us": 50.0, "sample ms": 2.0, "bytes": 1.05, "flat": 1.3}
SHARE = 0.5  # of free disk and free memory that the largest replay may take


def spec(size: int) -> Spec:
    """One square image and six actions, as most pixel tasks have."""
    return Spec(obs={"image": Space(shape=(size, size, 3), dtype="uint8")}, action={"action": Space(shape=(6,))})


def step(size: int, rng: np.random.Generator) -> dict[str, Any]:
    """One step of one stream, latents in float32 as the policy gives them."""
    image = rng.integers(0, 256, (1, size, size, 3), np.uint8)
    latent = {"deter": rng.random((1, 512), np.float32), "stoch": rng.integers(0, 4, (1, 32), np.uint8)}
    flags = {key: np.zeros(1, bool) for key in ("is_first", "is_last", "is_terminal")}
    action = {"action": rng.random((1, 6), np.float32)}
    return {"obs": {"image": image}, "action": action, "reward": np.zeros(1, np.float32), "latent": latent, **flags}


def seconds(call: Callable[[], object], repeats: int) -> np.ndarray:
    """Time of each of some calls, s."""
    times = np.empty(repeats)
    for i in range(repeats):
        begin = time.perf_counter()
        call()
        times[i] = time.perf_counter() - begin
    return times


def measure(size: int, steps: int, folder: Path) -> dict[str, Any]:
    """Fill a replay of `steps` steps; time to add while it grows (fresh pages), to add when full, and to sample."""
    rng = np.random.default_rng(0)
    cfg = ReplayConfig(capacity=steps, memmap=True)
    replay = Replay(spec(size), LATENT, cfg, batch=BATCH, length=LENGTH, streams=1, directory=folder)
    rows = [step(size, rng) for _ in range(64)]
    number = iter(range(10**12))

    def add() -> None:
        replay.add(rows[next(number) % 64])

    growing = seconds(add, steps)
    os.sync()  # what was written must not be on its way to the disk while the next is measured
    replay.sample()  # the first one makes the buffers
    rounds = [(seconds(add, 1000) * 1e6, seconds(lambda: replay.sample(heldout=True), 40) * 1e3) for _ in range(ROUNDS)]
    payload = sum(space.elements * np.dtype(space.dtype).itemsize for space in (*spec(size).obs.values(), *spec(size).action.values()))
    payload += 4 + 3 + 512 * 2 + 32  # reward, flags, float16 deter, uint8 stoch
    return {
        "image": size,
        "steps": steps,
        "GB": replay.nbytes / 1e9,
        "grow us": float(np.median(growing) * 1e6),
        "grow mean us": float(growing.mean() * 1e6),
        "add us": float(np.median([adding for adding, _ in rounds])),
        "sample ms": float(np.median([sampling for _, sampling in rounds])),
        "best add us": float(min(np.median(adding) for adding, _ in rounds)),
        "best sample ms": float(min(np.median(sampling) for _, sampling in rounds)),
        "bytes": replay.nbytes / replay.steps / payload,
    }


def fits(size: int, steps: int, folder: Path) -> str:
    """Why a replay is too large for this machine; empty if it is not."""
    need = Replay.predicted_bytes(spec(size), LATENT, ReplayConfig(capacity=steps, memmap=False))[0]
    free = {"disk": shutil.disk_usage(folder).free, "memory": psutil.virtual_memory().available}
    short = [f"{SHARE * n / 1e9:.0f} GB, half of the free {kind}," for kind, n in free.items() if need > SHARE * n]
    return f"{steps:,} steps of {size} x {size} x 3 take {need / 1e9:.0f} GB; {' and '.join(short)} may be used" if short else ""


def torchrl(size: int, steps: int, folder: Path) -> dict[str, Any]:
    """The same task with TorchRL's memory-mapped storage and slice sampler."""
    from tensordict import TensorDict
    from torchrl.data import LazyMemmapStorage, SliceSampler, TensorDictReplayBuffer

    row = step(size, np.random.default_rng(0))
    latent = row["latent"] | {"deter": row["latent"]["deter"].astype(np.float16)}
    flat = {key: row[key] for key in ("reward", "is_first", "is_last", "is_terminal")}
    one = TensorDict({"obs": row["obs"], "action": row["action"], "latent": latent, **flat}, [1])
    sampler = SliceSampler(slice_len=1 + LENGTH, end_key="is_last", cache_values=False)
    storage = LazyMemmapStorage(steps, scratch_dir=str(folder / "torchrl"))
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=BATCH * (1 + LENGTH))
    adding = seconds(lambda: buffer.add(one[0]), 2000)
    many = one.expand(500).clone()
    many["is_last"][-1] = True
    while len(buffer) < steps:
        buffer.extend(many)
    sampling = seconds(buffer.sample, 20)
    return {"steps": steps, "add us": float(np.median(adding) * 1e6), "sample ms": float(np.median(sampling) * 1e3)}


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The requirements beside what was measured."""
    found = []
    for size in sorted({row["image"] for row in rows}, reverse=True):
        series = [row for row in rows if row["image"] == size]
        for key in ("grow us", "add us", "sample ms", "bytes"):
            found.append({"what": f"{key}, images of {size}", "limit": LIMITS[key], "worst": max(row[key] for row in series)})
        for key in ("best add us", "best sample ms"):
            span = f"{series[0]['steps']:,} to {series[-1]['steps']:,} steps"
            found.append({"what": f"{key}, {span} of {size}", "limit": LIMITS["flat"], "worst": series[-1][key] / series[0][key]})
    return [entry | {"met": entry["worst"] <= entry["limit"]} for entry in found]


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    print("  ".join(f"{key} {value:,.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()), flush=True)


def main() -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 5_000_000], help="steps, 64 x 64 x 3")
    parser.add_argument("--small", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 5_000_000], help="steps, 16 x 16 x 3")
    parser.add_argument("--dir", type=Path, default=Path("."), help="folder on the disk to use")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--torchrl", action="store_true", help="measure TorchRL's storage and sampler too, at the smallest size")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"rows": [], "left out": [], "threads": 1, "batch": BATCH, "length": LENGTH}
    with TemporaryDirectory(dir=args.dir) as folder:
        for size, counts in ((64, sorted(args.sizes)), (16, sorted(args.small))):
            for steps in counts:
                if why := fits(size, steps, Path(folder)):
                    result["left out"].append(why)
                    print(f"left out: {why}")
                    continue
                result["rows"].append(measure(size, steps, Path(folder)))
                print(
                    "  ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in result["rows"][-1].items()), flush=True
                )
        if args.torchrl:
            result["torchrl"] = torchrl(64, min(args.sizes), Path(folder))
            show({"torchrl": "", **result["torchrl"]})
    result["limits"] = verdicts(result["rows"])
    for entry in result["limits"]:
        print(f"{'met   ' if entry['met'] else 'MISSED'}  {entry['what']:50s} {entry['worst']:8.2f}  limit {entry['limit']:g}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
