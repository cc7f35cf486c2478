"""The command line: words, order of application, help, exit codes, and one line for every kind of bad input."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from polydream.__main__ import COMMANDS, main
from polydream.asked import stored_config
from polydream.core.compose import changed_seams
from polydream.core.config import ConfigError, Option, describe, leaves, to_dict
from polydream.core.presets import PRESETS, SIZES, resolve
from polydream.flags import Words, explain, known_only, parse

ROOT = Path(__file__).parent.parent


def polydream(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as from a checkout that is not installed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "polydream", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False, **kwargs)  # type: ignore[call-overload, no-any-return]


# ---------------------------------------------------------------------------------------------------- words


def test_parse() -> None:
    words = parse(["a", "--seed", "3", "--agent.rssm.deter=512", "--env.camera", "-1", "--log.mlflow", "--save-every", "2", "--dir="])
    flags = {"seed": "3", "agent.rssm.deter": "512", "env.camera": "-1", "log.mlflow": None, "save_every": "2", "dir": ""}
    assert words == Words(["a"], flags)
    assert parse(["--show", "x"], switches=("show",)) == Words(["x"], {"show": None})
    assert parse(["--show", "false", "x"], switches=("show",)) == Words(["x"], {"show": "false"})
    assert parse(["--a", "b=c", "--d=e=f"]) == Words([], {"a": "b=c", "d": "e=f"})


@pytest.mark.parametrize(
    ("words", "message"),
    [(["-s", "3"], "unexpected '-s'"), (["--"], "unexpected '--'"), (["--seed", "1", "--seed=2"], "--seed is given twice")],
)
def test_parse_refuses(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(words)


def test_known_only_names_the_nearest() -> None:
    known_only({"steps": 1}, ("steps", "seed"))
    with pytest.raises(ConfigError, match="no option 'stepz'; did you mean 'steps'"):
        known_only({"stepz": 1}, ("steps", "seed"))
    with pytest.raises(ConfigError, match="has none"):
        known_only({"x": 1}, ())


def test_explain_groups_and_wraps() -> None:
    options = [
        Option("seed", "an integer", 0, "", "Everything."),
        Option("a.kind", "one of x, y", "x", "what it is", "A part."),
        Option("a.flag", "true or false", True, "word " * 30, "A part."),
        Option("a.sizes", "integers separated by commas", (1, 2), "", "A part."),
    ]
    lines = explain(options, width=60).splitlines()
    assert lines[:5] == ["Everything.", "  --seed 0", "", "a: A part.", "  --a.kind x     what it is (one of x, y)"]
    assert lines[-1] == "  --a.sizes 1,2"
    assert all(len(line) <= 60 for line in lines)
    assert " ".join(lines).count("word") == 30


# ---------------------------------------------------------------------------------------------------- help and order


def test_overview_names_every_command_and_needs_no_torch() -> None:
    code = "import sys; from polydream.__main__ import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.endswith("False\n")
    assert all(f"polydream {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "train"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h"):
        assert main([name, word]) == 0
        assert len(capsys.readouterr().out) > 60


def test_version_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert main([]) == 2


def test_train_help_shows_every_option_with_comment_and_chosen_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--size", "size12m", "--help"]) == 0
    text = capsys.readouterr().out
    for option in describe(resolve({"size": "size12m"}, {})):
        assert f"  --{option.path} " in text, option.path
        assert " ".join(option.comment.split()[:2]) in " ".join(text.split())
    assert "--agent.rssm.deter 2048" in text
    assert all(name in text for name in [*SIZES, *PRESETS])


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["train", "--show-config", *words]) == 0
    data: dict[str, object] = yaml.safe_load(capsys.readouterr().out)
    return data


def test_order_of_application(capsys: pytest.CaptureFixture[str]) -> None:
    sized = shown(capsys, "--size", "size12m", "--agent.rssm.deter", "32", "--seed=7", "--steps", "1e3", "--eval.modes", "mode")
    assert sized["agent"]["rssm"]["deter"] == 32  # type: ignore[index]
    assert sized["agent"]["rssm"]["hidden"] == 256  # type: ignore[index]
    assert (sized["seed"], sized["steps"], sized["eval"]["modes"]) == (7, 1000, ["mode"])  # type: ignore[index]
    demo = shown(capsys, "--preset", "demo")
    assert (demo["preset"], demo["task"]) == ("demo", "dmc/cartpole_swingup")
    assert shown(capsys, "--preset", "demo", "--task", "world/chain")["task"] == "world/chain"  # the typed word wins
    assert shown(capsys, "--task", "")["task"] == shown(capsys)["task"]  # a launcher's empty default chooses nothing
    assert shown(capsys, "--env.processes")["env"]["processes"] is True  # type: ignore[index]
    assert shown(capsys, "--log.mlflow", "false")["log"]["mlflow"] is False  # type: ignore[index]


def test_shown_config_reads_back_as_the_resolved_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--show-config", "--preset", "smoke", "--agent.optim.eps", "1e-20", "--seed", "3"]) == 0
    Path("config.yaml").write_text(capsys.readouterr().out)
    assert stored_config(Path.cwd()) == resolve({"preset": "smoke"}, {"agent.optim.eps": "1e-20", "seed": "3"})


# ---------------------------------------------------------------------------------------------------- bad input


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a refused command says: one line on stderr, nothing on stdout, exit code 2."""
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), (words, code, out, err)
    assert err.startswith("polydream: ")
    return err


