"""Soups whose machines die: nodes with leases, fences, disks and links of their own, and what must hold whatever befalls them.

Real here are the controllers and their failover, leases, the fence's machine, registry, caches, start guard, and all that a
node does for volumes: cuts, deltas on the wire, copies, syncs, holdings, the return of the dead. Simulated are time, the
engine's servers, links, machines, microVMs and what they write, and the pool, whose contents are numbers.
"""
