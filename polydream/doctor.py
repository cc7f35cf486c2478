"""A look at the machine before the first run: what is there, what is missing, and what to do about it in plain words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

GB = 1e9
RENDER_WAIT = 120  # seconds; the first picture of a software renderer compiles shaders


class Finding(NamedTuple):
    """What one check saw. `fail` keeps a run from working, `warn` makes it slower or poorer."""

    level: Literal["ok", "warn", "fail"]
    text: str
    cure: str = ""


def examine() -> int:
    """Run every check and print what it found. Returns 1 when one failed, else 0."""
    levels = []
    for name, check in CHECKS.items():
        finding = _guarded(check)
        levels.append(finding.level)
        print(f"{finding.level:5} {name:10} {finding.text}", flush=True)
        if finding.cure:
            print(f"{'':16} -> {finding.cure}", flush=True)
    print(f"{levels.count('ok')} fine, {levels.count('warn')} to improve, {levels.count('fail')} to repair")
    return 1 if "fail" in levels else 0


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 a broken installation fails in any way, and must not hide what the other checks see
        return Finding("fail", f"{type(error).__name__}: {' '.join(str(error).split())}", "reinstall polydream in a fresh environment")


def python() -> Finding:
    """The interpreter, and that it is an environment of its own."""
    text = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ and not Path("/.dockerenv").exists():
        return Finding("warn", text, "this is the system's Python: python3 -m venv .venv keeps other programs' packages apart")
    return Finding("ok", text)


def packages() -> Finding:
    """Installed versions against what the distribution asks for."""
    from packaging.requirements import Requirement

    wrong = []
    for line in _requirements():
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version} is not {need.specifier}")
    if wrong:
        return Finding("fail", "; ".join(wrong), "pip install -e . in a checkout, else pip install --upgrade polydream")
    shown = ("tensordict", "torchrl", "gymnasium", "dm-control", "mujoco", "mlflow")
    return Finding("ok", ", ".join(f"{name} {metadata.version(name)}" for name in shown))


def _requirements() -> list[str]:
    """What polydream needs: from the checkout's pyproject.toml, else from the installed distribution."""
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    if pyproject.is_file():
        import tomllib

        return list(tomllib.loads(pyproject.read_text())["project"]["dependencies"])
    return metadata.requires("polydream") or []


def torch() -> Finding:
    """PyTorch and the accelerator it sees."""
    import torch

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        free = torch.cuda.mem_get_info(0)[0] / GB
        count = torch.cuda.device_count()
        return Finding("ok", f"{torch.__version__}, {count} x {card.name} with {card.total_memory / GB:.0f} GB, {free:.0f} GB free")
    text = f"{torch.__version__}, no GPU: training runs on the CPU"
    if shutil.which("nvidia-smi") is not None:
        cause = "this torch was built without CUDA" if torch.version.cuda is None else f"CUDA {torch.version.cuda} does not start"
        return Finding("warn", f"{text}, though this machine has one ({cause})", "reinstall torch as https://pytorch.org/get-started says")
    return Finding("ok", text)


def plugins() -> Finding:
    """Every registered variant and task family can be imported."""
    from .core.registry import GROUPS, registered

    names, broken = [], []
    for group in GROUPS:
        for name, entry in registered(group).items():
            try:
                entry.load()
            except (ImportError, AttributeError) as error:
                broken.append(f"{name} ({entry.value}): {' '.join(str(error).split())}")
            else:
                names.append(name)
    if broken:
        return Finding("fail", "; ".join(broken), "update or uninstall the package that offers it")
    return Finding("ok", ", ".join(names))


PICTURE = """
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>')
with mujoco.Renderer(model, 32, 32) as renderer:
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer.update_scene(data)
    image = renderer.render()
assert image.max() > 0, "the picture is black"
"""


