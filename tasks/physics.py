"""MuJoCo beneath dm_control and Gymnasium: which OpenGL draws, and a simulation saved and put back to the bit."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

INSTALL = (
    "no OpenGL is available for rendering: apt-get install libegl1 libgl1-mesa-dri (MUJOCO_GL=egl, with or without a GPU) "
    "or libosmesa6 (MUJOCO_GL=osmesa), then start again"
)
DISABLED = ("disable", "disabled", "off", "false", "0")

# Arrays of MjData whose length follows the contacts of the moment; a forward pass rebuilds them.
ARENA = ("efc_", "iefc_", "efm_", "island_", "map_")
# Arrays of MjModel that hold meshes and textures: megabytes that no task changes while it runs.
ASSETS = ("tex_", "mesh_", "skin_", "bvh_", "oct_", "names", "paths", "text_")


def choose_gl() -> None:
    """Set MUJOCO_GL where nobody did and there is no display: EGL if it starts, else OSMesa if installed, else no rendering.

    Must run before mujoco or dm_control is imported for the first time; both read the variable then. States need no OpenGL,
    so nothing fails here: rendering does, with a message that says what to install.
    """
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    os.environ["MUJOCO_GL"] = "egl" if _egl_starts() else "osmesa" if ctypes.util.find_library("OSMesa") else "disable"


def _egl_starts() -> bool:
    """True if one of EGL's devices (a GPU, or Mesa's software renderer) can be initialised."""
    name = ctypes.util.find_library("EGL")
    if name is None:
        return False
    egl = ctypes.CDLL(name)
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query, display = egl.eglGetProcAddress(b"eglQueryDevicesEXT"), egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query or not display:
        return False
    pointer = ctypes.c_void_p
    devices, count = (pointer * 16)(), ctypes.c_int(0)
    if not ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, pointer)(query)(16, ctypes.addressof(devices), ctypes.addressof(count)):
        return False
    open_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    platform_device = 0x313F  # EGL_PLATFORM_DEVICE_EXT
    handles = (open_display(platform_device, devices[i], None) for i in range(count.value))
    return any(handle and egl.eglInitialize(handle, None, None) for handle in handles)


def require_gl() -> None:
    """Raises RuntimeError, saying what to install, where rendering has been switched off."""
    if os.environ.get("MUJOCO_GL", "").lower() in DISABLED:
        raise RuntimeError(f"pictures are wanted but MUJOCO_GL={os.environ['MUJOCO_GL']}; if you did not set it, {INSTALL}")


def draw(render: Callable[[], np.ndarray]) -> np.ndarray:
    """The picture that `render` returns. Failures of OpenGL become one RuntimeError that says what to install."""
    require_gl()
    try:
        return render()
    except (RuntimeError, ImportError, AttributeError, OSError) as error:
        raise RuntimeError(
            f"rendering with MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')} failed ({error}); if OpenGL is missing: {INSTALL}"
        ) from error


def tunable(model: Any) -> dict[str, np.ndarray]:
    """Copies of the arrays of an MjModel that a task may change at run time, and of its options as `opt/<name>`."""
    arrays = {name: value.copy() for name, value in _arrays(model).items() if not name.startswith(ASSETS)}
    return arrays | {f"opt/{name}": value.copy() for name, value in _options(model).items()}


def save(model: Any, data: Any, made: dict[str, np.ndarray]) -> dict[str, Any]:
    """Everything the simulation will do from here on, as {"integration", "data": {...}, "model": {...}}.

    made: `tunable(model)` of the moment the model was built. Only what changed since then is saved.
    """
    import mujoco

    signature = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    integration = np.empty(mujoco.mj_stateSize(model, signature), np.float64)
    mujoco.mj_getState(model, data, integration, signature)
    changed = {name: value for name, value in tunable(model).items() if not np.array_equal(value, made[name], equal_nan=True)}
    kept = {name: value.copy() for name, value in _arrays(data).items() if not name.startswith(ARENA)}
    return {"integration": integration, "data": kept, "model": changed}


def restore(model: Any, data: Any, made: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Put back what `save` returned; the next steps repeat bit for bit."""
    import mujoco

    for name, value in {**made, **state["model"]}.items():
        if name.startswith("opt/"):
            _set_option(model, name[4:], value)
        elif not np.array_equal(present := getattr(model, name), value, equal_nan=True):
            present[...] = value
    signature = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_setState(model, data, np.asarray(state["integration"], np.float64), signature)
    mujoco.mj_forward(model, data)  # rebuilds contacts and constraints, and moves the solver's warm start: set that again
    mujoco.mj_setState(model, data, np.asarray(state["integration"], np.float64), signature)
    # Environments that do not run a forward pass after each step read poses that lag one physics step behind: exactly those.
    for name, value in state["data"].items():
        getattr(data, name)[...] = value


def _arrays(owner: Any) -> dict[str, np.ndarray]:
    names = (name for name in dir(owner) if not name.startswith("_"))
    return {name: value for name in names if isinstance(value := getattr(owner, name), np.ndarray) and value.dtype.kind in "biuf"}


def _options(model: Any) -> dict[str, np.ndarray]:
    values = {name: getattr(model.opt, name) for name in dir(model.opt) if not name.startswith("_")}
    return {name: np.asarray(value) for name, value in values.items() if isinstance(value, (bool, int, float, np.ndarray))}


def _set_option(model: Any, name: str, value: np.ndarray) -> None:
    present = getattr(model.opt, name)
    if isinstance(present, np.ndarray):
        present[...] = value
    else:
        setattr(model.opt, name, type(present)(np.asarray(value).item()))
