"""Checkpoints: a directory each, written beside and renamed into place, verified by hash when read. No pickle anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from . import durable
from .agent import Dreamer
from .config import ConfigError, leaves, to_dict
from .optim import Optimizer
from .presets import restore
from .registry import variant
from .run import RunConfig
from .specs import Member, Space, Spec

SCHEMA = 2
KEEP = 2
NAME = re.compile(r"(\d{12})(\.\d{3})?")
"""Folders of checkpoints: the environment step, and a number where there is more than one of that step."""
PAYLOAD = re.compile(r"[a-z]{1,32}\.(safetensors|json)")
TEXT = 8 << 20
"""Bytes that the JSON of a checkpoint and the header of its tensors may have: they grow when they are read."""
LONG = 1 << 14
"""Characters of a text, such as what an environment remembers, from which on it is kept beside the arrays and not in the JSON."""


class CheckpointError(RuntimeError):
    """A checkpoint is missing or damaged. The message is one line and names it."""


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = KEEP) -> Path:
    """Write `root/<step>`: one safetensors file per group of tensors, state.json, and a manifest with sizes and hashes.

    state: numbers, text, lists and mappings of them, and numpy arrays anywhere inside. Payload is on the disk before the
    manifest is written, the manifest before one rename; of the others all but the newest `keep` - 1 go after the new one was read
    back. A checkpoint that is there is never written over: a second one of a step gets a number.
    Raises CheckpointError where it cannot or could not be read back, OSError where it cannot be written; nothing is lost then.
    """
    durable.make_folder(root)
    final = _vacant(root, step)
    work = durable.hidden(root, final.name)
    work.mkdir()
    try:
        _fill(work, step, tensors, state)
        durable.sync(work)
        os.replace(work, final)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    durable.sync(root)
    if reason := damage(final):
        durable.discard(final)
        raise CheckpointError(f"{final} could not be read back: {reason}")
    others = [path for path in complete(root) if path != final]
    for old in others[: max(len(others) - (keep - 1), 0)]:
        durable.discard(old)
    return final


def _vacant(root: Path, step: int) -> Path:
    """Where the next checkpoint of a step belongs, so that it sorts behind all others of that step."""
    taken = [p.name for p in folders(root) if p.name.startswith(f"{step:012d}")]
    return root / (f"{step:012d}.{int(taken[-1][13:] or 0) + 1:03d}" if taken else f"{step:012d}")


def _fill(work: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    plain, arrays = pack(state)
    groups = {**tensors, "state": {k: torch.from_numpy(np.require(v, requirements="C")) for k, v in arrays.items()}}
    files = {}
    for name, group in groups.items():
        content = save_tensors({k: v.detach().cpu().contiguous() for k, v in group.items()})
        _refuse_large(work, f"the header of {name}.safetensors", int.from_bytes(content[:8], "little"))
        files[f"{name}.safetensors"] = durable.write(work / f"{name}.safetensors", content)
    text = json.dumps(plain, indent=1, allow_nan=True).encode()
    _refuse_large(work, "state.json", len(text))
    files["state.json"] = durable.write(work / "state.json", text)
    versions = {"torch": torch.__version__, "numpy": np.__version__, "polydream": _version()}
    manifest = {"schema": SCHEMA, "step": step, "versions": versions, "files": files}
    durable.write(work / "manifest.json", json.dumps(manifest, indent=1).encode())


def _refuse_large(work: Path, what: str, size: int) -> None:
    if size > TEXT:
        raise CheckpointError(f"{work.parent}: {what} would have {size} bytes, and none above {TEXT} is read again: save arrays, not lists")


def _version() -> str:
    from polydream import __version__

    return __version__


def folders(root: Path) -> list[Path]:
    """Checkpoints below `root`, whole or damaged, oldest first, by scanning; nothing points at the newest."""
    return sorted(p for p in root.iterdir() if NAME.fullmatch(p.name)) if root.is_dir() else []


def complete(root: Path) -> list[Path]:
    """Finished checkpoints below `root`, oldest first: those with a manifest."""
    return [p for p in folders(root) if (p / "manifest.json").is_file()]


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    try:
        manifest = read_json(path / "manifest.json")
    except (OSError, ValueError, RecursionError):
        return "the manifest is missing or unreadable"
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not {"state.json", "state.safetensors"} <= files.keys():
        return "the manifest names no files"
    if manifest.get("schema") != SCHEMA:
        return f"it has format {manifest.get('schema')}, this version reads {SCHEMA}"
    for name, expected in files.items():
        if not PAYLOAD.fullmatch(name):
            return f"the manifest names {name[:80]!r}, which is no file of a checkpoint"
        if reason := durable.unfit(path / name, expected):
            return reason
    return ""


def read_json(path: Path) -> Any:
    """Raises ValueError where the file is too large to be ours or not JSON, OSError, RecursionError."""
    if path.stat().st_size > TEXT:
        raise ValueError(f"{path.name} is larger than {TEXT} bytes")
    return json.loads(path.read_text())


def intact(root: Path, say: Callable[[str], None] = print) -> Iterator[Path]:
    """Checkpoints that verify, newest first; damaged ones are named through `say` and passed over."""
    for path in reversed(folders(root)):
        if reason := damage(path):
            say(f"checkpoint {path} is damaged ({reason}); using the one before")
        else:
            yield path


def newest(root: Path, say: Callable[[str], None] = print) -> Path:
    """The newest checkpoint that verifies. Raises CheckpointError where there is none."""
    for path in intact(root, say):
        return path
    raise CheckpointError(f"no {'intact ' if folders(root) else ''}checkpoint in {root}")


def set_aside(path: Path) -> None:
    """Move a damaged checkpoint out of the way, to `damaged-<name>`, so that it is neither counted nor met again."""
    target = path.with_name(f"damaged-{path.name}")
    if target.exists():
        durable.discard(target)
    os.replace(path, target)


def read(path: Path, device: str = "cpu") -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Tensors by group and state of a checkpoint whose files match their manifest. Only files that the manifest names are read."""
    if reason := damage(path):
        raise CheckpointError(f"{path} cannot be used: {reason}")
    try:
        names = [n.removesuffix(".safetensors") for n in read_json(path / "manifest.json")["files"] if n.endswith(".safetensors")]
        groups = {name: _read_tensors(path / f"{name}.safetensors", device) for name in names}
        arrays = {k: v.cpu().numpy() for k, v in groups.pop("state").items()}
        state = unpack(read_json(path / "state.json"), arrays)
        if not isinstance(state, dict):
            raise ValueError("state.json holds no mapping")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be used: {' '.join(str(error).split())[:200]}") from error
    return groups, state


