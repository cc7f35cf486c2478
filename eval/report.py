"""report.html of a run: one file that needs no network and says what was trained, how well, how fast and how to do it again."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ..core.log import FILE, read_metrics
from ..core.progress import span
from .charts import evaluations, figure_png, figure_svg, learning_figure, series, short, small_chart
from .curves import LAST, SUITES, Curve, Window, reference, window_mean

EMBED = 3 * 2**20  # bytes of a video up to which it is put into the page itself
LEAVES = ("variant", "task", "profile", "size", "preset", "seed", "steps", "ratio")
KNOWN = {"eval": "An evaluation episode", "openloop": "Open loop: world, model and error from top to bottom"}


@dataclass(frozen=True)
class Run:
    """A run directory as read from disk. config: {} where config.yaml is missing."""

    directory: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]

    @classmethod
    def read(cls, directory: Path) -> Run:
        """Read config.yaml and metrics.jsonl. Raises FileNotFoundError where the directory holds no metrics."""
        import yaml

        directory = Path(directory)
        if not (directory / FILE).is_file():
            raise FileNotFoundError(f"{directory} is no run directory: it has no {FILE}")
        config = directory / "config.yaml"
        return cls(directory, yaml.safe_load(config.read_text()) if config.is_file() else {}, read_metrics(directory / FILE))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the "run" rows tell, later ones winning."""
        facts: dict[str, Any] = {}
        for row in self.rows:
            facts |= row if row["kind"] == "run" else {}
        return facts

    @property
    def end(self) -> int:
        """Last environment step that left a row."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def last(self) -> int:
        """Steps that headline numbers are averaged over: 20 000, or half of a run shorter than 40 000."""
        return min(LAST, max(self.end // 2, 1))

    @property
    def title(self) -> str:
        """Task and variant, or the directory's name."""
        return f"{self.config['task']}, {self.config.get('variant', 'base')}" if "task" in self.config else self.directory.resolve().name

    @cached_property
    def published(self) -> Curve | None:
        """The published curve of the same task and kind of observation, where there is one."""
        family, _, name = str(self.config.get("task", "")).partition("/")
        suite = SUITES.get(self.config.get("env", {}).get("obs", "vector"))
        if family != "dmc" or suite is None:
            return None
        try:
            return reference(name, suite=suite)
        except KeyError:  # most tasks were never published
            return None

    def evaluation(self, mode: str, task: str | None = None) -> Mapping[str, Any] | None:
        """The last "eval" row of a mode, of one task or of no particular one."""
        return next(reversed(evaluations(self.rows, mode, task)), None)


