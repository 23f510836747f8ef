"""Structs of the library as Python objects: the fields are those of the C declaration, read when the module is
imported, so that none is written down twice."""
import dataclasses
from typing import Any

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


def _default(kind):
    return {"primitive": 0, "enum": 0}.get(kind.kind)


def record(name: str, struct: str, doc: str, without=(), **nested) -> type:
    """A dataclass with the fields of a struct. nested: for a field that is a struct, or a pointer, its own type or
    None; what fills a pointer is up to the caller. without: fields that are left out."""
    types = {"primitive": Any, "enum": int}
    members = []
    for field, kind in fields_of(struct):
        if field in without or (kind.kind not in types and field not in nested):
            continue
        python = nested.get(field) or (float if kind.cname == "double" else int if kind.kind in types else Any)
        members.append((field, python, dataclasses.field(default=_default(kind))))
    made = dataclasses.make_dataclass(name, members, namespace={"asdict": dataclasses.asdict})
    made.__doc__ = doc
    made.__module__ = __name__
    return made


def fill(kind: type, struct) -> Any:
    """A record of this type from a struct of C; pointers stay None."""
    values = {}
    for field in dataclasses.fields(kind):
        value = getattr(struct, field.name)
        if dataclasses.is_dataclass(field.type):
            values[field.name] = fill(field.type, value)
        elif not isinstance(value, ffi.CData):
            values[field.name] = value
    return kind(**values)
