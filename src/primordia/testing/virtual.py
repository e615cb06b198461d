"""Virtual time for tests. It lives with the simulation, which shares it with the benchmarks."""

from primordia.sim.virtual import VirtualClock, VirtualLoop, run_virtual

__all__ = ["VirtualClock", "VirtualLoop", "run_virtual"]
