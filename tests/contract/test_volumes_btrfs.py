"""The btrfs body keeps the volumes contract, on a real pool in a loop file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from volumes_contract import Corrupt, VolumesContract

from primordia.drivers.volumes_btrfs import ioctl
from primordia.drivers.volumes_btrfs.driver import BtrfsVolumes
from primordia.testing.volumes import RealPool, real_pool


class TestBtrfsVolumes(VolumesContract):
    @pytest.fixture
    async def volumes(self, tmp_path: Path) -> AsyncIterator[BtrfsVolumes]:
        async with real_pool(tmp_path / "one") as pool:
            yield pool.volumes

    @pytest.fixture
    async def second(self, tmp_path: Path) -> AsyncIterator[RealPool]:
        async with real_pool(tmp_path / "two") as pool:
            yield pool

    @pytest.fixture
    def other(self, second: RealPool) -> BtrfsVolumes:
        return second.volumes

    @pytest.fixture
    def corrupt(self, second: RealPool) -> Corrupt:
        def flip(volume: str, number: int, offset: int) -> None:
            snapshot = second.point / "volumes" / volume / "snapshots" / f"{number:012d}"
            ioctl.set_readonly(snapshot, False)
            descriptor = os.open(snapshot / "disk", os.O_RDWR)
            try:
                (byte,) = os.pread(descriptor, 1, offset)
                os.pwrite(descriptor, bytes([byte ^ 1]), offset)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            ioctl.set_readonly(snapshot, True)

        return flip
