"""Checkpoints: a directory each, written beside and renamed into place, verified by hash when read. No pickle anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .agent import Dreamer
from .config import ConfigError, to_dict
from .optim import Optimizer
from .presets import restore
from .registry import variant
from .run import RunConfig
from .specs import Space, Spec

SCHEMA = 1
KEEP = 2


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged. The message is one line and names it."""


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write `root/<step>`: one safetensors file per group of tensors, state.json, and a manifest with sizes and hashes.

    state: numbers, text, lists and mappings of them, and numpy arrays anywhere inside. Payload is fsynced before the
    manifest, the manifest before one rename; older checkpoints but the newest `KEEP` go after the new one verifies.
    """
    root.mkdir(parents=True, exist_ok=True)
    work = root / f".{step:012d}-{uuid.uuid4().hex[:8]}"
    work.mkdir()
    plain, arrays = pack(state)
    groups = {**tensors, "state": {k: torch.from_numpy(np.require(v, requirements="C")) for k, v in arrays.items()}}
    for name, group in groups.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in group.items()}, work / f"{name}.safetensors")
    (work / "state.json").write_text(json.dumps(plain, indent=1, allow_nan=True))
    files = sorted(work.iterdir())
    for path in files:
        _sync(path)
    manifest = {"schema": SCHEMA, "step": step, "torch": torch.__version__, "files": {p.name: _fingerprint(p) for p in files}}
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(work / "manifest.json")
    final = root / f"{step:012d}"
    if final.exists():
        shutil.rmtree(final)
    os.replace(work, final)
    _sync(root)
    if reason := damage(final):
        raise CheckpointError(f"{final} could not be read back: {reason}")
    for old in complete(root)[:-KEEP]:
        shutil.rmtree(old)
    return final


def complete(root: Path) -> list[Path]:
    """Finished checkpoints below `root`, oldest first, by scanning; nothing points at the newest."""
    return sorted(p for p in root.glob("[0-9]*") if (p / "manifest.json").is_file())


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        return "the manifest is missing or unreadable"
    if manifest.get("schema") != SCHEMA:
        return f"it has format {manifest.get('schema')}, this version reads {SCHEMA}"
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _fingerprint(file) != expected:
            return f"{name} has been changed or cut"
    return ""


def newest(root: Path, say: Any = print) -> Path:
    """The newest checkpoint that verifies; damaged ones are named through `say` and passed over."""
    found = complete(root)
    for path in reversed(found):
        reason = damage(path)
        if not reason:
            return path
        say(f"checkpoint {path} is damaged ({reason}); using the one before")
    raise CheckpointError(f"no {'intact ' if found else ''}checkpoint in {root}")


def read(path: Path, device: str = "cpu") -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by group and state of a checkpoint whose files match their manifest."""
    if reason := damage(path):
        raise CheckpointError(f"{path} cannot be used: {reason}")
    groups = {p.stem: load_file(p, device=device) for p in path.glob("*.safetensors")}
    arrays = {k: v.cpu().numpy() for k, v in groups.pop("state").items()}
    return groups, unpack(json.loads((path / "state.json").read_text()), arrays)


def locate(path: Path) -> Path:
    """The checkpoint meant by a run directory, its checkpoints folder or a checkpoint itself."""
    if (path / "manifest.json").is_file():
        return path
    for root in (path / "checkpoints", path):
        if root.is_dir() and complete(root):
            return newest(root)
    raise CheckpointError(f"no checkpoint in {path}: give a run directory that holds checkpoints/, or a checkpoint")


def load_agent(path: Path, device: str = "cpu") -> Dreamer:
    """The trained agent of a run directory or checkpoint, rebuilt from nothing else."""
    groups, state = read(locate(path), device)
    cfg = restore(state["config"])
    agent = variant(cfg.variant)(spec_from(state["spec"]), cfg.agent)
    agent.to(device).load_state_dict(groups["agent"])
    return agent


