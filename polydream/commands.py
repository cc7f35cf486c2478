"""The commands. Each takes its words and returns an exit code; what a command needs is imported when it runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .core.config import ConfigError, convert, describe, difference, leaves, override, to_dict
from .flags import explain, filled, known_only, none, one, parse

if TYPE_CHECKING:
    from .core.run import RunConfig
    from .core.specs import Task

FIXED = ("variant", "profile", "size", "preset", "dir")
"""Options that a run keeps for life."""


def train(argv: Sequence[str]) -> int:
    """Train an agent. Order: defaults of the variant, --profile, --size, --preset, then single options.

    --show-config prints the resolved configuration as YAML and trains nothing.
    """
    words = parse(argv, switches=("help", "show_config"))
    none(words.positional)
    switches = {name for name in ("help", "show_config") if convert(bool, words.flags.pop(name, "false") or "true", name)}
    cfg = _resolve(words.flags)
    if "help" in switches:
        print(_train_help(cfg))
    elif "show_config" in switches:
        print(_yaml(cfg), end="")
    else:
        _run(cfg)
    return 0


def _run(cfg: RunConfig, resume: Path | None = None) -> None:
    """Train to the end, judged by the room eval. SIGTERM stops like Ctrl-C: with a checkpoint."""
    from .core.checkpoint import CheckpointError
    from .core.launch import make_task
    from .core.train import train as learn
    from .eval.judge import Judge

    _made(cfg.task, partial(make_task, cfg)).close()  # before a run directory or an MLflow run exists
    signal.signal(signal.SIGTERM, _terminate)
    try:
        directory = learn(cfg, Judge(), resume)
    except (FileExistsError, CheckpointError) as error:
        raise ConfigError(str(error)) from None
    print(f"report: {directory / 'report.html'}")


def _made(name: str, make: Callable[[], Task]) -> Task:
    """The task, or an input error where our families do not know the name or an option. What a user's own factory raises stays."""
    try:
        return make()
    except Exception as error:
        ours = isinstance(error, KeyError | ValueError) or type(error).__module__ == "gymnasium.error"
        if ":" in name or not ours:
            raise
        raise ConfigError(" ".join(str(error.args[0] if error.args else error).split())) from None


class Terminated(KeyboardInterrupt):
    """The process was asked to stop by SIGTERM."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def _resolve(flags: Mapping[str, str | None]) -> RunConfig:
    """The configuration that a command line of `train` asks for."""
    from .core.presets import SELECTIONS, resolve

    selection = filled({key: value for key, value in flags.items() if key in SELECTIONS})
    if selection.get("task"):
        _family(selection["task"])
    _only_switches_bare(resolve(selection), flags)
    return resolve(selection, _trues(flags, without=SELECTIONS))


def _trues(flags: Mapping[str, str | None], without: Sequence[str] = ()) -> dict[str, str]:
    """Flags as text, a bare flag as true."""
    return {key: "true" if value is None else value for key, value in flags.items() if key not in without}


def _only_switches_bare(cfg: RunConfig, flags: Mapping[str, str | None]) -> None:
    """Refuse a bare flag that is no switch: `--dir` alone must not mean a folder named true."""
    present = leaves(cfg)
    for key, value in flags.items():
        if value is None and key in present and not isinstance(present[key], bool):
            raise ConfigError(f"--{key} needs a value")


def _family(task: str) -> None:
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


def _yaml(cfg: RunConfig) -> str:
    import yaml

    return str(yaml.safe_dump(to_dict(cfg), sort_keys=False, allow_unicode=True, width=1000))


def _train_help(cfg: RunConfig) -> str:
    from .core import registry

    tables = " ".join(f"{title}: {', '.join(table)}." for title, table in _tables().items())
    head = f"""usage: polydream train [--variant NAME] [--task FAMILY/NAME] [--profile NAME] [--size NAME] [--preset NAME]
       [--any.option VALUE ...]

