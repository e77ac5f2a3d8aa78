"""Which parameters belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Grouping = bool | int | Callable[[str], str | None] | Mapping[str, Iterable[str]] | None


def groups_of(kernels: list[Any], grouping: Grouping, caller: str) -> dict[str, tuple[int, ...]]:
    """Label ↦ indices into the factors' `parameters`, in their order.

    Raises
    ------
    TypeError
        If a kernel has no parameters to tell apart, or `grouping` is none of the kinds known.
    ValueError
        If the kernels' parameters differ, a name is unknown, or a parameter is in two groups.
    """
    if grouping is None or grouping is False:
        return {}
    named = [tuple(getattr(getattr(K, "factor", None), "parameters", ())) for K in kernels]
    for K, names in zip(kernels, named, strict=True):
        if not names or not hasattr(K.factor, "grouped_gram"):
            raise TypeError(
                f"{caller}: groups= needs Gram operators whose factors tell parameters apart, as those of models do "
                f"(of arrays: DenseOperator(J, parameters={{...}})); got {K!r}."
            )
    if len(set(named)) > 1:
        raise ValueError(f"{caller}: groups= needs kernels of the same parameters, got {named[0]} and {named[1]}.")
    label = _labels(named[0], grouping, caller)
    found: dict[str, list[int]] = {}
    for i, name in enumerate(named[0]):
        if (to := label(name)) is not None:
            found.setdefault(to, []).append(i)
    return {to: tuple(members) for to, members in found.items()}


def _labels(names: tuple[str, ...], grouping: Grouping, caller: str) -> Callable[[str], str | None]:
    if callable(grouping):
        return grouping
    if isinstance(grouping, Mapping):
        members = {to: [some] if isinstance(some, str) else list(some) for to, some in grouping.items()}
        chosen = [name for some in members.values() for name in some]
        if unknown := set(chosen) - set(names):
            raise ValueError(
                f"{caller}: groups= names {', '.join(sorted(unknown))}; the parameters are {', '.join(names)}."
            )
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"{caller}: groups= has a parameter in two groups; each may be in one.")
        return {name: to for to, some in members.items() for name in some}.get
    if grouping is True:
        return lambda name: name
    if isinstance(grouping, int) and grouping > 0:
        return lambda name: ".".join(name.split(".")[:grouping])
    raise TypeError(
        f"{caller}: groups must be True (every array of parameters), a positive int (that many parts of its path), a "
        f"function of its name, or a mapping from labels to names; got {grouping!r}."
    )
