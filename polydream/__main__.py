"""The command line: `python -m polydream COMMAND ...`, also installed as `polydream`."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Sequence

from . import __version__

HELP = """polydream {version}: one world model, many dreamers

  polydream train      train an agent: --variant base --task dmc/cartpole_balance --seed 3 --agent.rssm.deter 512
  polydream resume     continue a run where it stopped: polydream resume runs/NAME
  polydream eval       let a trained agent act: polydream eval runs/NAME --episodes 10
  polydream export     write a trained agent's policy as .pt2 and ONNX: polydream export runs/NAME
  polydream report     write report.html of a run or a benchmark: polydream report runs/NAME [--serve]
  polydream list       variants with what they change, task families, profiles, sizes, presets
  polydream check-env  test an environment: polydream check-env gym/CartPole-v1, or my_module:make_env
  polydream check-variant NAME    test a variant: one of ours, NAME+NAME, or my_module:MyAgent
  polydream new-variant NAME DIR  write a package with a variant of your own
  polydream benchmark  compare variants on a suite: polydream benchmark --suite worlds --variants base,goal --seeds 3
  polydream baseline   train a model-free agent: polydream baseline --method sb3-sac --task dmc/cartpole_balance
  polydream doctor     look at this machine and say what is missing

`polydream COMMAND --help` explains a command; `polydream train --help` lists every option."""

COMMANDS = {
    "train": "train",
    "resume": "resume",
    "eval": "evaluate",
    "export": "export",
    "report": "report",
    "list": "catalogue",
    "check-env": "check_env",
    "check-variant": "check_variant",
    "new-variant": "new_variant",
    "benchmark": "benchmark",
    "baseline": "baseline",
    "doctor": "doctor",
}
"""Names on the command line and the functions of `commands` behind them."""

HEAVY = ("train", "resume", "eval", "check-variant")
"""Commands that need torch, whatever they are asked."""

REQUIRED = ("torch", "tensordict", "numpy", "einops", "yaml", "safetensors", "psutil")
"""Modules that every installation has: where one is missing, it is the wrong Python that runs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed or found faults, 2 bad input, 130 Ctrl-C, 143 SIGTERM,
    141 the reader of the output has gone."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.format(version=__version__))
        return 0 if words else 2
    if words[0] == "--version":
        print(__version__)
        return 0
    from .core.config import ConfigError, Failure, nearest

    try:
        if words[0] not in COMMANDS:
            raise ConfigError(f"no command {words[0]!r}; did you mean {nearest(words[0], COMMANDS)[0]!r}?")
        from . import commands

        if argv is None and words[0] in HEAVY:
            _import_quickly()
        command = getattr(commands, COMMANDS[words[0]])
        rest = ["--help" if word == "-h" else word for word in words[1:]]
        if "--help" in rest and words[0] != "train":
            print(inspect.cleandoc(command.__doc__))
            return 0
        return int(command(rest))
    except ConfigError as error:
        print(f"polydream: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"polydream: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        cure = "activate the environment that polydream is installed in (`source .venv/bin/activate`), or make one with `make install`"
        print(f"polydream: {sys.executable} has no {error.name}; {cure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("polydream: interrupted", file=sys.stderr)
        return int(getattr(stop, "code", 130))
    except BrokenPipeError:
        # `polydream list | head`: whoever was reading has left. Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _import_quickly() -> None:
    """Import torch with the garbage collector off and what it made out of its sight: a third of the time to the first error."""
    gc.disable()
    import tensordict  # noqa: F401

    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    sys.exit(main())
