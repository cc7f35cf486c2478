"""One file, one variant: its configuration and its class. Imports core only."""

if __name__ != "polydream.variants":
    raise ImportError("import polydream.variants, not variants: a second copy of every class would be made")
