"""The model card of a trained agent: what it was trained on, for how long, how well it does and by what measure. Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..core import checkpoint, durable
from ..core.log import FILE, read_metrics
from .curves import LAST, window_mean

CARD = "card.md"
SHOWN = ("variant", "task", "seed", "profile", "size", "preset")
MODES = {"sample": "sampled actions", "mode": "most likely actions", "random": "uniformly random actions"}


def write_card(path: Path, folder: Path) -> Path:
    """Write card.md of a checkpoint, which must be whole, into a folder and return where it is."""
    target = folder / CARD
    fresh = durable.hidden(folder, CARD)
    fresh.write_text(card(path), encoding="utf-8")
    fresh.replace(target)
    return target


def card(path: Path) -> str:
    """The text for a checkpoint. Scores come from metrics.jsonl of the run that it lies in; without one the card says so."""
    manifest, state = (checkpoint.read_json(path / name) for name in ("manifest.json", "state.json"))
    config, step = state["config"], int(manifest["step"])
    run = run_of(path)
    rows = [row for row in read_metrics(run / FILE) if row["step"] <= step] if run and (run / FILE).is_file() else []
    title = f"# {config['task']}, {config['variant']}\n"
    what = f"A {config['variant']} agent of polydream, trained on `{config['task']}` for {step:,} environment steps.\n"
    parts = [title, what, _facts(path, manifest, config, rows), _scores(rows, step), _use(), _settings(config)]
    return "\n".join(parts)


def fingerprint(path: Path) -> str:
    """SHA-256 of a checkpoint's weights, in hex, as its manifest has it."""
    return str(checkpoint.read_json(path / "manifest.json")["files"]["agent.safetensors"][1])


def run_of(path: Path) -> Path | None:
    """The run directory that a checkpoint lies in, if it lies in one."""
    return next((parent for parent in list(path.resolve().parents)[:3] if (parent / "config.yaml").is_file()), None)


def _facts(path: Path, manifest: Mapping[str, Any], config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    told: dict[str, Any] = {}
    for row in rows:
        told |= row if row["kind"] == "run" else {}
    with safe_open(path / "agent.safetensors", "pt") as weights:
        updates = int(weights.get_tensor("updates"))
    facts = {key: config[key] for key in SHOWN if key in config}
    facts |= {"environment steps": f"{manifest['step']:,}", "updates": f"{updates:,}"}
    facts |= {"trainable parameters": f"{int(told['parameters']):,}"} if "parameters" in told else {}
    versions = manifest["versions"] | {key: told[key] for key in ("git", "device") if key in told}
    facts |= {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}
    facts |= {"weights, SHA-256": f"`{fingerprint(path)}`"}
    return _table(["", ""], [[key, str(value)] for key, value in facts.items()])


def _scores(rows: Sequence[Mapping[str, Any]], step: int) -> str:
    if not rows:
        return "## Scores\n\nUnknown: the run's metrics.jsonl is not here.\n"
    window = window_mean(rows, min(LAST, max(step // 2, 1)), end=step)
    lines = [["training episodes", str(window)]]
    for mode, name in MODES.items():
        found = [row for row in rows if row["kind"] == "eval" and row.get("mode") == mode]
        newest = max((row["step"] for row in found), default=0)
        lines += [[f"evaluation, {name}{_of(row)}", _score(row)] for row in found if row["step"] == newest]
    note = "Undiscounted returns as the task gives them, of this one run; evaluation is on seeds that training never uses."
    return f"## Scores\n\n{note}\n\n{_table(['', 'mean return'], lines)}"


def _of(row: Mapping[str, Any]) -> str:
    return f", {row['task']}" if row.get("task") is not None else ""


def _score(row: Mapping[str, Any]) -> str:
    count = f"{len(row['returns'])} episodes, " if "returns" in row else ""
    success = f"; success {row['success_mean']:.0%}" if "success_mean" in row else ""
    return f"{row['return_mean']:.1f} ± {row.get('return_std', 0.0):.1f} ({count}step {row['step']:,}){success}"


def _use() -> str:
    code = 'import polydream\n\nagent = polydream.load("CHECKPOINT")\naction, state = agent.act(observation)  # an episode begins'
    return f"## Use\n\n```python\n{code}\n```\n\nIt was trained on this task alone. What it does elsewhere was not looked at.\n"


def _settings(config: Mapping[str, Any]) -> str:
    import yaml

    return f"## Settings\n\n```yaml\n{yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=1000)}```\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines) + "\n"
