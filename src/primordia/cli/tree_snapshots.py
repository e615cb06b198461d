"""The commands of volumes' content: `volume snapshot snapshots checkpoint restore clone export import`."""

from __future__ import annotations

from pathlib import Path

from primordia.cli import tree


def add(verbs: tree.Commands) -> None:
    """Put them below `volume`."""
    _snapshots(verbs)
    _images(verbs)


def _snapshots(verbs: tree.Commands) -> None:
    snapshot = tree.add(verbs, "snapshot", "snapshots:snapshot", "cut a volume now")
    snapshot.add_argument("name", metavar="NAME", help="a volume, or a lifeform that has one")
    _cut(snapshot)

    snapshots = tree.add(verbs, "snapshots", "snapshots:list_", "list a volume's snapshots")
    snapshots.add_argument("name", metavar="NAME", help="a volume, or a lifeform that has one")
    _answer(snapshots)

    checkpoint = tree.add(verbs, "checkpoint", "snapshots:checkpoint", "cut a volume now, and keep that under a name")
    checkpoint.add_argument("name", metavar="NAME", help="a volume, or a lifeform that has one")
    checkpoint.add_argument("checkpoint", metavar="CHECKPOINT")
    _cut(checkpoint)

    restore = tree.add(verbs, "restore", "snapshots:restore", "give a volume an old snapshot's content, after asking")
    restore.add_argument("name", metavar="NAME", help="a volume, or a lifeform that has one")
    restore.add_argument("--to", required=True, metavar="NUMBER|CHECKPOINT", help="which snapshot")
    restore.add_argument("--yes", action="store_true", help="do not ask")
    restore.add_argument("-q", "--quiet", action="store_true", help="no progress")
    tree.client(restore)


def _images(verbs: tree.Commands) -> None:
    clone = tree.add(verbs, "clone", "snapshots:clone", "make a new volume with the same content, at once")
    clone.add_argument("name", metavar="NAME", help="a volume, or a lifeform that has one")
    clone.add_argument("new", metavar="NEW")
    _source(clone)
    clone.add_argument("--orphan", default="", metavar="NODE/NUMBER", help="of what that node keeps (`volume ls --orphans`)")
    tree.client(clone)

    export = tree.add(verbs, "export", "snapshots:export", "write a volume's content into a file")
    export.add_argument("name", metavar="NAME", help="a volume, or a lifeform that has one")
    _file(export)
    _source(export)
    export.add_argument("-q", "--quiet", action="store_true", help="no progress")
    tree.client(export)

    import_ = tree.add(verbs, "import", "snapshots:import_", "make a volume with a file's content")
    _file(import_)
    import_.add_argument("name", metavar="NAME")
    import_.add_argument("--size", default="", metavar="SIZE", help="make it larger than the file, as 2Gi")
    import_.add_argument("--filesystem", choices=("ext4", "xfs"), default="ext4", help="what is on it (default: ext4)")
    import_.add_argument("--node", default="", help="where (default: where there is most room)")
    import_.add_argument("-q", "--quiet", action="store_true", help="no progress")
    tree.client(import_)


def _cut(parser: tree.Parser) -> None:
    parser.add_argument("--quiesce", action="store_true", help="have the guest's file system stand still for it")
    _answer(parser)


def _answer(parser: tree.Parser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="the form of the answer")
    tree.client(parser)


def _file(parser: tree.Parser) -> None:
    file = parser.add_argument("file", type=Path, metavar="FILE", help="a raw image, or a packed one: .gz, .zst")
    tree.completes(file, "file")


def _source(parser: tree.Parser) -> None:
    parser.add_argument(
        "--from", dest="source", default="", metavar="NUMBER|CHECKPOINT", help="which snapshot (default: as it is now)"
    )
