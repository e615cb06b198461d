"""Objects on the screen: the server's tables, or the objects themselves as JSON, YAML or names."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from primordia.cli.output import colourful, line, printable, table, widths
from primordia.client.aio import AsyncClient
from primordia.client.answers import Table, TableRow
from primordia.client.errors import ExpiredError
from primordia.wire.resources import Resource

Wanted = Sequence[tuple[type[Resource], str]]


@dataclass(frozen=True)
class Where:
    """Which objects of a kind: the client's selection, as one value."""

    namespace: str = ""
    every: bool = False
    labels: str = ""
    fields: str = ""

    def only(self, name: str) -> Where:
        """The same, for one name, if there is one."""
        if not name:
            return self
        return replace(self, fields=",".join(filter(None, (self.fields, f"metadata.name={name}"))))

    def arguments(self) -> dict[str, Any]:
        """As the client's methods take them."""
        return {"namespace": self.namespace, "all_namespaces": self.every, "labels": self.labels, "fields": self.fields}


# ---------------------------------------------------------------- objects


def plain(obj: Resource) -> dict[str, Any]:
    """An object as plain values in the order people read them: what it is, who it is, wanted, seen."""
    value: dict[str, Any] = msgspec.to_builtins(obj)
    order = ("apiVersion", "kind", "metadata", "spec", "status")
    return {key: value[key] for key in order if key in value} | {key: value[key] for key in value if key not in order}


def as_plain(value: msgspec.Struct) -> Any:
    """What is no object, as plain values."""
    return msgspec.to_builtins(value)


def print_plain(value: Any, output: str) -> None:
    """A plain value as JSON or YAML."""
    if output == "json":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
        return
    import yaml

    yaml.dump(value, sys.stdout, Dumper=_dumper(), sort_keys=False, default_flow_style=False, allow_unicode=True, width=100)


def print_objects(objects: Sequence[Resource], output: str, *, as_list: bool) -> None:
    """Objects as JSON, YAML (a List where `as_list`) or names."""
    if output == "name":
        for obj in objects:
            print(f"{obj.KIND.lower()}/{obj.metadata.name}")
    elif as_list:
        print_plain({"apiVersion": "v1", "kind": "List", "items": [plain(obj) for obj in objects]}, output)
    else:
        print_plain(plain(objects[0]), output)


async def show_objects(soup: AsyncClient, wanted: Wanted, where: Where, output: str) -> None:
    """Get and print objects as they are."""
    found: list[Resource] = []
    for kind, name in wanted:
        if name:
            found.append(await soup.get(kind, name, namespace=where.namespace))
        else:
            found += (await soup.list(kind, **where.arguments())).items
    print_objects(found, output, as_list=len(wanted) != 1 or not wanted[0][1])


# ---------------------------------------------------------------- tables


def cell(value: Any) -> str:
    """A cell as text; nothing is shown as `-`."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "True" if value else "False"
    return printable(str(value)).replace("\n", " ")


def layout(answer: Table, *, wide: bool, every: bool) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a server's table: wide columns on demand, the namespace first where there are several."""
    shown = [index for index, column in enumerate(answer.column_definitions) if wide or column.priority == 0]
    header = [answer.column_definitions[index].name.upper() for index in shown]
    return (["NAMESPACE", *header] if every else header), [_row(row, shown, every=every) for row in answer.rows]


def _row(row: TableRow, shown: Sequence[int], *, every: bool) -> list[str]:
    cells = [cell(row.cells[index]) if index < len(row.cells) else "-" for index in shown]
    return [_namespace(row), *cells] if every else cells


def _namespace(row: TableRow) -> str:
    metadata = row.object.get("metadata") or {}
    return cell(metadata.get("namespace"))


async def show_tables(soup: AsyncClient, wanted: Wanted, where: Where, *, wide: bool, headers: bool = True) -> None:
    """Get and print tables: one for each kind, with a blank line between; several names of one kind in one."""
    kinds = list(dict.fromkeys(kind for kind, _ in wanted))
    first = True
    for kind in kinds:
        names = [name for each, name in wanted if each is kind]
        answers = [await soup.table(kind, name, **_for(where, name)) for name in names]
        merged = msgspec.structs.replace(answers[0], rows=tuple(row for answer in answers for row in answer.rows))
        if not merged.rows:
            if len(kinds) == 1:
                place = "" if where.every or not kind.NAMESPACED else f" in namespace {where.namespace or soup.namespace}"
                print(f"No {kind.PLURAL} found{place}.", file=sys.stderr)
            continue
        if not first:
            print()
        first = False
        header, rows = layout(merged, wide=wide, every=where.every and kind.NAMESPACED)
        print(table(header, rows, headers=headers, colour=colourful(sys.stdout)))


def _for(where: Where, name: str) -> dict[str, Any]:
    return {"namespace": where.namespace} if name else where.arguments()


# ---------------------------------------------------------------- watch


async def watch(soup: AsyncClient, kind: type[Resource], where: Where, output: str, *, headers: bool = True) -> None:
    """Show what is there, then every change, until interrupted."""
    while True:
        try:
            if output in ("table", "wide"):
                await _watch_table(soup, kind, where, wide=output == "wide", headers=headers)
            else:
                await _watch_objects(soup, kind, where, output)
            return
        except ExpiredError:
            headers = False  # the server forgot where we were: all of it once more


async def _watch_objects(soup: AsyncClient, kind: type[Resource], where: Where, output: str) -> None:
    async for event in soup.watch(kind, **where.arguments()):
        if output == "json":  # one document for each line, for programs
            print(msgspec.json.encode({"type": event.type, "object": plain(event.object)}).decode(), flush=True)
        elif output == "yaml":
            print("---")
            print_objects([event.object], output, as_list=False)
        else:
            print_objects([event.object], output, as_list=False)
        sys.stdout.flush()


async def _watch_table(soup: AsyncClient, kind: type[Resource], where: Where, *, wide: bool, headers: bool) -> None:
    every = where.every and kind.NAMESPACED
    answer = await soup.table(kind, **where.arguments())
    header, rows = layout(answer, wide=wide, every=every)
    columns = widths(header, rows)
    colour = colourful(sys.stdout)
    if headers:
        print(line(header, columns))
    _print_rows(rows, columns, colour=colour)
    shown = [index for index, column in enumerate(answer.column_definitions) if wide or column.priority == 0]
    async for event in soup.watch_table(kind, **where.arguments(), resource_version=answer.metadata.resource_version):
        if event.type == "BOOKMARK":
            continue
        changed = [_row(row, shown, every=every) for row in event.table.rows]
        columns = [max(old, *(len(row[index]) for row in changed)) if changed else old for index, old in enumerate(columns)]
        _print_rows(changed, columns, colour=colour)


def _print_rows(rows: Iterable[Sequence[str]], columns: Sequence[int], *, colour: bool) -> None:
    for row in rows:
        print(line(row, columns, colour=colour))
    sys.stdout.flush()


def _dumper() -> type[Any]:
    """YAML as people write it: text of several lines as a block."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)
    return Dumper
