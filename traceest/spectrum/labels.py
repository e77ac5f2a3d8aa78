"""Names of functions, by which estimates of their traces are told apart."""

from __future__ import annotations

from functools import partial
from inspect import isfunction, ismethod
from types import CodeType
from typing import Any

from traceest.probes.sources import digest


def name_of(f: Any) -> str:
    """A name that two runs of a program give the same function, and that different ones do not share in general.

    Of Python functions their code and the numbers they hold are looked at, for all lambdas have one name.
    """
    if isinstance(f, partial):
        return f"partial({', '.join(_held((f.func, *f.args, *sorted(f.keywords.items()))))})"
    f = f.__func__ if ismethod(f) else f
    name = getattr(f, "__qualname__", None) or getattr(f, "__name__", None) or type(f).__qualname__
    if not isfunction(f):
        return str(name)
    closure = [cell.cell_contents for cell in f.__closure__ or () if cell.cell_contents is not f]
    seen = repr((_code(f.__code__), _held((*closure, *(f.__defaults__ or ())))))
    return f"{name} {digest(seen.encode())[:8]}"


def _code(code: CodeType) -> tuple[Any, ...]:
    consts = tuple(_code(x) if isinstance(x, CodeType) else repr(x) for x in code.co_consts)
    return code.co_code.hex(), consts, code.co_names


def _held(values: tuple[Any, ...]) -> list[str]:
    """What a function holds: plain values as they are, functions by their names, all else by its type."""
    plain = (int, float, complex, str, bool, type(None), tuple)
    return [repr(x) if isinstance(x, plain) else name_of(x) if callable(x) else type(x).__qualname__ for x in values]
