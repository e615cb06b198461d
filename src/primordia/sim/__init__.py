"""A seeded world in which the real controllers run under virtual time, and checkers that know what must always hold.

One seed is one run, bit for bit: time is the event loop's own, chance comes from the seed, and nothing waits for threads,
input or the machine. Whatever goes wrong in a run can be looked at again. The idea is that of FoundationDB's simulation
and of TigerBeetle's; the product never imports it.
"""
