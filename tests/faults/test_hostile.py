"""Files from strangers: refused in one line, with nothing executed, nothing written elsewhere and no memory taken on their word."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from polydream.asked import stored_config
from polydream.core import checkpoint, durable
from polydream.core.archive import ArchiveError
from polydream.core.config import ConfigError, to_dict
from polydream.core.presets import resolve
from tests.fixtures import VECTOR
from tests.replays import fill, make

from .harness import child, ended, record

FORBIDDEN = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "exec", "compile")


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def tensors(header: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


FILES: dict[str, bytes] = {
    "pickle": pickle.dumps(Evil()),
    "zip with a pickle": b"PK\x03\x04" + pickle.dumps(Evil()),
    "huge header": tensors({}, length=10 * 2**30),
    "header to the end of 64 bits": tensors({}, length=2**64 - 1),
    "huge shape": tensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "shape that overflows": tensors({"w": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}}, bytes(4)),
    "negative offset": tensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4)),
    "negative shape": tensors({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
    "overlapping tensors": tensors(
        {k: {"dtype": "F32", "shape": [2], "data_offsets": [o, o + 8]} for k, o in (("a", 0), ("b", 4))}, bytes(12)
    ),
    "hole": tensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
    "offset beyond the end": tensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(4)),
    "unknown dtype": tensors({"w": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "deep header": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "not text": struct.pack("<Q", 8) + b"\xff" * 8,
    "empty": b"",
    "text": b"hello",
}

TEXTS: dict[str, bytes] = {
    "deep json": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 500_000,
    "too large": b" " * (9 << 20),
    "no mapping": b"[1, 2]",
    "not utf-8": b"\xff\xfe{}",
    "truncated": b'{"config": {',
    "missing keys": b"{}",
    "pickle": pickle.dumps(Evil()),
    "array that is not there": b'{"config": {"__array__": "/nothing"}}',
}


def checkpoint_with(place: Path, name: str, content: bytes) -> Path:
    """A checkpoint in which one file is somebody else's, with a manifest that agrees."""
    cfg = resolve({"preset": "smoke"})
    from polydream.core.agent import Dreamer

    agent = Dreamer(VECTOR, cfg.agent)
    groups, state = checkpoint.agent_tensors(agent, agent.optimizer())
    path = checkpoint.save(place, 1, groups, {**checkpoint.header(cfg, VECTOR), "optimizer": state})
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = durable.write(path / name, content)
    if name != "manifest.json":
        (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def with_config(place: Path, **changes: Any) -> Path:
    cfg = resolve({"preset": "smoke"})
    header = checkpoint.header(cfg, VECTOR)
    header["config"] |= changes.pop("config", {})
    return checkpoint.save(place, 1, {"agent": {"w": torch.zeros(1)}}, {**header, **changes})


def good(place: Path) -> None:
    """What loads, and what is well but for one number."""
    path = checkpoint_with(place, "more.json", b"{}")
    checkpoint.load_agent(path)
    raise ConfigError("fine")


def cases() -> dict[str, Callable[[Path], Any]]:
    """Name -> what loads the hostile file, in a folder of its own."""
    found: dict[str, Callable[[Path], Any]] = {}
    for slot in ("agent", "state"):
        for name, content in FILES.items():
            found[f"{slot}.safetensors: {name}"] = lambda p, s=slot, c=content: checkpoint.load_agent(
                checkpoint_with(p, f"{s}.safetensors", c)
            )  # type: ignore[misc]
    for slot in ("state.json", "manifest.json"):
        for name, content in TEXTS.items():
            found[f"{slot}: {name}"] = lambda p, s=slot, c=content: checkpoint.load_agent(checkpoint_with(p, s, c))  # type: ignore[misc]
    configs: dict[str, Any] = {
        "module as variant": {"variant": "os:system"},
        "module in a combination": {"variant": "base+os:system"},
        "no such variant": {"variant": "../../evil"},
        "huge layer": {"agent": {"rssm": {"deter": 10**12}}},
        "many layers": {"agent": {"encoder": {"layers": 10**9}}},
        "negative size": {"agent": {"rssm": {"deter": -8}}},
        "unknown key": {"agent": {"__class__": "x"}},
        "wrong kind": {"agent": [1]},
    }
    for name, change in configs.items():
        found[f"config: {name}"] = lambda p, c=change: checkpoint.load_agent(with_config(p, config=c))  # type: ignore[misc]
    found["spec: huge space"] = lambda p: checkpoint.load_agent(
        with_config(
            p,
            spec={
                "obs": {"a": {"shape": [10**12]}},
                "action": {"b": {"shape": [1]}},
                "extras": {},
                "hidden": [],
                "repeat": 1,
                "limit": None,
            },
        )
    )
    found["spec: unknown word"] = lambda p: checkpoint.load_agent(with_config(p, spec={"obs": {"a": {"run": "os.system"}}}))
    for name, text in {
        "python tag": "!!python/object/apply:os.system ['touch pwned']",
        "python name": "variant: !!python/name:os.system",
        "deep": "[" * 20_000,
        "anchors": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join('*' + p for _ in range(9))}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "large": "a: " + "x" * (2 << 20),
        "module as task": yaml.safe_dump(to_dict(resolve({"preset": "smoke"})) | {"task": "os:system"}),
        "module as variant": yaml.safe_dump({"variant": "os:system"}),
        "not text": "\x00\x01",
    }.items():
        found[f"config.yaml: {name}"] = lambda p, t=text: config_of(p, t)  # type: ignore[misc]
    for name, content in FILES.items():
        found[f"replay segment: {name}"] = lambda p, c=content: replay_with(p, c)  # type: ignore[misc]
    for name, change in {
        "path outside": {"files": {"order": ["../../order-0.safetensors", [1, "x"]]}},
        "absolute path": {"files": {"order": ["/etc/passwd", [1, "x"]]}},
        "huge counters": {"state": {"first": [0, 0], "end": [2**50, 2**50], "drawn": 0, "queue": [], "highest": 1.0}},
        "negative counters": {"state": {"first": [-50, 0], "end": [10, 10], "drawn": 0, "queue": [], "highest": 1.0}},
        "segments of no steps": {"size": 0},
    }.items():
        found[f"replay index: {name}"] = lambda p, c=change: index_with(p, c)  # type: ignore[misc]
    return found


