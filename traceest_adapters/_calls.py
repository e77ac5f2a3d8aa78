"""Calls that say what is wrong with their arguments: a misspelt option, or one argument too many."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


SAME = {
    "argnums": ("wrt",),
    "names": ("wrt",),
    "layers": ("wrt",),
    "batch_dim": ("batch_axis",),
    "batch_dims": ("batch_axis",),
    "in_dims": ("batch_axis",),
    "create_graph": ("differentiable",),
    "dataloader": ("batches",),
    "loader": ("batches",),
    "data": ("batches",),
    "weights": ("params", "wrt"),
    "in_axis": ("in_axes", "batch_axis"),
}
"""Words of other libraries, or of the other framework, for an option."""


def clear(
    order: str, *passed_on: Callable[..., Any], without: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for calls in the given `order` that pass further options on to the functions named.

    Those options are in the signature that `help` shows, except for some `without`, each with the reason.
    """

    def decorate(call: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(call)
        name, own = call.__name__, signature.parameters.values()
        mine = [p for p in own if p.kind is not p.VAR_KEYWORD]
        theirs = {p.name: p for f in passed_on for p in inspect.signature(f).parameters.values()}
        passed = [
            p for key, p in theirs.items() if p.kind is p.KEYWORD_ONLY and key not in (*without, *signature.parameters)
        ]
        options = {p.name for p in (*mine, *passed) if _named(p)}
        open_ended = any(p.kind is p.VAR_POSITIONAL for p in own)
        most = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in own)

        @wraps(call)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            if not options.issuperset(kwargs):
                unknown = next(key for key in kwargs if key not in options)
                if unknown in without:
                    raise TypeError(f"{name}: {unknown}= is for jacobian and ntk; {without[unknown]}.")
                close = [same for same in SAME.get(unknown, ()) if same in options]
                close += difflib.get_close_matches(unknown, options, n=1)
                hint = f"did you mean {close[0]}=?" if close else f"there are {', '.join(sorted(options))}."
                raise TypeError(f"{name}: there is no option {unknown}=; {hint} Call it as {order}.")
            if len(args) > most and not open_ended:
                raise TypeError(
                    f"{name}: {len(args)} arguments by position, expected at most {most}; call it as {order}."
                )
            return call(*args, **kwargs)

        checked.__signature__ = signature.replace(parameters=[*mine, *passed])  # type: ignore[attr-defined]
        return checked

    return decorate


OURS = re.compile(r"\w+(=.*)?: |batch_axis|the state|give ")
"""How errors begin that tell the reason already."""


@contextmanager
def in_order(caller: str, order: str) -> Iterator[None]:
    """What a function says of its arguments is told with the order that they are to come in."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if OURS.match(str(error)):
            raise
        raise TypeError(f"{caller}: the function failed ({error}). If its arguments are mixed up: {order}.") from error


def _named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