{" ".join((train.__doc__ or "").split())}
Variants: {", ".join(registry.registered("polydream.variants"))}; or module:Class of your own.
Tasks: {", ".join(f"{f}/NAME" for f in registry.registered("polydream.tasks") if f != "module")}; or module:factory of your own.
{tables}
Values below are those of what is chosen: `polydream train --variant NAME --preset NAME --help` shows that one's.
"""
    return head + "\n" + explain(describe(cfg))


def _tables() -> dict[str, Mapping[str, Any]]:
    from .core.presets import PRESETS, SIZES
    from .core.profiles import PROFILES

    return {"Profiles": PROFILES, "Sizes": SIZES, "Presets": PRESETS}


def resume(argv: Sequence[str]) -> int:
    """Continue a run where it stopped: resume RUN_DIR [--any.option VALUE ...]. Changed options are printed."""
    words = parse(argv)
    directory = _existing(one(words.positional, "run directory"))
    stored = stored_config(directory)
    cfg = override(stored, "dir", str(directory))
    _only_switches_bare(cfg, words.flags)
    for key, text in _trues(words.flags).items():
        if key in FIXED:
            raise ConfigError(f"--{key} cannot change in a run that has begun; start a new one with `polydream train`")
        cfg = override(cfg, key, text)
    for key, (old, new) in difference(stored, cfg).items():
        if key != "dir":
            print(f"{key}: {old} -> {new}")
    _run(cfg, resume=directory)
    return 0


def stored_config(directory: Path) -> RunConfig:
    """The configuration that a run directory was made with. Raises ConfigError when it has none or a damaged one."""
    import yaml

    path = directory / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{directory} is not a run directory: it has no config.yaml")
    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no configuration")
    from .core.presets import restore

    return restore(data)


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise ConfigError(f"there is no {text}")
    return path.resolve()


def evaluate(argv: Sequence[str]) -> int:
    """Let a trained agent act: eval RUN_DIR_OR_CHECKPOINT [--episodes N] [--seed N] [--mode sample|mode] [--task ID] [--video FILE].

    Without options the evaluation of the run itself is repeated: its episodes, its seed.
    """
    words = parse(argv)
    path = _existing(one(words.positional, "run directory or checkpoint"))
    given = _options(words.flags, {"episodes": int, "seed": int, "mode": Literal["sample", "mode"], "task": str, "video": str})
    if "task" in given:
        _family(given["task"])
    from .core import checkpoint, presets
    from .core.launch import make_task
    from .core.player import Player
    from .core.rng import seed_for
    from .eval.judge import Judge

    try:
        path = checkpoint.locate(path)
        run = presets.restore(checkpoint.read(path)[1]["config"])
        agent = checkpoint.load_agent(path).eval()
    except checkpoint.CheckpointError as error:
        raise ConfigError(str(error)) from None
    seed, episodes = given.get("seed", run.seed), _positive(given.get("episodes", run.eval.episodes), "episodes")
    run = replace(run, task=given.get("task", run.task))
    make = partial(make_task, run)
    _made(run.task, make).close()
    player, video = Player(agent, seed_for(seed, "evaluation", 0)), Path(given["video"]) if "video" in given else None
    result = Judge().evaluate(player, make, episodes=episodes, seed=seed, mode=given.get("mode", "sample"), video=video)
    print(f"{run.task}: return {result.return_mean:.2f}, deviation {result.return_std:.2f}, over {episodes} episodes of mode {result.mode}")
    for score, length, ended in zip(result.returns, result.lengths, result.terminated, strict=True):
        print(f"  {score:10.2f} in {length} decisions" + (", terminated" if ended else ""))
    for line in [*([f"video: {result.video}"] if result.video else []), *result.warnings]:
        print(line)
    return 0


def _positive(number: int, name: str) -> int:
    if number < 1:
        raise ConfigError(f"{name} wants a positive number, got {number}")
    return number


def _options(flags: Mapping[str, str | None], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """A command's own options, read by their types; others are refused."""
    known_only(flags, kinds)
    return {key: convert(kinds[key], text, key) for key, text in filled(flags).items()}


def report(argv: Sequence[str]) -> int:
    """Write the report of a run: report RUN_DIR. Prints where it is."""
    words = parse(argv)
    known_only(words.flags, ())
    directory = _existing(one(words.positional, "run directory"))
    from .eval.report import write_report

    try:
        print(write_report(directory))
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from None
    return 0


def catalogue(argv: Sequence[str]) -> int:
    """What there is to choose from: variants with the seams they change, task families, profiles, sizes, presets."""
    words = parse(argv)
    none(words.positional)
    known_only(words.flags, ())
    from .core.registry import registered

    print("variants (--variant NAME, or module:Class of your own)")
    for name, entry in registered("polydream.variants").items():
        cls = entry.load()
        print(f"  {name:12} {_headline(cls)}\n{'':15}changes: {', '.join(changed_seams(cls)) or 'nothing'}")
    print("\ntasks (--task FAMILY/NAME, or module:factory of your own)")
    for name, entry in registered("polydream.tasks").items():
        if name != "module":
            print(f"  {name + '/NAME':12} {_headline(entry.load())}")
    for title, table in _tables().items():
        print(f"\n{title.lower()} (--{title[:-1].lower()} NAME)\n  {', '.join(table)}")
    return 0


def _headline(thing: Any) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]


def changed_seams(cls: type) -> list[str]:
    """Names of the base agent's public methods that a variant, or a class between it and the base, defines anew."""
    from .core.agent import Dreamer

    own = {name for c in cls.__mro__ if c is not Dreamer and issubclass(c, Dreamer) for name in vars(c)}
    return [name for name in vars(Dreamer) if name in own and not name.startswith("_")]


def check_env(argv: Sequence[str]) -> int:
    """Test an environment as the engine will use it: check-env FAMILY/NAME, or module:factory of your own.

    Options: [--steps 200] [--seed 0] [--repeat N] [--obs vector|pixels|both] [--size 64] [--camera N].
    Exit code 1 when something is wrong.
    """
    words = parse(argv)
    kinds = {"steps": int, "seed": int, "repeat": int, "obs": Literal["vector", "pixels", "both"], "size": int, "camera": int}
    options = _options(words.flags, kinds)
    name = one(words.positional, "environment")
    _family(name)
    steps = _positive(options.pop("steps", 200), "steps")
    from .core import registry
    from .tasks.check import check_task

    task = _made(name, partial(registry.task, name, **options))
    try:
        problems = check_task(task, steps=steps)
    finally:
        task.close()
    for kind, spaces in (("observation", task.spec.obs), ("action", task.spec.action)):
        for key, space in spaces.items():
            values = f", classes {space.classes}" if space.discrete else ""
            print(f"{kind} {key}: shape {space.shape}, {space.dtype}{values}")
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{name}: {len(problems)} problems in {steps} steps" if problems else f"{name}: fine in {steps} steps")
    return 1 if problems else 0


def doctor(argv: Sequence[str]) -> int:
    """Look at this machine and say what is missing and what to do. Exit code 1 when something would keep a run from working."""
    words = parse(argv)
    none(words.positional)
    known_only(words.flags, ())
    from .doctor import examine

    return examine()
