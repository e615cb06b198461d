"""The one process of a node that must not go wrong: it starts the others and restarts them. Standard library only."""
