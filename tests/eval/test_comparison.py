"""What a comparison finds in benchmarks whose scores were chosen: numbers, sentences, and a page that needs nothing from outside."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from polydream.core.config import ConfigError
from polydream.core.pictures import Picture, save
from polydream.eval import metrics, plots
from polydream.eval.comparison import Comparison, paired_rows, verdict
from polydream.eval.grid import Cell, Grid
from polydream.eval.page import table
from polydream.eval.summary import write_summary

from .benches import finish, finished, small_grid, small_suite

NAN = float("nan")


def test_training_and_evaluation_scores_are_kept_apart(tmp_path: Path) -> None:
    found = Comparison(finished(tmp_path))
    base = {kind: scores[0] for kind, scores in found.own.items()}
    np.testing.assert_array_equal(base["sample"].values, [[2, 2], [3, 3]])
    np.testing.assert_array_equal(base["mode"].values, [[2.5, 2.5], [3.5, 3.5]])
    np.testing.assert_array_equal(base["train"].values, [[1, 1], [2, 2]])  # the last 400 of 1000 steps
    assert base["train"].what == "training episodes of the last 400 steps"
    assert base["sample"].what == "final evaluation, sampled actions"
    np.testing.assert_allclose(base["sample"].normal, [[0.2, 0.2], [0.3, 0.3]])
    assert found.main == "sample" and found.first.label == "base"


def test_the_window_is_at_most_half_of_the_budget(tmp_path: Path) -> None:
    grid = Grid(small_suite("chain", window=900), ("base",), (0,), tmp_path)
    for cell in grid.cells:
        finish(cell, 5.0)
    found = Comparison(grid)
    assert found.window(grid.suite.tasks[0]) == 500
    assert found.own["train"][0].values.item() == 4.0


def test_aggregates_name_what_they_are_of(tmp_path: Path) -> None:
    found = Comparison(finished(tmp_path))
    iqm = found.own["train"][1].aggregate("IQM")
    assert str(iqm).endswith("(IQM of training episodes of the last 400 steps; 4 runs of 2 tasks)")
    assert iqm.value == pytest.approx(0.55)


def test_the_area_under_training_curves(tmp_path: Path) -> None:
    found = Comparison(finished(tmp_path))
    # 0 in five bins, then 1 (seed 0) and 2 (seed 1): mean 1.5, from the middle of the ramp between 500 and 600
    assert found.area("base", found.suite.tasks[0]) == pytest.approx((50 * 1.5 + 400 * 1.5) / 900)


def test_unfinished_cells_have_no_score(tmp_path: Path) -> None:
    grid = finished(tmp_path)
    grid.cells[0].write(done=False)
    found = Comparison(grid)
    assert np.isnan(found.own["sample"][0].values[0, 0])
    assert "1 of 8 cells have no score" in verdict(found)


def test_the_verdict_of_a_clear_case(tmp_path: Path) -> None:
    text = verdict(Comparison(finished(tmp_path)))
    assert text == (
        "other is better than base: normalised IQM 0.65 [0.60, 0.70] against 0.25 [0.20, 0.30], probability of improvement "
        "1.00 [1.00, 1.00], 4 of 4 pairs of the same seed won (small, final evaluation, sampled actions). "
        "2 seeds and 2 tasks say little about others."
    )


def test_the_verdict_where_nothing_can_be_told(tmp_path: Path) -> None:
    def score(cell: Cell) -> float:
        return 5.0 + (cell.seed if cell.variant == "base" else 1 - cell.seed) + (0.1 if cell.variant == "other" else 0)

    text = verdict(Comparison(finished(tmp_path, score)))
    assert text.startswith("No difference between other and base can be told from these runs")


def test_a_verdict_against_the_first_variant_where_that_is_best(tmp_path: Path) -> None:
    text = verdict(Comparison(finished(tmp_path, lambda cell: 8.0 + cell.seed if cell.variant == "base" else 1.0)))
    assert text.startswith("other is worse than base: normalised IQM 0.10")


def test_verdicts_of_one_and_of_none(tmp_path: Path) -> None:
    assert verdict(Comparison(small_grid(tmp_path / "none"))).startswith("No cell has finished")
    one = verdict(Comparison(finished(tmp_path / "one", variants=("base",), seeds=1)))
    assert one.startswith("base reaches a normalised IQM of 0.20 (one run per task: no interval)")
    same = verdict(Comparison(finished(tmp_path / "same", lambda cell: 4.0)))
    assert same.startswith("other scored exactly as base in every cell")


def test_a_tie_hides_nobody(tmp_path: Path) -> None:
    def score(cell: Cell) -> float:
        return (9.5 if cell.variant == "ensemble" else 2.0) + 0.1 * cell.seed

    text = verdict(Comparison(finished(tmp_path, score, variants=("base", "multitask", "ensemble"))))
    assert text.startswith("ensemble is better than base") and "multitask scored exactly as base in every cell." in text


def test_variants_that_finished_nothing_in_common_are_not_compared(tmp_path: Path) -> None:
    grid = finished(tmp_path)
    for cell in grid.cells:
        if (cell.variant == "base") == (cell.entry.name == "chain"):
            cell.write(done=False)
    assert verdict(Comparison(grid)).startswith("Nothing can be compared: base and other share no seed of a task")


def test_pairs_go_by_seed(tmp_path: Path) -> None:
    ((scores, better, pairs),) = paired_rows(Comparison(finished(tmp_path)))
    assert (scores.label, better.value, pairs.wins, pairs.losses) == ("other", 1.0, 4, 0)
    assert pairs.difference.value == pytest.approx(0.4)
    assert not pairs.difference.known  # the same difference for every seed


def test_published_methods_at_the_same_steps_and_window(tmp_path: Path) -> None:
    suite = small_suite("cartpole_balance", "cheetah_run", window=30_000, scores="dmc_proprio")
    found = Comparison(Grid(suite, ("base",), (0,), tmp_path, {"steps": "500000"}))
    assert [s.label for s in found.published] == [f"{m} (published)" for m in ("dreamerv3", "dmpo", "d4pg", "ppo_fixhp")]
    assert found.published[0].values.shape == (5, 2) and found.published[1].values.shape == (10, 2)
    assert metrics.task_means(found.published[0].values)[1] == pytest.approx(596, abs=30)
    short = Comparison(Grid(suite, ("base",), (0,), tmp_path, {"steps": "50000"})).published[0]
    assert short.what == "published training episodes of the last 25,000 steps"
    assert metrics.task_means(short.values)[0] == pytest.approx(488, abs=60)
    assert Comparison(small_grid(tmp_path)).published == []


def test_the_worst_task(tmp_path: Path) -> None:
    found = Comparison(finished(tmp_path, lambda cell: 1.0 if cell.entry.name == "reach" else 3.0))
    assert found.worst(found.own["sample"][0]) == 1


# ---------------------------------------------------------------------------------------------------- the page


def test_the_page_tells_all_and_loads_nothing(tmp_path: Path) -> None:
    grid = finished(tmp_path)
    path = write_summary(grid)
    text = path.read_text()
    found = Comparison(grid)
    plain = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    assert verdict(found) in plain
    for words in (
        "Performance profiles",
        "Aggregates: training episodes of the last 400 steps",
        "Against base",
        "Learning curves",
        "Speed and memory",
    ):
        assert words in plain
    assert "8 of 8 cells finished" in plain and "vanishing advantages" in plain and "(4 cells)" in plain
    assert plain.count("python -m polydream train --variant") == 4  # seed 0 of two variants and two tasks
    assert not re.findall(r'(?:src|href)="(?!#|data:)', plain)
    assert len(ids := re.findall(r'\bid="([^"]+)"', plain)) == len(set(ids))
    assert re.findall(r'data-plot="([^"]+)"', text) == ids, "every plot has its place"
    assert len(ids) == 3 * 4 + 2 + 2  # four aggregates of three kinds of scores, profiles, improvement, two tasks
    assert re.search(r"<b>2.5 ± 0.71 \(2\) worst</b>", plain)


def test_the_page_of_an_unfinished_and_failed_benchmark(tmp_path: Path) -> None:
    grid = small_grid(tmp_path)
    failed = grid.cells[0]
    failed.write(crashes=2)
    (failed.directory / "cell.log").write_text("Traceback\nRuntimeError: <no> luck\n")
    text = write_summary(grid).read_text()
    assert "No cell has finished" in text and "base chain seed 0: RuntimeError: &lt;no&gt; luck" in text
    finish(grid.cells[1], 3.0)
    assert "other reaches a normalised IQM of 0.30" in write_summary(grid).read_text()


def test_variants_keep_their_colours_and_published_methods_are_grey(tmp_path: Path) -> None:
    found = Comparison(finished(tmp_path, variants=("base", "other", "third")))
    assert len({plots.colour(found, name) for name in found.grid.variants}) == 3
    assert plots.colour(found, "dreamerv3 (published)") not in {plots.colour(found, name) for name in found.grid.variants}


def test_plots_hold_every_variant(tmp_path: Path) -> None:
    found = Comparison(finished(tmp_path))
    iqm = plots.aggregates(found, "sample")["IQM"]["data"]
    assert [trace["y"] for trace in iqm] == [["base"], ["other"]]
    assert [trace["x"][0] for trace in iqm] == pytest.approx([0.25, 0.65])
    assert iqm[0]["error_x"]["array"] == pytest.approx([0.05]) and iqm[0]["error_x"]["arrayminus"] == pytest.approx([0.05])
    shown = [trace for trace in plots.profiles(found, "sample")["data"] if "name" in trace]
    assert [trace["name"] for trace in shown] == ["base", "other"]
    assert shown[0]["y"][0] == 1 and shown[0]["y"][-1] == 0
    curve = plots.curves(found, found.suite.tasks[0])["data"]
    assert [trace["name"] for trace in curve if "name" in trace] == ["base", "other", "score 0"]
    better = plots.improvement(found)
    assert better is not None and better["data"][0]["y"] == ["other > base"] and better["data"][0]["x"] == [1.0]
    assert plots.improvement(Comparison(finished(tmp_path / "one", variants=("base",)))) is None


def test_pictures_and_differences_of_the_cells_are_shown(tmp_path: Path) -> None:
    grid = finished(tmp_path, lambda cell: 1.0 if cell.entry.name == "reach" else 3.0)
    for cell in grid.cells:
        save(cell.directory / "pictures/map-000001000.png", Picture(torch.zeros(2, 2, 3, dtype=torch.uint8), f"Map of {cell.label}."))
        (cell.directory / "config.yaml").write_text(f"variant: {cell.variant}\nagent: {{width: {len(cell.variant)}}}\nsteps: 1000\n")
        (cell.directory / "report.html").write_text("<p>its own</p>")
    text = write_summary(grid).read_text()
    assert re.findall(r"<figcaption>Map of (.*?)\.", text) == ["base reach seed 0", "other reach seed 0"], "the worst task's"
    assert '<th scope="row">agent.width</th><td>4</td><td>5</td>' in text and '<th scope="row">steps</th>' not in text
    links = re.findall(r'<a href="([^"]+)">', text)
    assert len(links) == 8 and all((tmp_path / link).is_file() for link in links)


def test_a_benchmark_is_read_again_from_its_folder(tmp_path: Path) -> None:
    grid = finished(tmp_path)
    grid.save()
    again = Grid.read(tmp_path)
    assert again == grid and [cell.words for cell in again.cells] == [cell.words for cell in grid.cells]
    assert all(cell.state == "done" for cell in again.cells)
    (tmp_path / "benchmark.json").write_text('{"suite": {"tasks": []}}')
    with pytest.raises(ConfigError, match="describes no benchmark"):
        Grid.read(tmp_path)


def test_tables_escape() -> None:
    assert "&lt;b&gt;" in table(["x"], [["<b>"]]) and "<b>" in table(["x"], [["<b>"]], safe=True)
