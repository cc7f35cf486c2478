"""What a command line asks for, found or refused before anything is made: a configuration, a task, a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.config import ConfigError, convert, leaves
from .flags import filled, known_only

if TYPE_CHECKING:
    from .core.run import RunConfig
    from .core.specs import Task

LARGEST = 1 << 20
"""Bytes of the largest config.yaml that is read."""


def resolved(flags: Mapping[str, str | None]) -> RunConfig:
    """The configuration that a command line of `train` asks for."""
    from .core.presets import SELECTIONS, resolve

    if "from" in flags:
        return continued(flags)
    selection = filled({key: value for key, value in flags.items() if key in SELECTIONS})
    if selection.get("task"):
        known_family(selection["task"])
    only_switches_bare(resolve(selection), flags)
    return resolve(selection, as_text(flags, without=SELECTIONS))


def continued(flags: Mapping[str, str | None]) -> RunConfig:
    """The configuration of `train --from RUN --task NEW`: that of the run, for another task, single options on top."""
    from .core.checkpoint import CheckpointError
    from .core.presets import SELECTIONS, overridden
    from .core.transfer import configuration

    given = filled({key: value for key, value in flags.items() if key in (*SELECTIONS, "from")})
    if fixed := [key for key in SELECTIONS if key in given and key not in ("variant", "task", "suite")]:
        raise ConfigError(f"--{fixed[0]} is what --from RUN was trained with and cannot change beside it")
    if ("task" in given) == ("suite" in given):
        raise ConfigError("--from wants one new task: --task FAMILY/NAME or --suite NAME")
    task = given["task"] if "task" in given else f"suite/{given['suite']}"
    known_family(task)
    try:
        cfg = configuration(existing(given["from"]), task, [given.get("variant", "")])
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    if given.get("variant", cfg.variant) != cfg.variant:
        raise ConfigError(f"--variant is what --from RUN was trained with, {cfg.variant}, and cannot change beside it")
    only_switches_bare(cfg, flags)
    return overridden(cfg, as_text(flags, without=(*SELECTIONS, "from")))


def as_text(flags: Mapping[str, str | None], without: Sequence[str] = ()) -> dict[str, str]:
    """Flags as text, a bare flag as true."""
    return {key: "true" if value is None else value for key, value in flags.items() if key not in without}


def only_switches_bare(cfg: RunConfig, flags: Mapping[str, str | None]) -> None:
    """Refuse a bare flag that is no switch: `--dir` alone must not mean a folder named true."""
    present = leaves(cfg)
    for key, value in flags.items():
        if value is None and key in present and not isinstance(present[key], bool):
            raise ConfigError(f"--{key} needs a value")


def known_family(task: str) -> None:
    """Refuse a task whose family is not installed, or whose module or factory does not exist, before anything is made."""
    from .core import registry

    module = task.partition(":")[0] if ":" in task else ""
    try:
        registry.lookup("polydream.tasks", task if module else task.partition("/")[0])
    except KeyError as error:
        raise ConfigError(f"task {task!r}: {error.args[0]}") from None
    except ModuleNotFoundError as error:
        if not error.name or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(f"task {task!r}: no module named {error.name!r} here ({Path.cwd()}) or installed") from None


def made(name: str, make: Callable[[], Task]) -> Task:
    """The task, or an input error where our families do not know the name or an option. What a user's own factory raises stays."""
    try:
        return make()
    except Exception as error:
        ours = isinstance(error, KeyError | ValueError | TypeError) or type(error).__module__ == "gymnasium.error"
        if ":" in name or not ours:
            raise
        raise ConfigError(" ".join(str(error.args[0] if error.args else error).split())) from None


def stored_config(directory: Path, code: Sequence[str] = ()) -> RunConfig:
    """The configuration that a run directory was made with. Raises ConfigError when it has none or a damaged one.

    code: names of the form `module:name` that the command line repeats; a file alone may not choose what is imported.
    """
    import yaml

    path = directory / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{directory} is not a run directory: it has no config.yaml")
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is larger than {LARGEST} bytes: no configuration of ours")
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no configuration")
    from .core.presets import refuse_code, restore

    refuse_code("task", str(data.get("task", "")), code)
    return restore(data, code)


def existing(text: str) -> Path:
    """The absolute path of a file or folder that must be there."""
    path = Path(text)
    if not path.exists():
        raise ConfigError(f"there is no {text}")
    return path.resolve()


def positive(number: int, name: str) -> int:
    """The number, refused where it is below 1."""
    if number < 1:
        raise ConfigError(f"{name} wants a positive number, got {number}")
    return number


def given_options(flags: Mapping[str, str | None], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A command's own options, read by their types; others are refused."""
    known_only(flags, kinds)
    return {key: convert(kinds[key], text, key) for key, text in filled(flags).items()}