def agent_tensors(agent: Dreamer, optimizer: Optimizer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Weights, buffers and moments as groups of tensors, and the optimizer's counters as state."""
    names: dict[Tensor, str] = {p: n for n, p in agent.named_parameters()}
    moments: dict[str, Tensor] = {}
    steps: dict[str, int] = {}
    for parameter, slot in optimizer.state.items():
        name = names[parameter]
        steps[name] = slot["step"]
        moments |= {f"{name}:{k}": slot[k] for k in ("first", "second")}
    return {"agent": agent.state_dict(), "optimizer": moments}, {"steps": steps, "updates": [g["updates"] for g in optimizer.param_groups]}


def restore_agent(agent: Dreamer, optimizer: Optimizer, groups: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Put back what `agent_tensors` took."""
    agent.load_state_dict(groups["agent"])
    parameters = dict(agent.named_parameters())
    for name, step in state["steps"].items():
        parameter = parameters[name]
        slot = {k: groups["optimizer"][f"{name}:{k}"].to(parameter.device) for k in ("first", "second")}
        optimizer.state[parameter] = {"step": step, **slot}
    for group, updates in zip(optimizer.param_groups, state["updates"], strict=True):
        group["updates"] = updates


def header(cfg: RunConfig, spec: Spec) -> dict[str, Any]:
    """What a checkpoint says about the run it belongs to."""
    return {"config": to_dict(cfg), "spec": spec_to(spec)}


def spec_to(spec: Spec) -> dict[str, Any]:
    """A spec as plain values."""
    groups = {g: {k: _space(s) for k, s in getattr(spec, g).items()} for g in ("obs", "action", "extras")}
    # The order of observation keys decides the order of image channels; JSON objects keep it.
    return {**groups, "hidden": sorted(spec.hidden), "repeat": spec.repeat, "limit": spec.limit}


def spec_from(data: Mapping[str, Any]) -> Spec:
    """The inverse of `spec_to`."""
    groups = {g: {k: Space(**{n: _tuple(v) for n, v in s.items()}) for k, s in data[g].items()} for g in ("obs", "action", "extras")}
    return Spec(**groups, hidden=frozenset(data["hidden"]), repeat=data["repeat"], limit=data["limit"])


def _space(space: Space) -> dict[str, Any]:
    bounds = {k: list(v) if isinstance(v, tuple) else v for k, v in (("low", space.low), ("high", space.high))}
    return {"shape": list(space.shape), "dtype": space.dtype, "classes": space.classes, **bounds}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def pack(tree: Any, path: str = "") -> tuple[Any, dict[str, np.ndarray]]:
    """Split a tree of plain values and arrays into JSON with marks where arrays were, and the arrays by path."""
    if isinstance(tree, np.ndarray):
        return {"__array__": path}, {path: tree}
    if isinstance(tree, np.generic):
        return tree.item(), {}
    if isinstance(tree, Mapping):
        pieces = {str(k): pack(v, f"{path}/{k}") for k, v in tree.items()}
        return {k: p for k, (p, _) in pieces.items()}, {n: a for _, found in pieces.values() for n, a in found.items()}
    if isinstance(tree, list | tuple):
        items = [pack(v, f"{path}/{i}") for i, v in enumerate(tree)]
        return [p for p, _ in items], {n: a for _, found in items for n, a in found.items()}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree, {}
    raise ConfigError(f"state at {path!r} is a {type(tree).__name__}: only numbers, text, arrays, lists and mappings can be saved")


def unpack(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `pack`, tuples as lists."""
    if isinstance(tree, dict):
        return arrays[tree["__array__"]] if set(tree) == {"__array__"} else {k: unpack(v, arrays) for k, v in tree.items()}
    return [unpack(v, arrays) for v in tree] if isinstance(tree, list) else tree


def _fingerprint(path: Path) -> list[Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
