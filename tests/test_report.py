"""A report is made from a real run directory and read again: numbers, pictures, videos, and nothing from outside."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from polydream.core.log import Log
from polydream.eval.charts import LIGHT, evaluations, round_up, series, short, small_chart
from polydream.eval.report import Run, curve_png, write_report
from polydream.eval.video import openloop_video, save_video

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects ids, sources, texts and labels."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(str(found["id"]))
        self.sources += [str(found[k]) for k in ("src", "href", "xlink:href", "poster") if k in found]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.stack or self.stack[-1] != "style":
            self.text += data


def cards(page_text: str) -> dict[str, tuple[str, str]]:
    found = re.findall(r'<li class="card[^"]*"><span>(.*?)</span><b>(.*?)</b><span>(.*?)</span>', page_text)
    return {name: (value, note) for name, value, note in found}


def make_run(directory: Path, *, config: dict[str, Any] | None = None) -> Path:
    """50 episodes of 1000 steps, the return of each its number."""
    with Log(directory, mlflow=False) as log:
        log.scalars(0, {"command": "python -m polydream train --seed '7 & 8'", "parameters": 640_867, "torch": "2.13"}, "run")
        log.scalars(0, {"mode": "random", "return_mean": 352.0, "return_std": 4.0, "returns": [1.0, 2.0]}, "eval")
        for k in range(1, 51):
            step = 1000 * k
            log.episode(step, float(k), 500)
            norm = math.nan if k == 20 else float(k)
            log.scalars(step, {"loss/dyn": 100.0 / k, "loss/policy": -0.5, "grad_norm": norm, "note": "text"})
            log.scalars(step, {"fps": 80.0, "ups": 40.0}, "speed")
            if k % 10 == 0:
                log.scalars(
                    step, {"mode": "sample", "return_mean": 2.0 * k, "return_std": 3.0, "returns": [1.0] * 4, "success_mean": 0.75}, "eval"
                )
                log.scalars(step, {"mode": "mode", "return_mean": 3.0 * k, "return_std": 3.0, "returns": [1.0] * 4}, "eval")
        log.health(20_000, "an update was skipped: <script>alert(1)</script>")
        log.health(21_000, "an update was skipped: <script>alert(1)</script>")
    config = config or {"variant": "base", "task": "dmc/cartpole_balance", "size": "size1m", "seed": 7, "steps": 60_000, "ratio": 512.0}
    (directory / "config.yaml").write_text(yaml.safe_dump({**config, "agent": {"rssm": {"deter": 512}, "modes": ["a", "b"]}}))
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_headline_by_hand(run: Path) -> None:
    found = cards(write_report(run).read_text())
    # episodes 31 to 50 ended in the last 20 000 steps
    assert found["Return while training"] == ("40.5", "mean of 20 episodes, steps 30,000 to 50,000, 1 seed")
    assert found["Evaluation, sampled actions"] == ("100.0", "± 3.0 over 4 episodes, success 75%, at step 50,000")
    assert found["Evaluation, greedy actions"] == ("150.0", "± 3.0 over 4 episodes, at step 50,000")
    assert found["Random play"][0] == "352.0"
    assert found["Published DreamerV3"][0] == "488.0"
    assert found["Published DreamerV3"][1].startswith("mean of 10 points, steps 30,000 to 50,000, 5 seeds")
    assert found["Environment steps"][0] == "50,000"
    assert "80 steps/s, 40 updates/s" in found["Environment steps"][1]
    assert found["Train ratio"][0] == "512"
    assert found["Parameters"] == ("641k", "size1m")


def test_page_is_whole_alone_and_says_everything(run: Path) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(source.startswith(("#", "data:video/mp4;base64,")) for source in page.sources)
    assert "@import" not in text
    assert "<script" not in text
    for expected in (
        "dmc/cartpole_balance, base",
        "so far 50,000 of 60,000 steps",
        "an update was skipped: <script>alert(1)</script> (2 times from step 20,000)",
        "python -m polydream train --seed '7 & 8'",
        "torch 2.13",
        "agent.rssm.deter",
        '["a", "b"]',
        "1 not finite",
        "evaluation, greedy actions",
        "random play",
        "dreamerv3, published, 5 seeds",
    ):
        assert expected in page.text, expected
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) == 1 + 5  # the curve, loss/dyn, loss/policy, grad_norm, fps, ups
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in pictures)
    assert not any(colour in part for part in re.findall(r"<svg.*?</svg>", text, re.DOTALL) for colour in LIGHT.values())
    declared = set(re.findall(r"(--\w+):", text))
    assert set(re.findall(r"var\((--\w+)\)", text)) <= declared
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    assert all(f"--{name}:" in light and f"--{name}:" in dark for name in LIGHT)


def test_writing_again_gives_the_same_page(run: Path) -> None:
    assert write_report(run).read_text() == write_report(run).read_text()
    assert sorted(p.name for p in run.iterdir()) == ["config.yaml", "metrics.jsonl", "report.html"]


def test_newest_videos_are_embedded_and_large_ones_linked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    for name in ("eval-000009000-sample", "eval-000050000-sample", "eval-000050000-mode", "openloop-50000-front"):
        save_video(run / f"videos/{name}.mp4", frames)
    clip = np.random.default_rng(0).random((2, 4, 16, 16, 3))
    save_video(run / "videos/openloop-50000.mp4", openloop_video(clip, clip, 2))
    page = Page(write_report(run).read_text())
    films = [attrs for tag, attrs in page.tags if tag == "video"]
    labels = [str(attrs["aria-label"]) for attrs in films]
    assert labels == [
        "An evaluation episode, greedy actions, step 50,000",
        "An evaluation episode, sampled actions, step 50,000",
        "Open loop: world, model and error from top to bottom, step 50,000; green border: the model sees the frame, red: it dreams",
        "Open loop: world, model and error from top to bottom, front, step 50,000; green border: the model sees the frame, red: it dreams",
    ]
    assert all(str(attrs["src"]).startswith("data:video/mp4;base64,") for attrs in films)
    monkeypatch.setattr("polydream.eval.report.EMBED", 1)
    films = [attrs for tag, attrs in Page(write_report(run).read_text()).tags if tag == "video"]
    assert films[0]["src"] == "videos/eval-000050000-mode.mp4"


def test_a_run_that_has_barely_begun(tmp_path: Path) -> None:
    Log(tmp_path / "empty", mlflow=False).close()
    page = Page(write_report(tmp_path / "empty").read_text())
    assert "empty" in page.text
    assert "nothing in steps 0 to 0" in page.text
    assert "None." in page.text
    with Log(tmp_path / "short", mlflow=False) as log:
        log.episode(100, 5.0, 100)
    found = cards(write_report(tmp_path / "short").read_text())
    assert found["Return while training"] == ("5.0", "mean of 1 episodes, steps 50 to 100, 1 seed")
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        write_report(tmp_path)


def test_published_curve_is_that_of_the_observations(tmp_path: Path) -> None:
    def published(task: str, obs: str) -> tuple[int, ...] | None:
        curve = Run(tmp_path, {"task": task, "env": {"obs": obs}}, []).published
        return None if curve is None else curve.scores.shape

    assert published("dmc/cartpole_balance", "vector") == (5, 49)
    assert published("dmc/cartpole_balance", "pixels") == (10, 100)
    assert published("dmc/cartpole_balance", "both") is None
    assert published("dmc/dog_run", "vector") is None
    assert published("gym/CartPole-v1", "vector") is None


def test_several_tasks_get_a_table(run: Path) -> None:
    with Log(run, mlflow=False) as log:
        for task, score in (("b", 1.0), ("a", 2.0)):
            log.scalars(50_000, {"task": task, "mode": "sample", "return_mean": score, "returns": [score]}, "eval")
    text = write_report(run).read_text()
    table = text[text.index("Last evaluation of each task") :]
    assert re.findall(r'<th scope="row">(\w)</th><td>([\d.]+)', table)[:2] == [("a", "2.0"), ("b", "1.0")]
    assert cards(text)["Evaluation, sampled actions"][0] == "100.0"  # the mean over tasks stays the headline
    assert [row["return_mean"] for row in evaluations(Run.read(run).rows, "sample", "a")] == [2.0]


def test_without_a_recorded_command_one_is_made(tmp_path: Path) -> None:
    Log(tmp_path / "run", mlflow=False).close()
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump({"variant": "base", "task": "gym/My Env", "seed": 3, "eval": {"every": 1}}))
    assert (
        "python -m polydream train --variant base --task 'gym/My Env' --seed 3\n"
        in Page(write_report(tmp_path / "run").read_text()).text + "\n"
    )


def test_curve_png_is_a_picture(run: Path) -> None:
    from PIL import Image

    path = curve_png(run)
    assert path == run / "curve.png"
    with Image.open(path) as image:
        assert image.size == (1720, 860)
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for name in ("train", "published", "eval", "greedy", "ink"):
        wanted = [int(LIGHT[name][i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels.astype(int) - wanted).max(1) < 12).sum() > 50, name
    assert curve_png(run, run / "other.png").read_bytes() == path.read_bytes()


def test_small_chart_by_hand() -> None:
    svg = small_chart("loss/<x>", np.array([0.0, 10.0, 20.0]), np.array([4.0, 2.0, 0.0]))
    assert '<polyline points="0.0,3.0 100.0,30.0 200.0,57.0"/>' in svg
    assert 'aria-label="loss/&lt;x&gt;: from 4 to 0, between 0 and 4"' in svg
    gap = small_chart("x", np.arange(4.0), np.array([1.0, math.nan, 2.0, math.inf]))
    assert re.findall(r'points="(.*?)"', gap) == ["0.0,57.0 1.0,57.0", "133.3,3.0 134.3,3.0"]
    assert "2 not finite" in gap
    assert "not finite" in small_chart("x", np.arange(2.0), np.full(2, math.nan))
    assert 'points="0.0,30.0 200.0,30.0"' in small_chart("x", np.arange(2.0), np.full(2, 7.0))
    many = small_chart("x", np.arange(10_000.0), np.sin(np.arange(10_000.0)))
    assert many.count(",") < 300


def test_series_and_numbers() -> None:
    rows = [{"step": s, "time": 0.0, "kind": "train", "a": s * 2, "text": "x", "list": [1]} for s in (1, 2)]
    rows += [{"step": 3, "time": 0.0, "kind": "train", "once": 1.0}, {"step": 3, "time": 0.0, "kind": "eval", "a": 9}]
    found = series(json.loads(json.dumps(rows)), ("train",))
    assert list(found) == ["a"]
    assert found["a"][0].tolist() == [1.0, 2.0]
    assert found["a"][1].tolist() == [2.0, 4.0]
    numbers = (0.0, 1.234, -12.34, 640_867.0, 1.5e6, 2e9, 0.00012, 9999.0, math.nan)
    assert [short(x) for x in numbers] == ["0", "1.23", "-12.3", "641k", "1.5M", "2G", "1.2e-04", "9999", "nan"]
    assert [round_up(x) for x in (0.2, 1.0, 99.5, 4166.7, 50_000, 123_456)] == [1, 1, 100, 4200, 50_000, 130_000]