def test_every_option_misspelt_or_misvalued_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    wrong_values = {"an integer": "1.5", "a number": "much", "true or false": "maybe"}
    count = 0
    known = leaves(resolve({}))
    for option in describe(resolve({})):
        if option.path in ("variant", "task", "profile", "size", "preset"):
            continue
        said = refused(capsys, "train", f"--{option.path}zq", "1")
        assert f"{option.path}zq" in said
        assert re.search(r"did you mean '([^']+)'", said)[1] in known  # type: ignore[index]
        value = "zq" if option.wants.startswith(("one of", "integers")) else wrong_values.get(option.wants)
        if value is not None:
            assert refused(capsys, "train", f"--{option.path}", value).startswith(f"polydream: {option.path} wants ")
        if option.wants != "true or false":
            assert refused(capsys, "train", f"--{option.path}") == f"polydream: --{option.path} needs a value\n"
        count += 1 + (value is not None)
    assert count > 200
    assert os.listdir() == []  # no run directory, no tracking store


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["train", "--varaint", "base"], "did you mean 'variant'?"),
        (["train", "--variant", "bsae"], "did you mean base?"),
        (["train", "--variant", "json:JSONDecodr"], "did you mean 'JSONDecoder'?"),
        (["train", "--task", "dcm/x"], "did you mean dmc?"),
        (["train", "--task", "dmc/cartpole_balnce"], "cartpole_balance"),
        (["train", "--task", "gym/CartPol-v1"], "CartPole"),
        (["train", "--task", "world/fourroom"], "fourrooms"),
        (["train", "--task", "no_such_module:make"], "no module named 'no_such_module'"),
        (["train", "--task", "json:loadz"], "did you mean 'load'?"),
        (["train", "--task", "world/fourrooms", "--env.options", "gaol=1"], "did you mean goal?"),
        (["train", "--task", "dmc/cartpole_swingup", "--env.options", "foo=1"], "takes no option 'foo'"),
        (["train", "--task", "gym/CartPole-v1", "--env.options", "foo=1"], "foo"),
        (["train", "--task", "examples.own_env:make", "--env.options", "foo=1"], "takes no option 'foo'"),
        (["train", "--variant", "no_such_module:X"], "variant 'no_such_module:X': no module named 'no_such_module' here"),
        (["check-variant", "no_such_module:X"], "no module named 'no_such_module' here"),
        (["train", "--task", "world/chain", "--device", "cdua"], "no device 'cdua' here, only auto, cpu"),
        (["train", "--task", "world/chain", "--device", "cuda:99"], "no device 'cuda:99' here, only auto, cpu"),
        (["benchmark", "--suite", "worlds", "--steps", "abc"], "steps wants an integer, got 'abc'"),
        (["train", "--size", "size2m"], "did you mean 'size1"),
        (["train", "--preset", "dmo"], "did you mean 'demo'?"),
        (["train", "--profile", "v33"], "did you mean 'v3'?"),
        (["train", "--variant"], "--variant needs a value"),
        (["train", "--dir"], "--dir needs a value"),
        (["train", "base"], "unexpected 'base'"),
        (["train", "--agent", "3"], "agent is a group of options"),
        (["resume"], "wants one run directory, got none"),
        (["resume", "a", "b"], "wants one run directory, got 2: a b"),
        (["resume", "nowhere"], "there is no nowhere"),
        (["resume", "."], "is not a run directory"),
        (["report", "."], "metrics.jsonl"),
        (["report", ".", "--x", "1"], "no option 'x'"),
        (["eval", "."], "no checkpoint"),
        (["eval", ".", "--mode", "modus"], "did you mean 'mode'?"),
        (["eval", ".", "--episode", "3"], "did you mean 'episodes'?"),
        (["eval", ".", "--video", ""], "not the name of a file"),
        (["eval", ".", "--video", "."], "not the name of a file"),
        (["check-env"], "wants one environment, got none"),
        (["check-env", "world/chain", "--steps", "0"], "steps wants a positive number, got 0"),
        (["check-env", "world/chain", "--obs", "pixel"], "did you mean 'pixels'?"),
        (["list", "bsae"], "no variant named 'bsae'; did you mean base?"),
        (["list", "base", "base"], "wants one variant, got 2"),
        (["new-variant", "curious"], "wants a name and a folder"),
        (["new-variant", "Base Agent", "x"], "not 'Base Agent'"),
        (["new-variant", "base", "x"], "is taken"),
        (["check-variant"], "wants one variant, got none"),
        (["check-variant", "base", "--pirce", "1"], "no option 'agent.pirce'"),
        (["check-variant", "base", "--task", "wrold/chain"], "did you mean world?"),
        (["doctor", "--fast"], "no option 'fast'"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, *words)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "text", ["variant: [", "3", "varaint: base", "variant: nope", "agent: {rsm: {}}", "\x00", "seed: !!python/object:os.x"]
)
def test_damaged_config_files_are_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(text)
    refused(capsys, "resume", ".")


