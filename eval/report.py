"""report.html of a run: one file that needs no network and says what was trained, how well, how fast and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..core.log import FILE, seconds
from ..core.progress import span
from . import gallery, page, plots
from .account import Run, verdict
from .charts import figure_png, learning_figure, series, short, small_chart
from .curves import Window, window_mean
from .defaults import changed

LEAVES = ("variant", "task", "profile", "size", "preset", "seed", "steps", "ratio")
SPEEDS = {
    "fps": ("environment steps", "per second", 1.0),
    "ups": ("updates", "per second", 1.0),
    "memory": ("memory of the process", "GB", 1e9),
    "gpu_memory": ("most GPU memory so far", "GB", 1e9),
    "save_pause": ("pause for a checkpoint", "seconds", 1.0),
}
"""Of "speed" rows: name, unit, and how much of the number is one unit."""


def write_report(run_dir: Path) -> Path:
    """Write report.html into a run directory, finished or still training, and return its path.

    Raises FileNotFoundError where the directory holds no metrics.jsonl.
    """
    run = Run.read(Path(run_dir))
    parts = [f'<p class="verdict">{escape(verdict(run))}</p>', _headline(run), _curve(run), _tasks(run), _pictures(run), _films(run)]
    parts += [_warnings(run), _cost(run), _command(run), _changed(run), _charts(run), _config(run)]
    return page.write(run.directory, title=run.title, subtitle=_subtitle(run), parts=parts, footer=_footer(run))


def curve_png(run_dir: Path, path: Path | None = None) -> Path:
    """Write the learning curve, that of each task where there are several, as a picture for documents. Returns its path.

    path: curve.png in the run directory by default.
    """
    run = Run.read(Path(run_dir))
    path = Path(path) if path else run.directory / "curve.png"
    seed = f"seed {run.config.get('seed', '?')}"
    path.write_bytes(figure_png(learning_figure([(f"{each.title}, {seed}", each.rows, each.published) for each in run.parts or [run]])))
    return path


def _subtitle(run: Run) -> str:
    config = run.config
    words = {"size": "{}", "profile": "profile {}", "seed": "seed {}"}
    known = [text.format(config[name]) for name, text in words.items() if name in config]
    if config.get("preset", "none") != "none":
        known.append(f"preset {config['preset']}")
    if run.rows:
        known.append(datetime.fromtimestamp(run.rows[0]["time"], UTC).strftime("begun %Y-%m-%d %H:%M UTC"))
    planned = config.get("steps")
    if planned and run.end < planned:
        known.append(f"so far {run.end:,} of {planned:,} steps")
    return " · ".join(known)


def _headline(run: Run) -> str:
    """The cards: our number, random play, the published one, and what they cost. Each return names its window."""
    window = window_mean(run.rows, run.last)
    cards = [("Return while training", _number(window), _window_text(window))]
    for mode, name in (("sample", "Evaluation, sampled actions"), ("mode", "Evaluation, greedy actions")):
        if row := run.evaluation(mode):
            cards.append((name, f"{row['return_mean']:.1f}", _evaluation_text(row)))
    random = run.evaluation("random")
    cards.append(("Random play", f"{random['return_mean']:.1f}" if random else "–", _evaluation_text(random) if random else "not measured"))
    if run.published is not None:
        theirs = run.published.window_mean(run.end, run.last)
        cards.append(("Published DreamerV3", _number(theirs), f"{_window_text(theirs)}; action repeat 2, train ratio 512"))
    cards.append(("Environment steps", f"{run.end:,}", _effort(run)))
    if "ratio" in run.config:
        cards.append(("Train ratio", short(float(run.config["ratio"])), "replayed steps per decision"))
    if "parameters" in run.facts:
        cards.append(("Parameters", short(float(run.facts["parameters"])), str(run.config.get("size", ""))))
    return page.cards(cards)


def _tasks(run: Run) -> str:
    """A table of the last evaluation of each task, where a run has several."""
    names = sorted({str(row["task"]) for row in run.rows if row["kind"] == "eval" and row.get("task") is not None})
    if not names:
        return ""
    modes = {"sample": "sampled actions", "mode": "greedy actions", "random": "random play"}
    rows = []
    for name in names:
        found = [run.evaluation(mode, name) for mode in modes]
        rows.append([name, *(f"{row['return_mean']:.1f}{_score(row)} {_evaluation_text(row)}" if row else "–" for row in found)])
    totals = [run.evaluation(mode) for mode in modes]
    if any(row and "worst" in row for row in totals):
        rows.append(["mean over tasks", *(f"{row['return_mean']:.1f}{_score(row)}" if row else "–" for row in totals)])
        rows.append(
            ["worst task", *(f"{row['worst']}, score {row['score_worst']:.2f}" if row and "worst" in row else "–" for row in totals)]
        )
    return f"<h2>Last evaluation of each task</h2>{page.table(['task', *modes.values()], rows)}{''.join(map(_part, run.parts))}"


def _part(run: Run) -> str:
    """The learning curve of one task of several."""
    window, text = window_mean(run.rows, run.last), ""
    if run.published is not None:
        text = f"; published, of agents with this task alone, {_number(run.published.window_mean(run.end, run.last))} in the same steps"
    alt = f"Learning curve of {run.title}: return of an episode over {run.end:,} environment steps of its own"
    caption = f"{run.part}: {_number(window)} while training ({_window_text(window)} of its own){text}."
    figure = page.plot(f"curve-{run.part}", plots.learning(run.rows, run.published), alt)
    return f"<figure>{figure}<figcaption>{escape(caption)}</figcaption></figure>"


def _score(row: Mapping[str, Any]) -> str:
    """Normalised score and success of a row that has them."""
    score = f", score {row['score_mean']:.2f}" if "score_mean" in row else ""
    return score + (f", success {row['success_mean']:.0%}" if "score_mean" in row and "success_mean" in row else "")


def _number(window: Window) -> str:
    return f"{window.mean:.1f}" if window.count else "–"


def _window_text(window: Window) -> str:
    where = f"steps {window.start:,} to {window.end:,}"
    if not window.count:
        return f"nothing in {where}"
    seeds = f"{window.seeds} seeds, ± {window.spread:.1f} between them" if window.seeds > 1 else "1 seed"
    return f"mean of {window.count} {window.unit}, {where}, {seeds}"


def _evaluation_text(row: Mapping[str, Any]) -> str:
    number = len(row.get("returns", ()))
    count = f" over {number} episode{'s' * (number > 1)}" if number else ""
    success = f", success {100 * row['success_mean']:.0f}%" if "success_mean" in row else ""
    return f"± {row.get('return_std', 0.0):.1f}{count}{success}, at step {row['step']:,}"


def _effort(run: Run) -> str:
    speeds = series(run.rows, ("speed",))
    text = span(seconds(run.rows))
    for key, unit in (("fps", "steps/s"), ("ups", "updates/s")):
        if key in speeds:
            text += f", {short(float(speeds[key][1][-1]))} {unit}"
    return text


def _curve(run: Run) -> str:
    window = window_mean(run.rows, run.last)
    alt = f"Learning curve of {run.title}: return of an episode over {run.end:,} environment steps, {_number(window)} at the end"
    note = ""
    if run.published is not None:
        note = (
            "<figcaption>Published: mean and range of the seeds in danijar/dreamerv3's score files, training episodes. "
            "One run against several seeds: a difference within the band says little.</figcaption>"
        )
    return f"<h2>Learning curve</h2><figure>{page.plot('curve', plots.learning(run.rows, run.published), alt, 'tall')}{note}</figure>"


def _pictures(run: Run) -> str:
    """What the variant itself drew."""
    items = gallery.pictures(run.directory)
    name = escape(str(run.config.get("variant", "the variant")))
    return f"<h2>Pictures of {name}</h2>{gallery.figures(items, run.directory)}" if items else ""


def _films(run: Run) -> str:
    items = gallery.films(run.directory)
    return f"<h2>Videos and dreams</h2>{gallery.figures(items, run.directory)}" if items else ""


def _cost(run: Run) -> str:
    """Speed and memory: the middle of all rows and the last one, and the most memory that was used."""
    found = series(run.rows, ("speed",))
    rows = []
    for key, (name, unit, scale) in SPEEDS.items():
        if key in found:
            values = found[key][1] / scale
            rows.append([f"{name}, {unit}", *(short(float(v)) for v in (np.median(values), values[-1], values.max()))])
    head = ["", "median", "last", "most"]
    return f"<h2>Speed and memory</h2>{page.table(head, rows)}" if rows else ""


def _charts(run: Run) -> str:
    found = series(run.rows, ("train",))
    losses = {key: value for key, value in found.items() if key.startswith("loss/")}
    others = {key: value for key, value in found.items() if key not in losses}
    groups = {
        "Losses": losses,
        "Training": others,
        "Held-out data": series(run.rows, ("report",)),
        "Speed": series(run.rows, ("speed",)),
    }
    return "\n".join(
        f'<h2>{name}</h2><div class="charts">{"".join(small_chart(key, *value) for key, value in sorted(group.items()))}</div>'
        for name, group in groups.items()
        if group
    )


def _warnings(run: Run) -> str:
    seen: dict[str, list[int]] = {}
    for row in run.rows:
        if row["kind"] == "health":
            seen.setdefault(str(row.get("warning", "")), []).append(row["step"])
    if not seen:
        return '<h2>Warnings</h2><p class="soft">None.</p>'
    items = [
        f"<li>{escape(text)} <span class='soft'>({'step' if len(steps) == 1 else f'{len(steps)} times from step'} {steps[0]:,})</span></li>"
        for text, steps in seen.items()
    ]
    return f'<h2>Warnings</h2><ul class="warnings">{"".join(items)}</ul>'


def _command(run: Run) -> str:
    """The command of the first process where it was recorded, else one made from the leading options of the configuration."""
    command = next((str(row["command"]) for row in run.rows if row["kind"] == "run" and "command" in row), "")
    if not command and run.config:
        options = [part for name in LEAVES if name in run.config for part in (f"--{name}", str(run.config[name]))]
        command = shlex.join(["python", "-m", "polydream", "train", *options])
    if not command:
        return ""
    versions = ", ".join(f"{name} {run.facts[name]}" for name in ("polydream", "git", "torch", "python", "device") if name in run.facts)
    return f"<h2>To do it again</h2><pre>{escape(command)}</pre>" + (f'<p class="soft">{escape(versions)}</p>' if versions else "")


def _changed(run: Run) -> str:
    """What was chosen by hand, beside what the variant says itself."""
    found = changed(run.config) if run.config else None
    if found is None:
        return ""
    shape = next((f"{kind} {run.config[kind]}" for kind in ("preset", "size") if run.config.get(kind, "none") != "none"), "")
    usual = ", ".join(filter(None, [str(run.config.get("variant", "base")), f"profile {run.config.get('profile', 'v3')}", shape]))
    title = f"<h2>Differences from the defaults of {escape(usual)}</h2>"
    if not found:
        return f'{title}<p class="soft">None.</p>'
    return title + page.table(["option", "here", "default"], [[key, *texts] for key, texts in found.items()])


def _config(run: Run) -> str:
    if not run.config:
        return ""
    rows = [[key, value] for key, value in page.leaves(run.config).items()]
    return f"<details><summary>The whole configuration</summary>{page.table(['option', 'value'], rows)}</details>"


def _footer(run: Run) -> str:
    return f"Made from {run.directory.resolve().name}/{FILE} ({len(run.rows):,} rows). Steps are environment steps, action repeat included."
