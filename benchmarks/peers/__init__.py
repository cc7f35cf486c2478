"""Other people's DreamerV3, driven through their own training step and unchanged. They live in `.venv-peers`: `make benchmark-peers`."""
