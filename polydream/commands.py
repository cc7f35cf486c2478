"""The commands. Each takes its words and returns an exit code; what a command needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .asked import as_text, existing, given_options, known_family, made, only_switches_bare, positive, resolved, stored_config
from .baseline import baseline as baseline
from .benchmark import benchmark as benchmark
from .core.config import ConfigError, Failure, convert, describe, difference, override, to_dict
from .export import export as export
from .flags import explain, filled, known_only, none, one, parse

if TYPE_CHECKING:
    from .core.run import RunConfig
    from .core.specs import Space, Spec, Task

FIXED = ("variant", "task", "seed", "profile", "size", "preset", "dir", "start", "learn")
"""Options that a run keeps for life."""


def train(argv: Sequence[str]) -> int:
    """Train an agent. Order: defaults of the variant, --profile, --size, --preset, then single options.

    --show-config prints the resolved configuration as YAML and trains nothing.
    """
    words = parse(argv, switches=("help", "show_config"))
    none(words.positional)
    switches = {name for name in ("help", "show_config") if convert(bool, words.flags.pop(name, "false") or "true", name)}
    cfg = resolved(words.flags)
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

    task = made(cfg.task, partial(make_task, cfg))  # before a run directory or an MLflow run exists
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
    from .eval.outcome import outcome

    print(f"{outcome(directory)}report: {directory / 'report.html'}")


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
    from .core.presets import overridden

    words = parse(argv)
    directory = existing(one(words.positional, "run directory"))
    code = [words.flags.get(key) or "" for key in ("variant", "task")]
    stored = stored_config(directory, code)
    cfg = override(stored, "dir", str(directory))
    only_switches_bare(cfg, words.flags)
    asked = as_text(words.flags)
    for key, text in asked.items():
        if key in FIXED and text != str(getattr(stored, key, None)):
            anew = f"`polydream train --from {directory}`" if key == "task" else "`polydream train`"
            raise ConfigError(f"--{key} cannot change in a run that has begun; start a new one with {anew}")
    cfg = overridden(cfg, asked)
    for key, (old, new) in difference(stored, cfg).items():
        if key != "dir":
            print(f"{key}: {old} -> {new}")
    _run(cfg, resume=directory)
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Let a trained agent act: eval RUN_DIR_OR_CHECKPOINT [--episodes N] [--seed N] [--mode sample|mode] [--task ID] [--video FILE].

    Without options the evaluation of the run itself is repeated: its episodes, its seed, the first of its modes.
    """
    words = parse(argv)
    path = existing(one(words.positional, "run directory or checkpoint"))
    kinds = {"episodes": int, "seed": int, "mode": Literal["sample", "mode"], "task": str, "video": str, "variant": str}
    given = given_options(words.flags, kinds)
    if "task" in given:
        known_family(given["task"])
    video = Path(given["video"]) if "video" in given else None
    if video is not None and (not video.name or video.is_dir()):
        raise ConfigError(f"--video {given['video']!r} is not the name of a file, such as play.mp4")
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
    seed, episodes = given.get("seed", run.seed), positive(given.get("episodes", run.eval.episodes), "episodes")
    if "task" not in given:
        presets.refuse_code("task", run.task, ())
    run = replace(run, task=given.get("task", run.task))
    make, mode = partial(make_task, run), given.get("mode", (*run.eval.modes, "sample")[0])
    _same_spaces(made(run.task, make), agent.spec, run.task)
    prepare_processor(run.threads)  # sums depend on how many share them
    player = Player(agent, seed_for(seed, "evaluation", 0))
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


def _same_spaces(task: Task, spec: Spec, name: str) -> None:
    """Close a task, and refuse one that looks or acts otherwise than what an agent knows."""
    task.close()
    for kind, theirs, ours in (("observation", task.spec.obs, spec.obs), ("action", task.spec.action, spec.action)):
        for key in sorted(theirs.keys() | ours.keys()):
            there, known = (_told(spaces.get(key)) for spaces in (theirs, ours))
            if there != known:
                raise ConfigError(f"the agent cannot play {name}: {kind} {key!r} is {there} there, and {known} for the agent")


def _told(space: Space | None) -> str:
    """What of a space decides whether an agent fits it."""
    if space is None:
        return "missing"
    return f"{space.dtype} of shape {space.shape}" + (f", {space.classes} classes" if space.classes else "")


def report(argv: Sequence[str]) -> int:
    """Write the report of a run or of a benchmark: report DIR. Prints where it is, and how a run over several tasks came out.

    --serve      show it at 127.0.0.1 and keep it up with what is still running, until Ctrl-C
    --port N     where (default 8765; 0 takes a free one)
    """
    words = parse(argv, switches=("serve",))
    serve = convert(bool, words.flags.pop("serve", "false") or "true", "serve")
    port = given_options(words.flags, {"port": int}).get("port", 8765)
    directory = existing(one(words.positional, "run directory"))
    from .eval.grid import CONTENTS, Grid
    from .eval.outcome import outcome
    from .eval.report import write_report
    from .eval.summary import write_summary

    def write(path: Path) -> Path:
        return write_summary(Grid.read(path)) if (path / CONTENTS).is_file() else write_report(path)

    try:
        path = write(directory)
        print(f"{'' if (directory / CONTENTS).is_file() else outcome(directory)}{path}")
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
        known_family(task)
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
    options = given_options(words.flags, kinds)
    name = one(words.positional, "environment")
    known_family(name)
    steps = positive(options.pop("steps", 200), "steps")
    from .core import registry
    from .tasks.check import check_task

    task = made(name, partial(registry.task, name, **options))
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
