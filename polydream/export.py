"""The command `export`: a trained agent's acting step as files that need no polydream, each compared with the agent."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .core.config import ConfigError, Failure, convert
from .flags import filled, known_only, one, parse

if TYPE_CHECKING:
    import torch

    from .parity import Act
    from .policystep import PolicyStep

FORMATS = {"pt2": ("pt2",), "onnx": ("onnx",), "both": ("pt2", "onnx")}
INTERFACE = "policy.json"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INSIDE = 3 << 29
"""Bytes of weights up to which they are put into the .onnx file itself, which may have 2 GB; else into .onnx.data beside it."""


def export(argv: Sequence[str]) -> int:
    """Write the acting step of a trained agent: export RUN_DIR_OR_CHECKPOINT [--out DIR] [--format pt2|onnx|both]
    [--mode sample|mode] [--register NAME] [--variant module:Class].

    The files compute (observation, state, is_first, noise) -> (action, state); policy.json names their tensors. Each is compared
    with the agent over several steps, and nothing is kept where they differ. card.md tells what the agent is.
    --register puts the agent into MLflow's model registry under a name.
    """
    words = parse(argv)
    kinds = {"out": str, "format": Literal["pt2", "onnx", "both"], "mode": Literal["sample", "mode"], "register": str, "variant": str}
    known_only(words.flags, kinds)
    given: dict[str, Any] = {key: convert(kinds[key], text, key) for key, text in filled(words.flags).items()}
    text = one(words.positional, "run directory or checkpoint")
    if not Path(text).exists():
        raise ConfigError(f"there is no {text}")
    formats = FORMATS[given.get("format", "both" if all(map(find_spec, PACKAGES)) else "pt2")]
    if "onnx" in formats and (missing := [name for name in PACKAGES if find_spec(name) is None]):
        raise ConfigError(f'ONNX needs {missing[0]}: pip install "polydream[export]", or choose --format pt2')
    code = tuple(filter(None, [given.get("variant", "")]))
    folder, path, step = write(Path(text), given.get("out", ""), formats, given.get("mode", "sample"), code)
    print(folder)
    if "register" in given:
        from .register import register

        print(register(given["register"], path, step, folder, code))
    return 0


def write(source: Path, out: str | Path, formats: Collection[str], mode: str, code: Collection[str] = ()) -> tuple[Path, Path, PolicyStep]:
    """Export the agent of a run directory or checkpoint; returns the folder with the files, the checkpoint, and the step.

    out: the folder, whole or not at all; "" means export/MODE in the run directory. Raises ConfigError for input that cannot be
    used, Failure where the agent cannot be exported or a file differs from it.
    """
    from .core import checkpoint, durable
    from .eval.card import run_of, write_card
    from .policystep import PolicyStep, Unexportable

    try:
        path = checkpoint.locate(source)
        agent = checkpoint.load_agent(path, code=code)
    except checkpoint.CheckpointError as error:
        raise ConfigError(str(error)) from None
    config = checkpoint.read_json(path / "state.json")["config"]
    folder = Path(out or (run_of(path) or Path.cwd()) / "export" / mode).resolve()
    if folder.exists() and not (folder / INTERFACE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something else: choose another --out")
    durable.make_folder(folder.parent)
    work = durable.hidden(folder.parent, folder.name)
    work.mkdir()
    try:
        step = PolicyStep(agent, mode)
        found = _fill(work, step, formats)
        (work / INTERFACE).write_text(json.dumps(interface(step) | _origin(path, config) | {"parity": found}, indent=1) + "\n")
        write_card(path, work)
        if folder.exists():
            durable.discard(folder)
        work.replace(folder)
    except Unexportable as error:
        raise Failure(f"variant {config['variant']} cannot be exported: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder, path, step


def _fill(work: Path, step: PolicyStep, formats: Collection[str]) -> dict[str, Any]:
    """Write the files, read them back, compare them with the agent. Returns what the comparison found."""
    from . import parity

    program, makers = exported(step), {"pt2": to_pt2, "onnx": to_onnx}
    acts: dict[str, Act] = {f"policy.{kind}": makers[kind](program, step, work / f"policy.{kind}") for kind in formats}
    try:
        found = parity.compare(step, acts)
    except parity.Mismatch as error:
        raise Failure(str(error)) from error
    for name, worst in found.items():
        print(f"{name}: largest difference from the agent {worst:.1e} over {parity.STEPS} steps, allowed {parity.TOLERANCE:.0e}")
        if not worst <= parity.TOLERANCE:
            raise Failure(f"{name} differs from the agent by {worst:.1e}, more than {parity.TOLERANCE:.0e}: nothing was written")
    return {"tolerance": parity.TOLERANCE, "steps": parity.STEPS, "rows": list(parity.ROWS), "largest_difference": found}


def exported(step: PolicyStep) -> torch.export.ExportedProgram:
    """The step as a graph for any number of rows. Raises Unexportable where it is none."""
    import torch
    from torch.utils import _pytree as pytree

    from .policystep import Acting, refusing

    arguments = step.example(2)
    ports = (step.observation, step.state, None, step.noise)
    batch = torch.export.Dim("batch", min=1)
    axes = tuple({0: batch} if side is None else {k: {p.axis: batch} for k, p in side.items()} for side in ports)
    with torch.no_grad(), refusing():
        program = torch.export.export(Acting(step), arguments, dynamic_shapes=axes, strict=False)
    assert len(pytree.tree_leaves(arguments)) == len(names(step)[0])
    return program


def names(step: PolicyStep) -> tuple[list[str], list[str]]:
    """Flat names of the inputs and of the outputs, in order; an output may not have an input's name, so states become `next`."""
    inputs = [*(f"obs/{k}" for k in step.observation), *(f"state/{k}" for k in step.state), "is_first", *(f"noise/{k}" for k in step.noise)]
    return inputs, [*(f"action/{k}" for k in step.action), *(f"next/{k}" for k in step.state)]


