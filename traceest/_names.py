"""Dotted names of arrays, "layers.0.attn.weight", and the patterns that choose among them.

A pattern is the name of an array, the name of a module (all below it is meant), or a glob of either, in which ``*``
stands for any characters, dots included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

Pattern = str | Callable[[str, Any], bool] | Iterable[str | Callable[[str, Any], bool]]
"""A name, a glob, a predicate of name and array, or several of these, of which one has to fit."""

SHOWN = 12
"""How many names an error lists."""


class Names(tuple[str, ...]):
    """The names of arrays, with the arrays themselves, where an operator knows them, for predicates to look at."""

    arrays: tuple[Any, ...]

    def __new__(cls, names: Iterable[str], arrays: Iterable[Any] | None = None) -> Names:
        """`names`, each with its array, or None where there are none."""
        found = super().__new__(cls, names)
        found.arrays = (None,) * len(found) if arrays is None else tuple(arrays)
        return found

    def __add__(self, other: Any) -> Any:
        """Those of both, one after the other."""
        return Names((*self, *other), (*self.arrays, *other.arrays)) if isinstance(other, Names) else (*self, *other)

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (tuple(self),)  # a name is worth keeping, an array of parameters beside it is not


def chosen(names: Sequence[str], arrays: Sequence[Any], pattern: Any, option: str) -> list[bool]:
    """Which of the named arrays `pattern` chooses.

    Raises
    ------
    TypeError
        If it is no pattern, or a predicate fails.
    ValueError
        If a name or glob fits nothing.
    """
    several = [pattern] if isinstance(pattern, str) or callable(pattern) else _listed(pattern, option)
    found = [False] * len(names)
    for one in several:
        if isinstance(one, str):
            fits = [name_fits(name, one) for name in names]
            if not any(fits):
                raise ValueError(f"{option}: {one!r} fits no parameter; {what_there_is(names, one)}")
        else:
            fits = [_said(one, option, name, x) for name, x in zip(names, arrays, strict=True)]
        found = [a or b for a, b in zip(found, fits, strict=True)]
    return found


def name_fits(name: str, pattern: str) -> bool:
    """Whether the pattern is this name, that of a module around it, or a glob of either."""
    if name == pattern or name.startswith(f"{pattern}."):
        return True
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def place(name: str, patterns: Iterable[str]) -> str | None:
    """The outermost module around an array, or the array itself, that one of the patterns names; None if none does."""
    around = places([name])
    return next((module for module in around if any(module == p or fnmatchcase(module, p) for p in patterns)), None)


def places(names: Iterable[str]) -> list[str]:
    """All modules and arrays, each once, outermost first along every name."""
    parts = (name.split(".") for name in names)
    return list(dict.fromkeys(".".join(part[:i]) for part in parts for i in range(1, len(part) + 1)))


def what_there_is(names: Sequence[str], asked: str) -> str:
    """What may have been meant, among arrays and modules, and some of the arrays."""
    close = get_close_matches(asked, places(names), n=3)
    there = f"the parameters are {listed(names)}."
    return f"did you mean {' or '.join(map(repr, close))}? (T{there[1:-1]}.)" if close else there


def listed(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _listed(pattern: Any, option: str) -> list[Any]:
    several = list(pattern) if isinstance(pattern, Iterable) else [pattern]
    for one in several:
        if not (isinstance(one, str) or callable(one)):
            raise TypeError(
                f'{option}: expected names, globs ("*.attn.*") or predicates of name and array, got '
                f"{one if isinstance(one, (int, float)) else type(one).__name__}; names are the dotted paths of arrays "
                "or of modules."
            )
    return several


def _said(predicate: Callable[..., Any], option: str, name: str, array: Any) -> bool:
    try:
        return bool(predicate(name, array))
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise TypeError(f"{option}: the predicate is called with a name and an array, and failed ({error}).") from error
