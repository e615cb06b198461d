# Every target sets up what it needs first (tools/bootstrap): distribution packages, and a Python environment in
# /var/cache/primordia. Nothing is written into this folder. Root is needed; as a normal user, sudo is called.
#
#   YES=1    do not ask          KEEP=1   leave the demo's soup up
#   ARGS=    more arguments, as: make test ARGS="-k exec"
#   SEEDS=   SEED=  of sim, CYCLES=  SEED=  of probe, MINUTES= of soak

YES ?=
KEEP ?=
ARGS ?=
SEEDS ?=
CYCLES ?=
SEED ?=
MINUTES ?=
export YES KEEP SEEDS CYCLES SEED MINUTES

.DEFAULT_GOAL := help
.PHONY: help demo test lint fmt bench sim probe soak install uninstall

help:
	@echo "make demo        show what Primordia does, on this machine, from nothing (YES=1, KEEP=1)"
	@echo "make test        lint, types, import layers, unit, contract and real microVM tests"
	@echo "make lint        the first three of them"
	@echo "make fmt         format the Python source"
	@echo "make bench       measure boot, exec, API and idle cost"
	@echo "make sim         simulated soups with every fault there is, thousands of them (SEEDS=1000, SEED= repeats one)"
	@echo "make probe       real faults on six nodes, again and again: nothing acknowledged may be lost (CYCLES=50, SEED=)"
	@echo "make soak        the engine's leader killed and frozen under load: nothing may move (MINUTES=10)"
	@echo "make install     put primordia and kbl into the PATH, with completion"
	@echo "make uninstall   take them away, listing what stays"

demo test lint fmt bench sim probe soak install uninstall:
	@tools/bootstrap $@ $(ARGS)
