"""Copies of volumes on other nodes: sending, receiving, seeding, verifying."""