def rendering() -> Finding:
    """Which of MuJoCo's ways to draw works. Each is tried in a process of its own: one that does not work may crash."""
    chosen = os.environ.get("MUJOCO_GL", "")
    if chosen.lower() in ("disable", "disabled", "off", "false", "0"):
        return Finding("warn", f"switched off by MUJOCO_GL={chosen}: no videos, no pixel observations", "unset MUJOCO_GL")
    backends = [chosen] if chosen else (["glfw"] if os.environ.get("DISPLAY") or sys.platform == "darwin" else []) + ["egl", "osmesa"]
    reasons = []
    for backend in backends:
        reason = _draw(backend)
        if not reason:
            return Finding("ok", f"MuJoCo draws with {backend}" + (" (MUJOCO_GL)" if chosen else ""))
        reasons.append(f"{backend}: {reason}")
    cure = "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6); training on vectors works without"
    return Finding("warn", f"MuJoCo cannot draw: no videos, no pixel observations ({'; '.join(reasons)})", cure)


def _draw(backend: str) -> str:
    """Draw one picture with a backend in a fresh process. Returns why it failed, or nothing."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        command = [sys.executable, "-c", PICTURE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RENDER_WAIT, check=False)
    except subprocess.TimeoutExpired:
        return f"no picture within {RENDER_WAIT} s"
    if done.returncode == 0:
        return ""
    # The interpreter may complain again while it shuts down: the cause is the last line of the first traceback.
    causes = [line for line in done.stderr.splitlines() if line and not line.startswith((" ", "Traceback", "Exception ignored"))]
    return causes[0][:160] if causes else f"exit code {done.returncode}"


def tracking() -> Finding:
    """MLflow's store, as `log.mlflow` would use it from this folder. Nothing is created."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        return _server(uri)
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        place = path if path.exists() else path.absolute().parent
        if not os.access(place, os.W_OK):
            return Finding("fail", f"{uri}: {place} cannot be written", "set MLFLOW_TRACKING_URI, or train with --log.mlflow false")
        return Finding("ok", f"{uri}, " + ("exists" if path.exists() else "made by the first run"))
    if "://" not in uri or uri.startswith("file:"):
        cure = "unset MLFLOW_TRACKING_URI to use sqlite:///mlflow.db, or set MLFLOW_ALLOW_FILE_STORE=true"
        return Finding("warn", f"{uri} is a folder of files, which MLflow 3 refuses by default", cure)
    return Finding("ok", f"{uri} (not looked into)")


def _server(uri: str) -> Finding:
    cure = "start it, or train all the same: metrics.jsonl keeps every number and is sent later"
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=5) as answer:
            return Finding("ok", f"{uri} answers {answer.status}")
    except HTTPError as error:
        return Finding("ok", f"{uri} answers {error.code}")  # a login page is an answer, too
    except (URLError, TimeoutError, OSError) as error:
        return Finding("warn", f"{uri} does not answer: {error}", cure)


def disk() -> Finding:
    """Room where runs are written."""
    place = next(p for p in (Path("runs").absolute(), Path.cwd()) if p.exists())
    free = shutil.disk_usage(place).free / GB
    text = f"{free:.0f} GB free in {place}"
    if not os.access(place, os.W_OK):
        return Finding("fail", f"{place} cannot be written", "go to a folder of your own, or train with --dir")
    if free < 5:
        return Finding("warn", text, "a replay of one million 64 x 64 pictures takes 12 GB: free some room, or train with --dir elsewhere")
    return Finding("ok", text)


def memory() -> Finding:
    """Memory that a run may use, container limits included."""
    import psutil

    free = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")  # "max" where there is none
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text))
    if free < 3 * GB:
        return Finding("warn", f"{free / GB:.1f} GB free", "close other programs, or choose a smaller --size and --replay.capacity")
    return Finding("ok", f"{free / GB:.1f} GB free")


def cores() -> Finding:
    """CPU cores that this process may use, and what is already running on them."""
    import psutil

    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = psutil.getloadavg()[0]
    if load > count:
        return Finding("warn", f"{count}, load {load:.1f}", "other programs compete for them: a run would be slow")
    return Finding("ok", f"{count}, load {load:.1f}")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": python,
    "packages": packages,
    "torch": torch,
    "plugins": plugins,
    "rendering": rendering,
    "mlflow": tracking,
    "disk": disk,
    "memory": memory,
    "cores": cores,
}
