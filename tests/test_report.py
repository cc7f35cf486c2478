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
import torch
import yaml

from polydream.core.log import Log
from polydream.core.pictures import Picture, save
from polydream.eval.account import Run, verdict
from polydream.eval.charts import LIGHT, evaluations, learning_figure, round_up, series, short, small_chart
from polydream.eval.report import curve_png, write_report
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
        self.scripts: list[tuple[dict[str, str | None], str]] = []
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
        if self.stack and self.stack[-1] == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif not self.stack or self.stack[-1] != "style":
            self.text += data


def figures(page: Page) -> dict[str, Any]:
    """Plotly's figures by name."""
    return {str(tag["data-plot"]): json.loads(text) for tag, text in page.scripts if "data-plot" in tag}


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


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_a_figure_of_several_tasks_draws_one_panel_for_each_and_no_empty_one(tasks: int) -> None:
    rows = [{"kind": "episode", "step": 10 * n, "return": float(n)} for n in range(1, 4)]
    figure = learning_figure([(f"task {n}", rows, None) for n in range(tasks)])
    assert [axes.axison for axes in figure.axes] == [True] * tasks + [False] * (len(figure.axes) - tasks)
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes if axes.axison] == [f"task {n}" for n in range(tasks)]


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
    assert all(source.startswith(("#", "data:")) for source in page.sources)
    assert "@import" not in text and not any("src" in tag for tag, _ in page.scripts)
    assert [tag for tag, _ in page.scripts if not tag] == [{}, {}], "Plotly, and what draws with it"
    for expected in (
        "dmc/cartpole_balance, base",
        "so far 50,000 of 60,000 steps",
        "an update was skipped: <script>alert(1)</script> (2 times from step 20,000)",
        "python -m polydream train --seed '7 & 8'",
        "torch 2.13",
        "agent.rssm.deter",
        '["a", "b"]',
        "1 not finite",
        "environment steps, per second80",
        "most",
    ):
        assert expected in page.text, expected
    pictures = [attrs for tag, attrs in page.tags if tag == "svg" or "plot" in str(attrs.get("class"))]
    assert len(pictures) == 1 + 5  # the curve, loss/dyn, loss/policy, grad_norm, fps, ups
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in pictures)
    assert not any(colour in part for _, part in page.scripts[:1] for colour in LIGHT.values())
    names = [trace.get("name") for trace in figures(page)["curve"]["data"]]
    assert names == [
        None, None, "dreamerv3, published, 5 seeds", "training episodes", "their mean per 4,200 steps",
        "evaluation, sampled actions", "evaluation, greedy actions", "random play",
    ]  # fmt: skip
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
    monkeypatch.setattr("polydream.eval.gallery.EMBED", 1)
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


def test_the_curve_holds_the_numbers_of_the_run(run: Path) -> None:
    curve = figures(Page(write_report(run).read_text()))["curve"]
    traces = {trace.get("name"): trace for trace in curve["data"]}
    assert traces["training episodes"]["y"] == list(range(1, 51))
    assert traces["evaluation, sampled actions"]["y"] == [20, 40, 60, 80, 100]
    assert traces["evaluation, sampled actions"]["error_y"]["array"] == [3.0] * 5
    assert traces["random play"]["y"] == [352, 352]
    assert traces["their mean per 4,200 steps"]["x"][-1] == 50_000


def test_the_verdict_compares_with_chance_and_with_what_was_published(tmp_path: Path) -> None:
    def run(*returns: float, task: str = "gym/x", random: tuple[float, ...] = (1.0, 2.0, 3.0)) -> str:
        rows: list[dict[str, Any]] = [
            {"kind": "eval", "step": 0, "mode": "random", "returns": list(random), "return_mean": float(np.mean(random))}
        ]
        rows += [{"kind": "episode", "step": step, "return": 500.0} for step in range(1000, 50_001, 1000)]
        told = {"mode": "sample", "returns": list(returns), "return_mean": float(np.mean(returns)), "return_std": float(np.std(returns))}
        return verdict(Run(tmp_path, {"task": task, "variant": "base"}, [*rows, {"kind": "eval", "step": 50_000, **told}]))

    # means 10 and 2, standard errors 1 / sqrt(3): 8 is more than twice sqrt(2 / 3)
    better = "After 50,000 steps base returns 10.0 ± 0.8 over 3 evaluation episodes with sampled actions, better than random play (2.0)."
    assert run(9.0, 10.0, 11.0) == f"{better} One run of one seed."
    assert ", worse than random play (2.0)" in run(-9.0, -10.0, -11.0)
    assert "which cannot be told from random play (2.0)" in run(2.0, 3.0, 4.0)
    assert "in one evaluation episode with sampled actions, random play 2.0 (too few episodes to compare)" in run(9.0)
    several = [{"kind": "eval", "step": s, "mode": m, "return_mean": 2.0 + s} for s, m in ((0, "random"), (9, "sample"))]
    told = verdict(Run(tmp_path, {"task": "suite/x", "variant": "base"}, several))
    assert "returns 11.0" in told and "random play 2.0" in told and "too few" not in told
    published = run(9.0, 10.0, 11.0, task="dmc/cartpole_balance")
    assert re.search(
        r"Training returns of the last 20,000 steps, 500\.0, lie within the range of the 5 published seeds \(\d+\.\d to ", published
    )
    assert verdict(Run(tmp_path, {}, [])).startswith("No episode has ended yet")


def test_pictures_of_the_variant_are_shown_with_their_captions(run: Path) -> None:
    image = torch.zeros(4, 6, 3, dtype=torch.uint8)
    for step in (100, 200):
        save(run / "pictures" / f"rooms-{step:09d}.png", Picture(image, f"Rooms <seen> at {step}."))
    page = Page(write_report(run).read_text())
    (shown,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert shown["alt"] == "Rooms <seen> at 200. (rooms, step 200)" and str(shown["src"]).startswith("data:image/png;base64,")
    assert "Pictures of base" in page.text and "Rooms <seen> at 200." in page.text


def test_what_was_set_by_hand_is_told(tmp_path: Path) -> None:
    from polydream.core.config import to_dict
    from polydream.core.presets import resolve
    from polydream.eval.defaults import apart, changed

    chosen = {"variant": "goal", "task": "world/fourrooms", "preset": "smoke"}
    plain = json.loads(json.dumps(to_dict(resolve(chosen))))
    own = json.loads(json.dumps(to_dict(resolve(chosen, {"agent.goal.ahead": 3, "seed": 4, "batch": 8}))))
    assert changed(plain) == {}
    assert changed(own) == {"agent.goal.ahead": ("3.0", "15.0"), "batch": ("8", "4")}
    assert changed({**own, "variant": "my_file:Mine"}) is None, "a report imports nobody's file"
    assert apart({"a": plain, "b": own}) == {"agent.goal.ahead": ["15.0", "3.0"], "batch": ["4", "8"]}
    Log(tmp_path, mlflow=False).close()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(own))
    assert "agent.goal.ahead3.015.0" in Page(write_report(tmp_path).read_text()).text


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
