"""A machine that has somebody's data does not leave by the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from primordia.host.leave import _look
from primordia.kit.errors import PermanentError
from primordia.testing.api import connected, running_api
from primordia.wire.meta import ObjectMeta
from primordia.wire.resources import Volume
from primordia.wire.volumes import VolumeSpec, VolumeStatus


async def test_a_node_with_the_data_of_others_does_not_leave(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api, connected(api.admin) as client:
        for number, node in enumerate(("n8", "n9")):
            status = VolumeStatus(node=node, epoch=1, replicas=("n7",))
            meta = ObjectMeta(name=f"shop{number}.main", namespace="default")
            await api.registry.create(Volume(metadata=meta, spec=VolumeSpec(size="1Gi"), status=status))
        with pytest.raises(PermanentError, match=r"Node n9 has the data of default/shop1\.main: it would be lost"):
            await _look(client, "n9", force=False)
        await _look(client, "n7", force=False)  # copies are made elsewhere
        await _look(client, "n9", force=True)