def _read_tensors(path: Path, device: str) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > TEXT:
            raise ValueError(f"{path.name} declares a header of more than {TEXT} bytes")
    return {k: v.to(device) for k, v in load_tensors(path.read_bytes()).items()}


def locate(path: Path) -> Path:
    """The checkpoint meant by a run directory, its checkpoints folder or a checkpoint itself."""
    if (path / "manifest.json").is_file():
        return path
    for root in (path / "checkpoints", path):
        if folders(root):
            return newest(root)
    raise CheckpointError(f"no checkpoint in {path}: give a run directory that holds checkpoints/, or a checkpoint")


def load_agent(path: Path, device: str = "cpu", code: Collection[str] = ()) -> Dreamer:
    """The trained agent of a run directory or checkpoint, rebuilt from nothing else.

    code: `module:Class` names that the caller vouches for; a checkpoint that names any other is refused, because importing runs
    it. Raises CheckpointError for what is missing or damaged, and where weights and configuration do not belong together.
    """
    path = locate(path)
    groups, state = read(path, device)
    try:
        cfg = restore(state["config"], code)
        spec = spec_from(state["spec"])
        _refuse_mismatch(cfg, spec, groups["agent"])
        agent: Dreamer = variant(cfg.variant)(spec, cfg.agent)
        agent.to(device).load_state_dict(groups["agent"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError | ConfigError):
            raise
        raise CheckpointError(f"{path} cannot be used: {' '.join(str(error).split())[:200]}") from error
    return agent


def _refuse_mismatch(cfg: RunConfig, spec: Spec, tensors: Mapping[str, Tensor]) -> None:
    """Compare what the configuration would make with the tensors that are there, before memory is taken for it."""
    elements = sum(v.numel() for v in tensors.values())
    for name, value in leaves(cfg.agent).items():
        if (
            name.endswith(("layers", "depth", "units", "deter", "hidden", "stoch", "classes"))
            and isinstance(value, int)
            and value > elements
        ):
            raise CheckpointError(f"the checkpoint declares agent.{name}={value} and holds {elements} numbers")
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in variant(cfg.variant)(spec, cfg.agent).state_dict().items()}
    there = {k: tuple(v.shape) for k, v in tensors.items()}
    for key in sorted(wanted.keys() | there.keys()):
        if wanted.get(key) != there.get(key):
            raise CheckpointError(f"weights and configuration differ: {key} is {there.get(key)}, the configuration makes {wanted.get(key)}")


