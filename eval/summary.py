"""The report of a benchmark: one HTML file that needs no network. Verdict first, then how sure, where, at what cost, and how again."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path

import numpy as np

from ..core.progress import span
from . import gallery, metrics, page, plots
from .charts import series, short
from .comparison import AGGREGATES, Comparison, Scores, paired_rows, verdict
from .defaults import apart
from .grid import DONE, FAILED, Cell, Grid
from .metrics import Estimate
from .page import table


def write_summary(grid: Grid) -> Path:
    """Write report.html into a benchmark's directory, finished or not, and return its path."""
    found = Comparison(grid)
    parts = [_verdict(found), _aggregates(found), _profiles(found), _pairs(found), _curves(found), _tasks(found), _cost(found)]
    parts += [_warnings(found), _failures(found), _sights(found), _differences(found), _commands(found), _runs(found)]
    done = sum(cell.state == DONE for cell in grid.cells)
    subtitle = f"{grid.suite.about} · {_count(len(grid.seeds), 'seed')} · {done} of {len(grid.cells)} cells finished"
    footer = f"{grid.suite.note} Intervals: {metrics.CONFIDENCE:.0%} percentile, {metrics.REPS:,} stratified resamples of runs."
    title = f"{grid.suite.name}: {', '.join(grid.variants)}"
    return page.write(grid.directory, title=title, subtitle=subtitle, parts=parts, footer=footer)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _verdict(found: Comparison) -> str:
    items = []
    for scores in found.own.get(found.main, ()) if found.own else ():
        if scores.known:
            iqm = scores.aggregate("IQM")
            note = f"[{iqm.low:.2f}, {iqm.high:.2f}], " if iqm.known else ""
            note += f"IQM of normalised scores, {scores.what}, {_count(iqm.runs, 'run')} of {_count(iqm.tasks, 'task')}"
            items.append((scores.label, f"{iqm.value:.2f}", note))
    return f'<p class="verdict">{escape(verdict(found))}</p>{page.cards(items, lead=False)}'


def _aggregates(found: Comparison) -> str:
    text = ""
    for kind, scores in found.own.items():
        others = found.published if kind == "train" else []
        shown = [s for s in [*scores, *others] if s.known]
        panels = ""
        for name, figure in plots.aggregates(found, kind, others).items():
            alt = f"{name} of {found.about(kind)}: " + "; ".join(f"{s.label} {s.aggregate(name).value:.2f}" for s in shown)
            panels += f"<figure>{page.plot('-'.join(['aggregates', kind, *name.split()]), figure, alt)}</figure>"
        rows = [[s.label, *(_number(s.aggregate(name)) for name in AGGREGATES)] for s in shown]
        text += f'<h2>Aggregates: {escape(found.about(kind))}</h2><div class="grid four">{panels}</div>{table(["", *AGGREGATES], rows)}'
    return text


def _number(found: Estimate) -> str:
    return f"{found.value:.3f}" + (f" [{found.low:.3f}, {found.high:.3f}]" if found.known else "")


def _profiles(found: Comparison) -> str:
    if not found.own:
        return ""
    alt = f"Performance profiles: fraction of runs above each normalised score, {found.about(found.main)}"
    picture = page.plot("profiles", plots.profiles(found, found.main), alt, "tall")
    return f"<h2>Performance profiles: {escape(found.about(found.main))}</h2><figure>{picture}</figure>"


def _pairs(found: Comparison) -> str:
    figure = plots.improvement(found) if found.own and found.first.known else None
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
    return f"<h2>{escape(title)}</h2><figure>{page.plot('improvement', figure, alt)}</figure>{table(head, rows)}"


