"""Which parameters belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from traceest._names import Names, Pattern, chosen, place
from traceest.operators.abilities import can

Grouping = bool | int | str | Sequence[str] | Callable[[str], str | None] | Mapping[str, Pattern] | None
"""What `summary` takes for `groups`."""


def groups_of(kernels: list[Any], grouping: Grouping, caller: str) -> dict[str, tuple[int, ...]]:
    """Label ↦ indices into the factors' `parameters`, in their order.

    Raises
    ------
    TypeError
        If a kernel has no parameters to tell apart, or `grouping` is none of the kinds known.
    ValueError
        If the kernels' parameters differ, a pattern fits none, or a parameter is in two groups.
    """
    if grouping is None or grouping is False:
        return {}
    named = [K.inner.parameters for K in kernels]
    for K, names in zip(kernels, named, strict=True):
        if not names or not _told_apart(K, names):
            raise TypeError(
                f"{caller}: groups= needs Gram operators whose factors tell parameters apart, as those of models do "
                f"(of arrays: DenseOperator(J, parameters={{...}})), or symmetric operators of a model's parameters, "
                f"such as Hessians; got {K!r}."
            )
    if len(set(named)) > 1:
        raise ValueError(f"{caller}: groups= needs kernels of the same parameters, got {named[0]} and {named[1]}.")
    label = _labels(named[0], grouping, caller)
    found: dict[str, list[int]] = {}
    for i, name in enumerate(named[0]):
        if (to := label(name)) is not None:
            found.setdefault(to, []).append(i)
    return {to: tuple(members) for to, members in found.items()}


def _told_apart(K: Any, names: Names) -> bool:
    """Whether K's parts that belong to groups of parameters can be had: of its factor's columns, or of its own."""
    if K.factor is not None:
        return can(K.factor, "grouped_gram")
    return bool(K.symmetric) and all(array is not None for array in names.arrays)


def _labels(names: Names, grouping: Grouping, caller: str) -> Callable[[str], str | None]:
    if isinstance(grouping, Mapping):
        return _members(names, grouping, f"{caller}: groups").get
    if callable(grouping):
        return grouping
    if grouping is True:
        return lambda name: name
    if isinstance(grouping, int) and grouping > 0:
        return lambda name: ".".join(name.split(".")[:grouping])
    patterns = [grouping] if isinstance(grouping, str) else grouping
    if isinstance(patterns, Iterable) and all(isinstance(pattern, str) for pattern in patterns):
        patterns = list(patterns)
        for pattern in patterns:
            chosen(names, names.arrays, pattern, f"{caller}: groups")  # raises where it fits nothing
        return lambda name: place(name, patterns)
    raise TypeError(
        f"{caller}: groups must be True (every array of parameters), a positive int (that many parts of its path), "
        "names or globs of modules (each that one fits is a group), a function from an array's name to its group's, or "
        f"a mapping from labels to names, globs or predicates of name and array; got {grouping!r}."
    )


def _members(names: Names, grouping: Mapping[str, Pattern], option: str) -> dict[str, str]:
    """The label of every array that is in a group."""
    found: dict[str, str] = {}
    for label, pattern in grouping.items():
        for name, mine in zip(names, chosen(names, names.arrays, pattern, option), strict=True):
            if mine and found.setdefault(name, label) != label:
                raise ValueError(
                    f"{option}: parameter {name!r} is in two groups, {found[name]!r} and {label!r}; each may be in one."
                )
    return found