def write_report(run_dir: Path) -> Path:
    """Write report.html into a run directory, finished or still training, and return its path.

    Raises FileNotFoundError where the directory holds no metrics.jsonl.
    """
    run = Run.read(Path(run_dir))
    parts = [_headline(run), _curve(run), _tasks(run), _films(run), _charts(run), _warnings(run), _command(run), _config(run)]
    template = Template((files(__package__) / "data" / "report.html").read_text(encoding="utf-8"))
    text = template.substitute(
        title=escape(run.title), subtitle=escape(_subtitle(run)), body="\n".join(filter(None, parts)), footer=escape(_footer(run))
    )
    path = run.directory / "report.html"
    fresh = path.with_suffix(".html.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
    return path


def curve_png(run_dir: Path, path: Path | None = None) -> Path:
    """Write the learning curve as a picture for documents, curve.png in the run directory by default. Returns its path."""
    run = Run.read(Path(run_dir))
    path = Path(path) if path else run.directory / "curve.png"
    path.write_bytes(figure_png(learning_figure(run.rows, f"{run.title}, seed {run.config.get('seed', '?')}", run.published)))
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
    cards.append(("Environment steps", f"{run.end:,}", _cost(run)))
    if "ratio" in run.config:
        cards.append(("Train ratio", short(float(run.config["ratio"])), "replayed steps per decision"))
    if "parameters" in run.facts:
        cards.append(("Parameters", short(float(run.facts["parameters"])), str(run.config.get("size", ""))))
    items = [
        f'<li class="card{"" if i else " lead"}"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span></li>'
        for i, (name, value, note) in enumerate(cards)
    ]
    return f'<ul class="cards">{"".join(items)}</ul>'


def _tasks(run: Run) -> str:
    """A table of the last evaluation of each task, where a run has several."""
    names = sorted({str(row["task"]) for row in run.rows if row["kind"] == "eval" and row.get("task") is not None})
    if not names:
        return ""
    modes = (("sample", "sampled actions"), ("mode", "greedy actions"), ("random", "random play"))
    body = ""
    for name in names:
        found = [run.evaluation(mode, name) for mode, _ in modes]
        cells = "".join(
            f"<td>{row['return_mean']:.1f}{_score(row)} {escape(_evaluation_text(row))}</td>" if row else "<td>–</td>" for row in found
        )
        body += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    totals = [run.evaluation(mode) for mode, _ in modes]
    if any(row and "worst" in row for row in totals):
        cells = "".join(f"<td>{row['return_mean']:.1f}{_score(row)}</td>" if row else "<td>–</td>" for row in totals)
        body += f'<tr><th scope="row">mean over tasks</th>{cells}</tr>'
        cells = "".join(f"<td>{escape(str(row['worst']))}, score {row['score_worst']:.2f}</td>" if row else "<td>–</td>" for row in totals)
        body += f'<tr><th scope="row">worst task</th>{cells}</tr>'
    head = "".join(f'<th scope="col">{text}</th>' for _, text in modes)
    return f'<h2>Last evaluation of each task</h2><table><tr><th scope="col">task</th>{head}</tr>{body}</table>'


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
    count = f" over {len(row['returns'])} episodes" if "returns" in row else ""
    success = f", success {100 * row['success_mean']:.0f}%" if "success_mean" in row else ""
    return f"± {row.get('return_std', 0.0):.1f}{count}{success}, at step {row['step']:,}"


def _cost(run: Run) -> str:
    speeds = series(run.rows, ("speed",))
    text = span(_trained(run.rows))
    for key, unit in (("fps", "steps/s"), ("ups", "updates/s")):
        if key in speeds:
            text += f", {short(float(speeds[key][1][-1]))} {unit}"
    return text


def _trained(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds between the first and the last row, without the pauses between processes (a "run" row begins each)."""
    pairs = zip(rows, rows[1:], strict=False)
    return sum(max(later["time"] - earlier["time"], 0.0) for earlier, later in pairs if later["kind"] != "run")


def _curve(run: Run) -> str:
    window = window_mean(run.rows, run.last)
    alt = f"Learning curve of {run.title}: return of an episode over {run.end:,} environment steps, {_number(window)} at the end"
    picture = figure_svg(learning_figure(run.rows, "", run.published), alt, "curve")
    note = ""
    if run.published is not None:
        note = (
            "<figcaption>Published: mean and range of the seeds in danijar/dreamerv3's score files, training episodes. "
            "One run against several seeds: a difference within the band says little.</figcaption>"
        )
    return f"<h2>Learning curve</h2><figure>{picture}{note}</figure>"


def _films(run: Run) -> str:
    """The newest video of each kind in videos/, named `<kind>-<step>.mp4` or `<kind>-<step>-<mode or key>.mp4`."""
    newest: dict[tuple[str, str], tuple[int, Path]] = {}
    for path in sorted((run.directory / "videos").glob("*.mp4")):
        match = re.fullmatch(r"(.+?)-(\d+)(?:-(.+))?", path.stem)
        kind, step, label = (match[1], int(match[2]), match[3] or "") if match else (path.stem, 0, "")
        newest[kind, label] = max(newest.get((kind, label), (-1, path)), (step, path))
    figures = [_film(kind, label, step, path) for (kind, label), (step, path) in sorted(newest.items())]
    return f'<h2>Videos</h2><div class="films">{"".join(figures)}</div>' if figures else ""


def _film(kind: str, label: str, step: int, path: Path) -> str:
    words = {"sample": "sampled actions", "mode": "greedy actions"}.get(label, label)
    text = KNOWN.get(kind, kind) + (f", {words}" if words else "") + (f", step {step:,}" if step else "")
    if kind == "openloop":
        text += "; green border: the model sees the frame, red: it dreams"
    small = path.stat().st_size < EMBED
    source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}" if small else f"videos/{path.name}"
    label = escape(text)
    return (
        f'<figure><video controls muted loop playsinline preload="metadata" aria-label="{label}" src="{escape(source)}">'
        f'<a href="videos/{escape(path.name)}">{label}</a></video><figcaption>{label}</figcaption></figure>'
    )


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


def _config(run: Run) -> str:
    if not run.config:
        return ""
    rows = "".join(f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in _leaves(run.config).items())
    return f"<details><summary>Configuration</summary><table>{rows}</table></details>"


def _leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": text}
    return found


def _footer(run: Run) -> str:
    return f"Made from {run.directory.resolve().name}/{FILE} ({len(run.rows):,} rows). Steps are environment steps, action repeat included."
