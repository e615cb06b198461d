"""Primordia: long-lived, stateful microVMs beside their own data, on machines you own."""

__version__ = "0.1.0"