def test_a_run_keeps_what_shaped_it(capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(to_dict(resolve({}))))
    assert "cannot change in a run that has begun" in refused(capsys, "resume", ".", "--variant", "goal")
    told = refused(capsys, "resume", ".", "--task", "gym/Acrobot-v1")
    assert f"--task cannot change in a run that has begun; start a new one with `polydream train --from {Path.cwd()}`" in told
    assert "--seed cannot change" in refused(capsys, "resume", ".", "--seed", "3")
    assert "did you mean 'steps'?" in refused(capsys, "resume", ".", "--stepz", "3")


def test_wrong_python_is_told_apart() -> None:
    """An interpreter without the required packages says so, instead of a traceback."""
    done = subprocess.run([sys.executable, "-S", "-m", "polydream", "list"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"polydream: \S+ has no (torch|numpy|tensordict); activate .*\n", done.stderr)


# ---------------------------------------------------------------------------------------------------- commands at work


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for word in ("base", "dmc/NAME", "gym/NAME", "world/NAME", "size12m", "demo", "v3"):
        assert re.search(rf"\b{re.escape(word)}", text), word


def test_changed_seams_are_those_a_class_or_its_parents_define() -> None:
    from polydream.core.agent import Dreamer

    class First(Dreamer):
        def view(self, state):  # type: ignore[no-untyped-def]
            return super().view(state)

        def helper(self) -> int:
            return 1

    class Second(First):
        def rewards(self, dream):  # type: ignore[no-untyped-def]
            return super().rewards(dream)

    assert changed_seams(Dreamer) == []
    assert changed_seams(First) == ["view"]
    assert changed_seams(Second) == ["view", "rewards"]  # in the order of the base class


FAULTY = '''
import gymnasium, numpy as np

class Env(gymnasium.Env):
    """Promises numbers up to 1 and shows 5."""
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.full(2, np.nan, np.float32), 0.0, False, False, {}

def make():
    return Env()
'''


def test_check_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-env", "gym/CartPole-v1", "--steps", "60"]) == 0
    assert "gym/CartPole-v1: fine in 60 steps" in capsys.readouterr().out
    Path("faulty_env.py").write_text(FAULTY)
    assert main(["check-env", "faulty_env:make", "--steps", "20"]) == 1
    assert "problem: " in capsys.readouterr().out


def test_doctor_finds_what_is_there_and_what_is_not() -> None:
    done = polydream("doctor")
    for name in ("python", "packages", "torch", "plugins", "rendering", "mlflow", "disk", "memory", "cores"):
        assert re.search(rf"^(ok|warn|fail) +{name} ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert done.returncode == (1 if re.search("^fail", done.stdout, re.MULTILINE) else 0)


def test_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from polydream import doctor

    monkeypatch.setenv("MUJOCO_GL", "disable")
    assert doctor.rendering().level == "warn"
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    found = doctor.rendering()
    assert found.level == "warn"
    assert "apt-get install" in found.cure
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert doctor.tracking().level == "warn"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////no/such/folder/mlflow.db")
    assert doctor.tracking().level == "fail"
    monkeypatch.setattr(doctor, "_requirements", lambda: ["numpy<1", "no-such-package-at-all>=1"])
    found = doctor.packages()
    assert found.level == "fail"
    assert "no-such-package-at-all is missing" in found.text
    assert "numpy" in found.text


def test_train_evaluate_report_resume() -> None:
    common = ("--log.mlflow", "false", "--eval.video", "false")
    done = polydream("train", "--preset", "smoke", "--task", "world/chain", "--steps", "200", "--dir", "run", *common)
    assert done.returncode == 0, done.stderr
    assert Path("run/report.html").is_file()
    again = polydream("train", "--task", "world/chain", "--dir", "run", *common)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    judged = polydream("eval", "run", "--episodes", "2")
    assert re.match(r"world/chain: return -?\d+\.\d\d, deviation \d+\.\d\d, over 2 episodes of mode sample\n", judged.stdout), judged.stderr
    assert polydream("eval", "run", "--episodes", "2").stdout == judged.stdout  # same seeds, same episodes
    other = polydream("eval", "run", "--task", "world/reach")
    assert other.returncode == 2
    told = "the agent cannot play world/reach: observation 'point' is float32 of shape () there, and missing for the agent"
    assert other.stderr == f"polydream: {told}\n"
    Path("run/report.html").unlink()
    assert polydream("report", "run").stdout.strip() == str(Path("run/report.html").resolve())
    resumed = polydream("resume", "run", "--steps", "300")
    assert resumed.returncode == 0, resumed.stderr
    assert "steps: 200 -> 300" in resumed.stdout


def test_a_stopped_run_saves_and_says_how_to_go_on() -> None:
    words = ["train", "--preset", "smoke", "--task", "world/chain", "--steps", "1e6", "--dir", "run", "--log.mlflow", "false"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "polydream", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 60
    while "loss/" not in (Path("run/metrics.jsonl").read_text() if Path("run/metrics.jsonl").exists() else ""):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "resume" in out
    assert list(Path("run/checkpoints").glob("*/manifest.json"))
