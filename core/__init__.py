"""The engine: world model, losses, replay, the one training loop. Imports no other room and names no variant and no task."""

if __name__ != "polydream.core":
    raise ImportError("import polydream.core, not core: a second copy of every class would be made")