def agent_tensors(agent: Dreamer, optimizer: Optimizer) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Weights, buffers and moments as groups of tensors, and the optimizer's counters as state."""
    optimizer.settle()
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
    plain = {**groups, "hidden": sorted(spec.hidden), "repeat": spec.repeat, "limit": spec.limit}
    return plain | ({"tasks": {name: _member(member) for name, member in spec.tasks.items()}} if spec.tasks else {})


def spec_from(data: Mapping[str, Any]) -> Spec:
    """The inverse of `spec_to`."""
    tasks = {name: Member(**m | _spaces(m, ("obs", "action"))) for name, m in data.get("tasks", {}).items()}
    groups = _spaces(data, ("obs", "action", "extras"))
    return Spec(**groups, hidden=frozenset(data["hidden"]), repeat=data["repeat"], limit=data["limit"], tasks=tasks)


def _spaces(data: Mapping[str, Any], groups: Iterable[str]) -> dict[str, dict[str, Space]]:
    return {g: {k: Space(**{n: _tuple(v) for n, v in s.items()}) for k, s in data[g].items()} for g in groups}


def _member(member: Member) -> dict[str, Any]:
    return vars(member) | {g: {k: _space(s) for k, s in getattr(member, g).items()} for g in ("obs", "action")}


def _space(space: Space) -> dict[str, Any]:
    bounds = {k: list(v) if isinstance(v, tuple) else v for k, v in (("low", space.low), ("high", space.high))}
    return {"shape": list(space.shape), "dtype": space.dtype, "classes": space.classes, **bounds}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def pack(tree: Any, path: str = "") -> tuple[Any, dict[str, np.ndarray]]:
    """Split a tree of plain values and arrays into JSON with marks where arrays and long texts were, and the arrays by path."""
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
    if isinstance(tree, str) and len(tree) > LONG:
        return {"__text__": path}, {path: np.frombuffer(bytearray(tree, "utf-8", "surrogatepass"), np.uint8)}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree, {}
    raise ConfigError(f"state at {path!r} is a {type(tree).__name__}: only numbers, text, arrays, lists and mappings can be saved")


def unpack(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `pack`, tuples as lists."""
    if isinstance(tree, dict) and set(tree) == {"__array__"}:
        return arrays[tree["__array__"]]
    if isinstance(tree, dict) and set(tree) == {"__text__"}:
        return arrays[tree["__text__"]].tobytes().decode("utf-8", "surrogatepass")
    if isinstance(tree, dict):
        return {k: unpack(v, arrays) for k, v in tree.items()}
    return [unpack(v, arrays) for v in tree] if isinstance(tree, list) else tree
