"""One file, one family of environments. Imports only what core says about specs and seeds."""

if __name__ != "polydream.tasks":
    raise ImportError("import polydream.tasks, not tasks: a second copy of every class would be made")
