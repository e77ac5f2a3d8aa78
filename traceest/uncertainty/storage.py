"""Estimates on disk, so that a killed run goes on."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest import _files
from traceest._boundary import public
from traceest.kernels.summary import ESTIMATES, Summary
from traceest.uncertainty import skewed_intervals
from traceest.uncertainty.estimate import ARRAYS, PROVENANCE, STATIC, Estimate, _to_host

EXPECTED = "a file written by traceest.save"


@public
def save(estimate: Estimate | Summary, path: str | PathLike[str]) -> None:
    """Write an Estimate, its samples included, or a Summary to an ``.npz`` file, in one step and never through a link.

    Parameters
    ----------
    estimate : Estimate or Summary
        From any backend.
    path : path
        The ending ``.npz`` is added where it is missing; the folder has to exist.

    Raises
    ------
    TypeError
        If it is neither an Estimate nor a Summary.
    OSError
        If no file can be written there; one that was there before is then left as it was.

    Examples
    --------
    >>> import numpy as np, os, tempfile, traceest as te
    >>> path = os.path.join(tempfile.mkdtemp(), "run.npz")
    >>> te.save(te.hutchinson(np.eye(9) + 1, 4, rng=0), path)
    >>> te.load(path).n_matvecs
    4
    """
    if not isinstance(estimate, (Estimate, Summary)):
        raise TypeError(
            f"save: writes an Estimate or a Summary, got {type(estimate).__name__}; of a Tracker, to_csv writes a "
            "table, and pickle all of it."
        )
    name = os.fsdecode(path)
    where = _files.as_path(name if name.endswith(".npz") else f"{name}.npz", "save")
    arrays: dict[str, Any] = {}
    text = _taken_apart(estimate, "", arrays)
    _files.write_archive(where, "save", {"static": text}, arrays)


@public
def load(path: str | PathLike[str], *, like: Any = None) -> Any:
    """Read what was written by `save`.

    To go on with a sampling estimate, run the estimator with *other* probes (another seed) and merge.

    Parameters
    ----------
    path : path
        The file, ending included.
    like : array, optional
        Namespace and device of the arrays; NumPy if absent.

    Returns
    -------
    Estimate or Summary

    Raises
    ------
    ValueError
        If the file was not written by `save`, or is broken. Nothing in it is unpickled or unpacked, so that a file from
        elsewhere can do no harm.
    OSError
        If it is missing, or may not be read.

    Examples
    --------
    >>> import numpy as np, os, tempfile, traceest as te
    >>> A, path = np.eye(90) + 1, os.path.join(tempfile.mkdtemp(), "run.npz")
    >>> te.save(te.hutchinson(A, 4, rng=0), path)
    >>> te.load(path).merge(te.hutchinson(A, 6, rng=1)).n_matvecs
    10
    """
    where = Path(os.fsdecode(path))
    with _files.archive(where, "load", EXPECTED) as file:
        if "static" not in file:
            raise _files.Refused(f"load: {where} holds no Estimate; expected {EXPECTED}.")
        return _put_together(file, file.text("static"), "", like)


def _taken_apart(result: Estimate | Summary, prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """What is no array, for JSON; the arrays go into `arrays`, under names that begin with `prefix`."""
    if isinstance(result, Estimate):
        present = {name: x for name in ARRAYS if (x := vars(result)[name]) is not None}
        arrays |= {prefix + name: _to_host(x) for name, x in present.items()}
        return {name: vars(result)[name] for name in (*STATIC, *PROVENANCE)}
    groups = list(result.groups.items())
    return {
        "names": list(result.names),
        "estimates": {name: _taken_apart(e, f"{prefix}{name}.", arrays) for name, e in result.estimates.items()},
        "groups": [[label, _taken_apart(s, f"{prefix}{i}.", arrays)] for i, (label, s) in enumerate(groups)],
    }


def _put_together(file: _files.Archive, text: Any, prefix: str, like: Any) -> Estimate | Summary:
    """The inverse, of which nothing is believed."""
    if not isinstance(text, dict):
        raise ValueError("it does not say what it holds")
    if "estimates" not in text:
        return _estimate(file, text, prefix, like)
    unknown = set(text["estimates"]) - set(ESTIMATES)
    if unknown or not all(isinstance(name, str) for name in text["names"]):
        raise ValueError(f"it holds {', '.join(sorted(unknown))}, which no Summary has")
    parts = {name: _estimate(file, e, f"{prefix}{name}.", like) for name, e in text["estimates"].items()}
    groups: OrderedDict[str, Summary] = OrderedDict()
    for i, (label, part) in enumerate(text["groups"]):
        group = _put_together(file, part, f"{prefix}{i}.", like)
        if not isinstance(label, str) or not isinstance(group, Summary):
            raise ValueError("its groups are no Summaries")
        groups[label] = group
    return Summary(**parts, groups=groups, names=tuple(text["names"]))


def _estimate(file: _files.Archive, text: Any, prefix: str, like: Any) -> Estimate:
    static = _checked(text)
    shape, kind = file.header(f"{prefix}value")
    if len(shape) > 8:
        raise ValueError(f"its value has {len(shape)} axes")

    def fits(name: str) -> Any:
        expected = {"value": shape, "stderr": shape, "df": shape, "reach": (*shape, 2, len(skewed_intervals.LEVELS))}
        kinds = "fc" if name == "value" else "f"

        def of(found: tuple[int, ...], dtype: np.dtype) -> bool:
            if name == "samples":
                return dtype == kind and found[:-2] == shape and len(found) == len(shape) + 2 and found[-1] > 0
            return dtype.kind in kinds and found == expected[name]

        return of

    needed = ("value", "stderr", "df")
    present = [name for name in ARRAYS if name in needed or prefix + name in file]
    arrays: dict[str, Any] = {name: file.array(prefix + name, fits(name)) for name in present}
    if np.any(arrays["stderr"] < 0) or np.any(arrays["df"] < 0):
        raise ValueError("its standard error or degrees of freedom are negative")
    if like is not None:
        xp, device = aa.namespace(like), aa.device(like)
        arrays = {name: xp.asarray(x, device=device) for name, x in arrays.items()}
    return Estimate(**arrays, **static)


def _checked(text: Any) -> dict[str, Any]:
    """The fields that are no arrays, each of its kind."""
    if not isinstance(text, dict) or set(text) != {*STATIC, *PROVENANCE}:
        raise ValueError(f"it says nothing of {', '.join((*STATIC, *PROVENANCE))}, or of more")
    static = dict(text)
    for name in ("n_matvecs", "n_rmatvecs"):
        if type(static[name]) is not int or not 0 <= static[name] < 2**53:
            raise ValueError(f"its {name} is {static[name]!r}")
    if not all(isinstance(static[name], str) for name in ("method", "statistic")):
        raise ValueError("its method or statistic is no text")
    if static["converged"] not in (None, True, False):
        raise ValueError(f"its converged is {static['converged']!r}")
    static["bounds"], static["probes"] = tuple(static["bounds"]), tuple(static["probes"])
    numbers = len(static["bounds"]) == 2 and all(isinstance(x, (int, float)) for x in static["bounds"])
    if not numbers or math.isnan(sum(abs(x) for x in static["bounds"])) or static["bounds"][0] > static["bounds"][1]:
        raise ValueError(f"its bounds are {static['bounds']!r}")
    if not all(isinstance(mark, str) for mark in static["probes"]):
        raise ValueError("its marks of probes are no texts")
    if type(static["share"]) not in (int, float) or not 0 < static["share"] <= 1:
        raise ValueError(f"its share is {static['share']!r}")
    if static["shape"] is not None:
        rows, columns = static["shape"]
        static["shape"] = int(rows), int(columns)
    return static
