"""The report of a benchmark: one HTML file that needs no network. Verdict first, then how sure, where, at what cost, and how again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np

from ..core.progress import span
from . import metrics, panels
from .charts import figure_svg, short
from .comparison import AGGREGATES, Comparison, Scores, paired_rows, verdict
from .grid import DONE, FAILED, Grid
from .metrics import Estimate

FILE = "report.html"


def write_summary(grid: Grid) -> Path:
    """Write report.html into a benchmark's directory, finished or not, and return its path."""
    found = Comparison(grid)
    parts = [_verdict(found), _aggregates(found), _profiles(found), _pairs(found), _curves(found), _tasks(found), _cost(found)]
    parts += [_warnings(found), _failures(found), _commands(found)]
    template = Template((files(__package__) / "data" / "report.html").read_text(encoding="utf-8"))
    done = sum(cell.state == DONE for cell in grid.cells)
    subtitle = f"{grid.suite.about} · {_count(len(grid.seeds), 'seed')} · {done} of {len(grid.cells)} cells finished"
    text = template.substitute(
        title=escape(f"{grid.suite.name}: {', '.join(grid.variants)}"),
        subtitle=escape(subtitle),
        body="\n".join(filter(None, parts)),
        footer=escape(f"{grid.suite.note} Intervals: {metrics.CONFIDENCE:.0%} percentile, {metrics.REPS:,} stratified resamples of runs."),
    )
    path = grid.directory / FILE
    fresh = path.with_suffix(".html.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
    return path


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _verdict(found: Comparison) -> str:
    cards = ""
    for scores in found.own.get(found.main, ()) if found.own else ():
        if scores.known:
            iqm = scores.aggregate("IQM")
            note = f"[{iqm.low:.2f}, {iqm.high:.2f}], " if iqm.known else ""
            note += f"IQM of normalised scores, {scores.what}, {_count(iqm.runs, 'run')} of {_count(iqm.tasks, 'task')}"
            cards += f'<li class="card"><span>{escape(scores.label)}</span><b>{iqm.value:.2f}</b><span>{escape(note)}</span></li>'
    return f'<p class="verdict"><b>{escape(verdict(found))}</b></p><ul class="cards">{cards}</ul>'


def _aggregates(found: Comparison) -> str:
    text = ""
    for kind, scores in found.own.items():
        others = found.published if kind == "train" else []
        alt = f"Aggregates of {found.about(kind)}: " + "; ".join(f"{s.label} IQM {s.aggregate('IQM').value:.2f}" for s in scores if s.known)
        picture = figure_svg(panels.aggregates(found, kind, others), alt, f"aggregates-{kind}")
        text += f"<h2>Aggregates: {escape(found.about(kind))}</h2><figure>{picture}</figure>"
        rows = [[s.label, *(_number(s.aggregate(name)) for name in AGGREGATES)] for s in [*scores, *others] if s.known]
        text += table(["", *AGGREGATES], rows)
    return text


def _number(found: Estimate) -> str:
    return f"{found.value:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.known else "")


def _profiles(found: Comparison) -> str:
    if not found.own:
        return ""
    alt = f"Performance profiles: fraction of runs above each normalised score, {found.about(found.main)}"
    picture = figure_svg(panels.profiles(found, found.main), alt, "profiles")
    return f"<h2>Performance profiles: {escape(found.about(found.main))}</h2><figure>{picture}</figure>"


def _pairs(found: Comparison) -> str:
    figure = panels.improvement(found) if found.own and found.first.known else None
    if figure is None:
        return ""
    rows = []
    for scores, better, pairs in paired_rows(found):
        p = "–" if np.isnan(pairs.p) else f"{pairs.p:.3g}"
        record = f"{pairs.wins} / {pairs.ties} / {pairs.losses}"
        rows.append([scores.label, _number(better), _number(pairs.difference), record, p])
    alt = "; ".join(f"{s.label} beats {found.first.label} with probability {b.value:.2f}" for s, b, _ in paired_rows(found))
    head = ["", "probability of improvement", "mean difference by seed", "pairs won / tied / lost", "Wilcoxon p"]
    title = f"Against {found.first.label}: {found.about(found.main)}"
    return f"<h2>{escape(title)}</h2><figure>{figure_svg(figure, alt, 'improvement')}</figure>{table(head, rows)}"


def _curves(found: Comparison) -> str:
    alt = f"Training returns over environment steps on {', '.join(entry.name for entry in found.suite.tasks)}"
    note = "Mean and range of the seeds; grey: published methods where there are any, dotted: the score that counts as 0."
    picture = figure_svg(panels.curves(found), alt, "curves")
    return f"<h2>Learning curves: training episodes</h2><figure>{picture}<figcaption>{note}</figcaption></figure>"


def _tasks(found: Comparison) -> str:
    """Raw scores by task: mean, deviation between seeds, the worst task of each variant in bold."""
    text = ""
    for kind, scores in found.own.items():
        shown = [s for s in [*scores, *(found.published if kind == "train" else [])] if s.known]
        worst = {s.label: found.worst(s) for s in shown}
        rows = []
        for column, entry in enumerate(found.suite.tasks):
            cells = [(_cell(s, column), worst[s.label] == column) for s in shown]
            marked = [f"<b>{value} worst</b>" if bad else value for value, bad in cells]
            area = [short(a) if np.isfinite(a := found.area(v, entry)) else "–" for v in found.grid.variants] if kind == "train" else []
            rows.append([escape(f"{entry.name}, {found.steps(entry):,} steps"), *marked, *area])
        names = [escape(s.label) for s in shown] + [escape(f"{v}: area") for v in found.grid.variants if kind == "train"]
        text += f"<h3>{escape(found.about(kind))}</h3>{table(['task', *names], rows, safe=True)}"
    note = "Returns as the task gives them: mean over seeds ± deviation between them (sample). Area: mean return over all of training."
    return f'<h2>Tasks</h2><p class="soft">{note} Worst: lowest normalised score.</p>{text}' if text else ""


def _cell(scores: Scores, column: int) -> str:
    values = scores.values[:, column]
    values = values[np.isfinite(values)]
    if not values.size:
        return "–"
    return f"{values.mean():.4g}" + (f" ± {values.std(ddof=1):.2g}" if values.size > 1 else "") + f" ({values.size})"


def _cost(found: Comparison) -> str:
    rows = []
    for variant in found.grid.variants:
        cells = [cell for cell in found.grid.cells if cell.variant == variant and cell.state == DONE]
        if not cells:
            continue
        seconds = [float(cell.read().get("seconds", 0.0)) for cell in cells]
        facts: dict[str, float] = {}
        for row in cells[0].rows():
            facts |= {"parameters": float(row["parameters"])} if row["kind"] == "run" and "parameters" in row else {}
        speeds = [cell.steps / max(spent, 1e-9) for cell, spent in zip(cells, seconds, strict=True)]
        parameters = short(facts["parameters"]) if facts else "–"
        rows.append([variant, span(float(np.mean(seconds))), span(float(np.sum(seconds))), short(float(np.median(speeds))), parameters])
    head = ["", "time of a cell, mean", "time, all cells", "environment steps per second of it, median", "parameters"]
    return f"<h2>Cost</h2>{table(head, rows)}" if rows else ""


def _warnings(found: Comparison) -> str:
    seen: Counter[tuple[str, str]] = Counter()
    for cell in found.grid.cells:
        texts = {str(row.get("warning", "")).partition(":")[0] for row in cell.rows() if row["kind"] == "health"}
        seen.update((cell.variant, text) for text in texts)
    items = [f"<li>{escape(v)}: {escape(text)} <span class='soft'>({_count(n, 'cell')})</span></li>" for (v, text), n in seen.most_common()]
    return f'<h2>Health warnings</h2><ul class="warnings">{"".join(items)}</ul>' if items else ""


def _failures(found: Comparison) -> str:
    failed = [cell for cell in found.grid.cells if cell.state == FAILED]
    items = [f"<li>{escape(cell.label)}: {escape(cell.reason)}</li>" for cell in failed]
    return f'<h2>Failed cells</h2><ul class="warnings">{"".join(items)}</ul>' if items else ""


def _commands(found: Comparison) -> str:
    """What makes the first seed of every variant and task again; other seeds differ in the number only."""
    seed = found.grid.seeds[0]
    lines = [cell.shown for cell in found.grid.cells if cell.seed == seed]
    return f"<h2>To do it again</h2><p class='soft'>Seed {seed}; others differ in --seed.</p><pre>{escape(chr(10).join(lines))}</pre>"


def table(head: Iterable[str], rows: Sequence[Sequence[str]], safe: bool = False) -> str:
    """An HTML table whose first column names the rows. safe: the texts are HTML already."""
    clean = str if safe else escape
    top = "".join(f'<th scope="col">{clean(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{clean(row[0])}</th>' + "".join(f"<td>{clean(text)}</td>" for text in row[1:]) + "</tr>" for row in rows
    )
    return f'<div class="wide" style="overflow-x:auto"><table><tr>{top}</tr>{body}</table></div>'
