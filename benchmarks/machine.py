"""What a number must be told with: the machine, its peak memory, and how much of it others used meanwhile."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def describe(device: str) -> dict[str, Any]:
    """Processor, its matrix instructions, GPU, versions."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = next((line.partition(":")[2].split() for line in info.splitlines() if line.startswith("flags")), [])
    found = {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory GB": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def synchronize(device: str) -> None:
    """Wait for a GPU; nothing to wait for elsewhere."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def forget_peak(device: str) -> None:
    """Begin the peak anew, at what is held now (Linux and CUDA; elsewhere it stays that of the whole process)."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")


def peak(device: str) -> float:
    """Most memory held since `forget_peak`, GB: of the process on a CPU, of its tensors on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    if CLEAR.exists():
        high = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(high.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class Others:
    """Cores that other processes used, on average, since this was made. Workers of this one are none of them."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.start = self._times()

    def _times(self) -> tuple[float, float, float]:
        whole, own = psutil.cpu_times(), [p.cpu_times() for p in (self.process, *self.process.children(recursive=True))]
        return time.perf_counter(), sum(whole[:3]) + sum(whole[5:8]), sum(t.user + t.system for t in own)

    def cores(self) -> float:
        """Mean number of cores so far. Clock ticks are 10 ms, so short spans give rough numbers."""
        wall, busy, own = (b - a for a, b in zip(self.start, self._times(), strict=True))
        return max(0.0, (busy - own) / wall)