def config_of(place: Path, text: str) -> None:
    place.mkdir()
    (place / "config.yaml").write_text(text)
    stored_config(place)


def replay_with(place: Path, content: bytes) -> None:
    state = fill(make(2), 30).save(place)
    path = place / "index-0.json"
    index = json.loads(path.read_text())
    index["files"]["1-0-data"] = ["1-0-data-0.safetensors", durable.write(place / "1-0-data-0.safetensors", content)]
    state["saved"][1] = durable.write(path, json.dumps(index).encode())
    make(2).load(place, state)


def index_with(place: Path, change: dict[str, Any]) -> None:
    state = fill(make(2), 30).save(place)
    path = place / "index-0.json"
    state["saved"][1] = durable.write(path, json.dumps(json.loads(path.read_text()) | change).encode())
    make(2).load(place, state)


def test_hostile_files_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    warm = {"one": good}  # imports compile and execute code of ours, once
    found = cases()

    def campaign() -> None:
        heard: list[str] = []
        armed = [False]
        for place, load in {**warm, **found}.items():
            if not armed[0] and place != "one":
                sys.addaudithook(lambda event, args: heard.append(event) if armed[0] and event in FORBIDDEN else None)
                armed[0] = True
            folder = tmp_path / f"case{len(os.listdir(tmp_path))}"
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            verdict = "was loaded"
            try:
                load(folder)
            except (checkpoint.CheckpointError, ConfigError, ArchiveError) as error:
                verdict = "" if "\n" not in str(error) and len(str(error)) < 500 else f"said too much: {error}"
            except BaseException as error:  # noqa: BLE001
                verdict = f"{type(error).__name__}: {error}"
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            if place != "one" and (verdict or heard or grown > 200):
                print(f"{place}: {verdict} {heard} {grown:.0f} MB")
                (tmp_path / "bad.txt").open("a").write(f"{place}: {verdict} {heard} {grown:.0f} MB\n")
            heard.clear()

    assert ended(child(campaign), 600) == 0
    bad = (tmp_path / "bad.txt").read_text().splitlines() if (tmp_path / "bad.txt").exists() else []
    record("hostile files refused", len(found) - len(bad), len(found))
    assert not bad, "\n".join(bad)
    assert not list(tmp_path.rglob("pwned"))
