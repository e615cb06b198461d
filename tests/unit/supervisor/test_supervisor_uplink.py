"""The uplink's command line."""

from __future__ import annotations

from primordia.supervisor.uplink import INTERFACE, slirp4netns_argv


def test_the_command_serves_the_nodes_namespace_confined_and_cut_off_from_the_hosts_loopback() -> None:
    argv = slirp4netns_argv("/cache/slirp4netns", "primordia-default-n1")
    assert argv[:6] == ["unshare", "--mount", "--propagation", "slave", "--", "/cache/slirp4netns"]
    assert argv[-3:] == ["--netns-type=path", "/run/netns/primordia-default-n1", INTERFACE]
    assert {"--disable-host-loopback", "--disable-dns", "--enable-sandbox", "--enable-seccomp"} <= set(argv)


def test_in_a_chroot_whose_root_is_no_mount_point_it_goes_without_what_cannot_be_had_there() -> None:
    argv = slirp4netns_argv("/cache/slirp4netns", "n", sandbox=False)
    assert argv[0] == "/cache/slirp4netns"
    assert "--enable-sandbox" not in argv
    assert {"--disable-host-loopback", "--enable-seccomp"} <= set(argv)
