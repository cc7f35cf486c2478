"""Judging, never training: rollouts, statistics, report. Imports core and tasks."""

if __name__ != "polydream.eval":
    raise ImportError("import polydream.eval, not eval: a second copy of every class would be made")
