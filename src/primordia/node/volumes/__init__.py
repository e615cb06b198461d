"""Volumes on this node: who writes which, and everything that is done with them."""