def _curves(found: Comparison) -> str:
    """One plot for each task under a legend that they share."""
    chips = [f'<li><i style="border-color: {plots.colour(found, name)}"></i>{escape(name)}</li>' for name in found.grid.variants]
    panels = ""
    for number, entry in enumerate(found.suite.tasks):
        alt = f"Training returns on {entry.name} over {found.steps(entry):,} environment steps"
        picture = page.plot(f"curves-{number}", plots.curves(found, entry), alt, "small-plot")
        panels += f"<figure><h3>{escape(entry.name)}</h3>{picture}</figure>"
    note = "Mean and range of the seeds. Grey: published methods where there are any; dotted: the score that counts as 0."
    legend = f'<ul class="legend">{"".join(chips)}</ul>'
    return f'<h2>Learning curves: training episodes</h2><p class="soft">{note}</p>{legend}<div class="grid">{panels}</div>'


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
        speeds = [cell.steps / max(spent, 1e-9) for cell, spent in zip(cells, seconds, strict=True)]
        facts: dict[str, float] = {}
        for row in cells[0].rows():
            facts |= {"parameters": float(row["parameters"])} if row["kind"] == "run" and "parameters" in row else {}
        used = [series(cell.rows(), ("speed",)).get("memory") for cell in cells]
        memory = max((float(values.max()) for _, values in filter(None, used)), default=float("nan"))
        size = f"{memory / 1e9:.2f} GB" if np.isfinite(memory) else "–"
        told = [span(float(np.mean(seconds))), span(float(np.sum(seconds))), short(float(np.median(speeds)))]
        rows.append([variant, *told, size, short(facts["parameters"]) if facts else "–"])
    head = ["", "time of a cell, mean", "time, all cells", "environment steps per second of it, median", "most memory", "parameters"]
    return f"<h2>Speed and memory</h2>{table(head, rows)}" if rows else ""


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


def _sights(found: Comparison) -> str:
    """Films, dreams and the variant's own pictures of one finished cell of each variant: the first seed on its worst task."""
    text = ""
    for variant in found.grid.variants:
        cell = _shown(found, variant)
        items = [*gallery.pictures(cell.directory), *gallery.films(cell.directory)] if cell else []
        if cell and items:
            text += f"<h3>{escape(cell.label)}</h3>{gallery.figures(items, found.grid.directory)}"
    note = "Of each variant one run: that of the first seed on the task where it scored worst."
    return f'<h2>Pictures, videos and dreams</h2><p class="soft">{note}</p>{text}' if text else ""


def _shown(found: Comparison, variant: str) -> Cell | None:
    """The cell whose pictures stand for a variant."""
    cells = [cell for cell in found.grid.cells if cell.variant == variant and cell.state == DONE]
    scores = next((s for s in found.own.get(found.main, ()) if s.label == variant), None) if found.own else None
    worst = found.worst(scores) if scores is not None and scores.known else -1
    ranked = sorted(cells, key=lambda cell: (worst < 0 or cell.entry != found.suite.tasks[worst], found.grid.seeds.index(cell.seed)))
    return next(iter(ranked), None)


def _differences(found: Comparison) -> str:
    """Options in which the variants' runs of the first task and seed differ: each brings its own knobs and defaults."""
    entry = found.suite.tasks[0]
    configs = {v: config for v in found.grid.variants if (config := found.grid.of(v, entry)[0].config())}
    rows = [[key, *texts] for key, texts in apart(configs).items()] if len(configs) > 1 else []
    title = f"Configurations: what differs between variants on {entry.name}"
    return f"<details><summary>{escape(title)}</summary>{table(['option', *configs], rows)}</details>" if rows else ""


def _runs(found: Comparison) -> str:
    """Every cell with its state; those that have a report of their own lead there."""
    rows = []
    for cell in found.grid.cells:
        path = cell.directory / page.FILE
        place = escape(path.relative_to(found.grid.directory).as_posix())
        name = f'<a href="{place}">{escape(cell.label)}</a>' if path.is_file() else escape(cell.label)
        glance = cell.glance()
        rows.append([name, cell.state, f"{glance.step:,} of {cell.steps:,}", "–" if glance.score is None else short(glance.score)])
    head = ["run", "state", "steps", "last training returns"]
    return f"<details><summary>All runs</summary>{table(head, rows, safe=True)}</details>"


def _commands(found: Comparison) -> str:
    """What makes the first seed of every variant and task again; other seeds differ in the number only."""
    seed = found.grid.seeds[0]
    lines = [cell.shown for cell in found.grid.cells if cell.seed == seed]
    return f"<h2>To do it again</h2><p class='soft'>Seed {seed}; others differ in --seed.</p><pre>{escape(chr(10).join(lines))}</pre>"
