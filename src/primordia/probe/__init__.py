"""Real faults on real soups: processes killed and frozen, links cut, power taken, while Redis and SQLite write and somebody
outside writes down what was acknowledged, and who wrote in which epoch.

What the simulation is for the decisions, this is for the deeds: cgroups, namespaces, QEMU, btrfs, etcd.
"""
