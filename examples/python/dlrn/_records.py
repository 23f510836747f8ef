"""Structs of the library as Python objects: the fields are those of the C declaration, read when the module is
imported, so that none is written down twice."""
from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterator

from ._core import ffi, lib, text


def fields_of(struct: str) -> list:
    """The fields of a struct as (name, type), in the order of the declaration."""
    return [(name, field.type) for name, field in ffi.typeof(struct).fields]


def enum_name(kind) -> str:
    """`dlrn_loss` of cffi's type of that enumeration."""
    return kind.cname.split()[-1]


def words_of(kind) -> dict:
    """The values of an enumeration by the words that files and the command line have for them ("norm", "adam")."""
    which = getattr(lib, "DLRN_NAMES_" + enum_name(kind).split("_", 1)[1].upper())
    return {text(lib.dlrn_name(which, int(value))): int(value) for value in kind.elements}


class Record:
    """The fields of a struct, as attributes and as keys: dict(record), record["l0"]."""

    def keys(self) -> list:
        """The names of the fields."""
        return [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def asdict(self) -> Dict[str, Any]:
        """A dict of all fields, and of the records in it."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def record(name: str, struct: str, **more: Any) -> Any:
    """A dataclass with the fields of a struct, the base of a class that describes them.

    more: the types of fields that are structs or pointers, of which the caller fills the latter; without one such a
    field is left out. Properties are added.
    """
    members = []
    for field, kind in fields_of(struct):
        if kind.kind not in ("primitive", "enum") and field not in more:
            continue
        python = more.get(field) or (float if kind.cname == "double" else int)
        members.append((field, python, dataclasses.field(default=None if field in more else 0)))
    extra = {key: value for key, value in more.items() if isinstance(value, property)}
    return dataclasses.make_dataclass(name, members, bases=(Record,), namespace=extra)


def fill(kind: Any, struct: Any) -> Any:
    """A record of this type from a struct of C; pointers stay None."""
    values = {}
    for field in dataclasses.fields(kind):
        value = getattr(struct, field.name)
        if dataclasses.is_dataclass(field.type):
            values[field.name] = fill(field.type, value)
        elif not isinstance(value, ffi.CData):
            values[field.name] = value
    return kind(**values)
