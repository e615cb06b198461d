"""The QEMU driver of the VMM port: one unprivileged, sandboxed process for each microVM, on the `microvm` machine."""

from primordia.drivers.vmm_qemu.driver import QemuVmm

__all__ = ["QemuVmm"]
