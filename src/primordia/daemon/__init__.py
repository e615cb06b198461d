"""One node's daemon: API, controllers and node in one process, wired together in `main.py`."""
