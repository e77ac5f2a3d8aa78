"""Estimates on disk, so that a killed run goes on."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest._settings import usual
from traceest.estimate import ARRAYS, STATIC, Estimate, _to_host


@usual
def save(estimate: Estimate, path: str | PathLike[str]) -> None:
    """Write `estimate` to an ``.npz`` file, its samples included.

    Parameters
    ----------
    estimate : Estimate
        From any backend.
    path : path
        NumPy adds the ending ``.npz`` where it is missing.

    Examples
    --------
    >>> import numpy as np, os, tempfile, traceest as te
    >>> path = os.path.join(tempfile.mkdtemp(), "run.npz")
    >>> te.save(te.hutchinson(np.eye(9) + 1, 4, rng=0), path)
    >>> te.load(path).n_matvecs
    4
    """
    arrays = {name: _to_host(getattr(estimate, name)) for name in ARRAYS if getattr(estimate, name) is not None}
    static = {name: getattr(estimate, name) for name in STATIC}
    np.savez(path, static=np.asarray(json.dumps(static)), **arrays)


@usual
def load(path: str | PathLike[str], *, like: Any = None) -> Estimate:
    """Read an Estimate written by `save`.

    To go on with a sampling estimate, run the estimator with *other* probes (another seed) and merge.

    Parameters
    ----------
    path : path
        The file, ending included.
    like : array, optional
        Namespace and device of the arrays; NumPy if absent.

    Returns
    -------
    Estimate

    Raises
    ------
    ValueError
        If the file was not written by `save`.

    Examples
    --------
    >>> import numpy as np, os, tempfile, traceest as te
    >>> A, path = np.eye(90) + 1, os.path.join(tempfile.mkdtemp(), "run.npz")
    >>> te.save(te.hutchinson(A, 4, rng=0), path)
    >>> te.load(path).merge(te.hutchinson(A, 6, rng=1)).n_matvecs
    10
    """
    with np.load(path) as file:
        if "static" not in file or "value" not in file:
            raise ValueError(f"load: {path} holds no Estimate; expected a file written by traceest.save.")
        static = json.loads(str(file["static"]))
        arrays: dict[str, Any] = {name: file[name] for name in ARRAYS if name in file}
    if like is not None:
        xp, device = aa.namespace(like), aa.device(like)
        arrays = {name: xp.asarray(x, device=device) for name, x in arrays.items()}
    return Estimate(**arrays, **static | {"bounds": tuple(static["bounds"])})
