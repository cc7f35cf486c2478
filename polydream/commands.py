"""The commands. Each takes its words and returns an exit code; what a command needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .baseline import baseline as baseline
from .benchmark import benchmark as benchmark
from .core.config import ConfigError, Failure, convert, describe, difference, leaves, override, to_dict
from .core.signals import Stopped
from .export import export as export
from .flags import explain, filled, known_only, none, one, parse

if TYPE_CHECKING:
    from .core.run import RunConfig
    from .core.specs import Task

FIXED = ("variant", "profile", "size", "preset", "dir")
"""Options that a run keeps for life."""

LARGEST = 1 << 20
"""Bytes of the largest config.yaml that is read."""


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
    """Train to the end, judged by the room eval. SIGTERM and Ctrl-C stop it with a checkpoint."""
    from .core import registry
    from .core.launch import make_task
    from .core.promises import require

    task = _made(cfg.task, partial(make_task, cfg))  # before a run directory or an MLflow run exists
    task.close()
    require(registry.variant(cfg.variant), task.spec)
    from .core.checkpoint import CheckpointError
    from .core.guard import NonFinite
    from .core.signals import Signals
    from .core.train import train as learn
    from .core.worker import EnvError
    from .eval.judge import Judge

    try:
        with Signals(cfg.grace) as signals:
            directory = learn(cfg, Judge(), resume, signals)
    except (FileExistsError, CheckpointError) as error:
        raise ConfigError(str(error)) from None
    except (EnvError, NonFinite, OSError) as error:
        raise Failure(str(error)) from error
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


def _terminate(number: int, frame: Any) -> None:
    raise Stopped(number)


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
Variants: {", ".join(registry.registered("polydream.variants"))}; several joined by +; or module:Class of your own.
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
    code = [words.flags.get(key) or "" for key in ("variant", "task")]
    stored = stored_config(directory, code)
    cfg = override(stored, "dir", str(directory))
    _only_switches_bare(cfg, words.flags)
    for key, text in _trues(words.flags).items():
        if key in FIXED and text != getattr(stored, key, None):
            raise ConfigError(f"--{key} cannot change in a run that has begun; start a new one with `polydream train`")
        cfg = override(cfg, key, text)
    for key, (old, new) in difference(stored, cfg).items():
        if key != "dir":
            print(f"{key}: {old} -> {new}")
    _run(cfg, resume=directory)
    return 0


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


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise ConfigError(f"there is no {text}")
    return path.resolve()


def evaluate(argv: Sequence[str]) -> int:
    """Let a trained agent act: eval RUN_DIR_OR_CHECKPOINT [--episodes N] [--seed N] [--mode sample|mode] [--task ID] [--video FILE].

    Without options the evaluation of the run itself is repeated: its episodes, its seed, the first of its modes.
    """
    words = parse(argv)
    path = _existing(one(words.positional, "run directory or checkpoint"))
    kinds = {"episodes": int, "seed": int, "mode": Literal["sample", "mode"], "task": str, "video": str, "variant": str}
    given = _options(words.flags, kinds)
    if "task" in given:
        _family(given["task"])
    from .core import checkpoint, presets
    from .core.launch import make_task, prepare_processor
    from .core.player import Player
    from .core.rng import seed_for
    from .eval.judge import Judge

    try:
        path = checkpoint.locate(path)
        code = (given.get("variant", ""),)
        agent = checkpoint.load_agent(path, code=code).eval()
        run = presets.restore(checkpoint.read(path)[1]["config"], code)
    except checkpoint.CheckpointError as error:
        raise ConfigError(str(error)) from None
    seed, episodes = given.get("seed", run.seed), _positive(given.get("episodes", run.eval.episodes), "episodes")
    if "task" not in given:
        presets.refuse_code("task", run.task, ())
    run = replace(run, task=given.get("task", run.task))
    make, mode = partial(make_task, run), given.get("mode", (*run.eval.modes, "sample")[0])
    _made(run.task, make).close()
    prepare_processor(run.threads)  # sums depend on how many share them
    player, video = Player(agent, seed_for(seed, "evaluation", 0)), Path(given["video"]) if "video" in given else None
    result = Judge().evaluate(player, make, episodes=episodes, seed=seed, mode=mode, video=video)
    print(f"{run.task}: return {result.return_mean:.2f}, deviation {result.return_std:.2f}, over {episodes} episodes of mode {result.mode}")
    for score, length, ended in zip(result.returns, result.lengths, result.terminated, strict=True):
        print(f"  {score:10.2f} in {length} decisions" + (", terminated" if ended else ""))
    for row in result.rows() if len(result.rows()) > 1 else ():
        shown = ", ".join(f"{k} {v:.3g}" for k, v in row.items() if k in ("return_mean", "success_mean", "score_mean", "score_worst"))
        print(f"  {row.get('task', 'mean over tasks')}: {shown}")
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
    """Write the report of a run or of a benchmark: report DIR. Prints where it is.

    --serve      show it at 127.0.0.1 and keep it up with what is still running, until Ctrl-C
    --port N     where (default 8765; 0 takes a free one)
    """
    words = parse(argv, switches=("serve",))
    serve = convert(bool, words.flags.pop("serve", "false") or "true", "serve")
    port = _options(words.flags, {"port": int}).get("port", 8765)
    directory = _existing(one(words.positional, "run directory"))
    from .eval.grid import CONTENTS, Grid
    from .eval.report import write_report
    from .eval.summary import write_summary

    def write(path: Path) -> Path:
        return write_summary(Grid.read(path)) if (path / CONTENTS).is_file() else write_report(path)

    try:
        print(write(directory))
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from None
    if serve:
        _serve(directory, write, port)
    return 0


def _serve(directory: Path, write: Callable[[Path], Path], port: int) -> None:
    """Show a report until Ctrl-C."""
    from .eval.serve import Server

    try:
        server = Server(directory, write, port)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port {port} cannot be had ({error}): choose another --port, or 0 for a free one") from None
    with server:
        print(f"{server.address} follows {directory}; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def catalogue(argv: Sequence[str]) -> int:
    """What there is to choose from: list, or list NAME for one variant (or NAME+NAME) with its knobs explained.

    Of every variant: the seams it changes, the knobs it adds, what it needs from a task, what it combines with. Then task
    families, profiles, sizes and presets.
    """
    words = parse(argv)
    known_only(words.flags, ())
    from .catalogue import tables, variants

    if words.positional:
        print(variants([one(words.positional, "variant")], full=True))
    else:
        print(f"{variants()}\n\n{tables(_tables())}")
    return 0


def new_variant(argv: Sequence[str]) -> int:
    """Write a package with a variant of your own: new-variant NAME DIR. It holds the class, its test, and what registers it."""
    words = parse(argv)
    known_only(words.flags, ())
    if len(words.positional) != 2:
        raise ConfigError(
            f"wants a name and a folder: polydream new-variant curious ../curious; got {' '.join(words.positional) or 'none'}"
        )
    from .scaffold import write_package

    name, folder = words.positional[0], Path(words.positional[1])
    for path in write_package(name, folder):
        print(path)
    print(f"next: python -m pip install --no-deps --editable {folder}; python -m pytest {folder}; polydream train --variant {name}")
    return 0


def check_variant(argv: Sequence[str]) -> int:
    """Test a variant as the engine will use it: check-variant NAME, NAME+NAME, or module:Class of your own.

    Options: [--task FAMILY/NAME] where to try it, [--any.knob VALUE ...] of its Config to set first. Exit code 1 when something
    is wrong.
    """
    words = parse(argv)
    name, flags = one(words.positional, "variant"), filled(words.flags)
    task = flags.pop("task", "")
    if task:
        _family(task)
    from .core.presets import resolve
    from .eval.contract import check_variant as examine

    resolve({"variant": name}, {f"agent.{key}": text for key, text in flags.items()})  # refuses what does not exist
    problems = examine(name, task=task, settings=flags)
    for problem in problems:
        print(f"problem: {problem}")
    print(f"{name}: {len(problems)} problems" if problems else f"{name}: fine")
    return 1 if problems else 0


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
