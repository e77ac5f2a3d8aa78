"""Which part of what passes through a model is its state: of its output, or of the output of a module inside it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from torch.utils import _pytree as pytree

from traceest import _array_api as aa

SHOWN = 12
"""How many names an error lists."""


def steps(output: Any) -> tuple[Any, ...]:
    """`output` as a path of selections.

    Raises
    ------
    TypeError
        If one of them is no index, name or function.
    """
    path = () if output is None else output if isinstance(output, tuple) else (output,)
    for step in path:
        if isinstance(step, bool) or not (isinstance(step, (int, str)) or callable(step)):
            raise TypeError(
                "output must be an index, a key, an attribute's or a module's name, a function, or a tuple of these, "
                f"got {output!r}."
            )
    return path


def select(module: torch.nn.Module | None, path: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    """What `path` selects of ``call()``, or of the output of the module that its first step names.

    Raises
    ------
    ValueError
        If there is no such part, or the module is not called.
    """
    name = path[0] if path and isinstance(path[0], str) else None
    inner = {} if module is None or name is None else modules(module)
    with _outputs_of(None if name is None else inner.get(name)) as seen:
        returned = call()
    if name not in inner or name in fields(returned):
        return _walk(returned, path, list(inner))
    if not seen:
        raise ValueError(
            f"output={name!r}: this module is not called in the forward pass; others may use its weights directly (as "
            "nn.MultiheadAttention does those of its out_proj), or its code is compiled by torch.jit. Name the module "
            "that calls it, or one behind it."
        )
    return _walk(seen[0] if len(seen) == 1 else seen, path[1:], [])


def modules(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """All modules inside by name, in which ``torch.compile`` does not show."""
    named = dict(module.named_modules(remove_duplicate=False))
    plain = {".".join(part for part in name.split(".") if part != "_orig_mod"): m for name, m in named.items()}
    return {name: m for name, m in (named | plain).items() if name}


def fields(state: Any) -> dict[str, Any]:
    """The parts of a returned value that have names: keys, fields, attributes; those that are None are not there."""
    if isinstance(state, Mapping):
        found = {key: value for key, value in state.items() if isinstance(key, str)}
    elif isinstance(state, tuple) and not aa.is_plain_sequence(state):
        found = state._asdict()  # type: ignore[attr-defined]
    elif isinstance(state, (torch.Tensor, tuple, list)):
        return {}
    else:
        found = getattr(state, "__dict__", {})
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def _outputs_of(module: torch.nn.Module | None) -> Iterator[list[Any]]:
    """What each call of `module` in this thread returns, copied: what comes next may overwrite it."""
    seen: list[Any] = []
    if module is None:
        yield seen
        return
    here = get_ident()

    def note(layer: Any, inputs: Any, output: Any) -> None:
        if get_ident() == here:
            seen.append(pytree.tree_map_only(torch.Tensor, torch.clone, output))

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def _walk(state: Any, path: tuple[Any, ...], module_names: list[str]) -> Any:
    for i, step in enumerate(path):
        if isinstance(step, str):
            part = fields(state).get(step)
            if part is None and not isinstance(state, torch.Tensor):
                part = getattr(state, step, None)  # a property, say
            if part is None or callable(part):
                raise _no_such_part(path, step, state, module_names if i == 0 else [])
            state = part
        elif isinstance(step, int):
            try:
                state = state[step]
            except (IndexError, KeyError, TypeError) as error:
                raise _no_such_part(path, step, state, []) from error
        else:
            state = step(state)
    return state


def _no_such_part(path: tuple[Any, ...], step: Any, state: Any, module_names: list[str]) -> ValueError:
    output, names = path[0] if len(path) == 1 else path, list(fields(state))
    there = f"a {type(state).__name__}"
    if names:
        there += f" with {listed(names)}"
    elif isinstance(state, (tuple, list)):
        there += f" of {len(state)}"
    message = f"output={output!r}: there is no {step!r} in {there}"
    if module_names:
        message += f", and no module of that name among {listed(module_names)}"
    close = difflib.get_close_matches(str(step), [*names, *module_names], n=3)
    return ValueError(message + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "."))


def listed(names: list[str]) -> str:
    """The first of many names, for an error."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