def to_pt2(program: torch.export.ExportedProgram, step: PolicyStep, path: Path) -> Act:
    """Write policy.pt2 and return what it computes, read back."""
    import torch

    torch.export.save(program, path)
    module = torch.export.load(path).module()
    return lambda *given: module(*given)


def to_onnx(program: torch.export.ExportedProgram, step: PolicyStep, path: Path) -> Act:
    """Write policy.onnx and return what it computes in onnxruntime, read back."""
    import onnxruntime
    import torch

    inputs, outputs = names(step)
    size = sum(v.numel() * v.element_size() for v in program.state_dict.values())
    try:
        with _quiet():
            table: dict[Any, Any] = {torch.ops.aten.where.self: _where}
            made = torch.onnx.export(
                program, input_names=inputs, output_names=outputs, custom_translation_table=table, dynamo=True, verbose=False
            )
        assert made is not None
        made.save(path, external_data=size > INSIDE)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Failure(f"the step cannot be written as ONNX: {' '.join(str(error).split())[:200]}; --format pt2 may do") from error

    def act(observation: Any, state: Any, is_first: Any, noise: Any) -> Any:
        sides = (("obs/", observation), ("state/", state), ("noise/", noise))
        given = {f"{side}{k}": v.numpy() for side, part in sides for k, v in part.items()} | {"is_first": is_first.numpy()}
        found = {k: torch.from_numpy(v) for k, v in zip(outputs, session.run(outputs, given), strict=True)}
        action = {k.removeprefix("action/"): v for k, v in found.items() if k.startswith("action/")}
        return action, {k.removeprefix("next/"): v for k, v in found.items() if k.startswith("next/")}

    return act


def _where(condition: Any, yes: Any, no: Any) -> Any:
    """`torch.where` in ONNX. onnxruntime chooses among numbers only, so flags are combined instead."""
    from onnxscript import opset18 as op

    if yes.dtype.name != "BOOL":
        return op.Where(condition, yes, no)
    return op.Or(op.And(condition, yes), op.And(op.Not(condition), no))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's lines about libraries that are not there and not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def interface(step: PolicyStep) -> dict[str, Any]:
    """What policy.json says of the tensors that go in and out; "batch" stands for the number of rows."""
    kinds = {"uniform": "uniform in [0, 1)", "normal": "standard normal"}
    spaces = step.agent.spec.action
    bounds = {k: {"low": s.low, "high": s.high, "classes": s.classes} for k, s in spaces.items()}
    flag = {"shape": ["batch"], "dtype": "bool"}
    return {
        "mode": step.mode,
        "observation": {k: p.described() for k, p in step.observation.items()},
        "state": {k: p.described() for k, p in step.state.items()},
        "is_first": flag,
        "noise": {k: p.described() | {"draw": kinds[step.kinds[k]]} for k, p in step.noise.items()},
        "action": {k: p.described() | bounds[k] for k, p in step.action.items()},
    }


def _origin(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Which weights these are."""
    from .core.checkpoint import read_json
    from .eval.card import fingerprint

    manifest = read_json(path / "manifest.json")
    told = {"variant": config["variant"], "task": config["task"], "step": manifest["step"], "versions": manifest["versions"]}
    return {"weights": told | {"sha256": fingerprint(path)}}
