"""The state of a sampler on disk, so that a killed run goes on."""

from __future__ import annotations

import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest.estimate import _to_host


class Checkpoint:
    """An ``.npz`` file that a sampler's state is written to after each growth, and taken up from.

    Parameters
    ----------
    path : path
        The file; it need not exist yet.
    run : dict
        What must be the same for the state to fit: method, shape, dtype and law of the probes.
    """

    def __init__(self, path: str | PathLike[str], run: dict[str, Any]) -> None:
        self.path, self.run = Path(path), run

    def load(self, like: Any) -> dict[str, Any] | None:
        """The state, on the device of `like`, or None if there is no file yet.

        Raises
        ------
        ValueError
            If the file is no checkpoint, or one of another run.
        """
        if not self.path.exists():
            return None
        with np.load(self.path) as file:
            if "run" not in file:
                raise ValueError(f"trace: {self.path} is not a checkpoint; give checkpoint= a path of its own.")
            run = json.loads(str(file["run"]))
            arrays: dict[str, Any] = {name: file[name] for name in file.files if name != "run"}
        for name, ours in self.run.items():
            if run.get(name) != ours:
                raise ValueError(
                    f"trace: the checkpoint {self.path} is of another run: its {name} is {run.get(name)!r}, this one's "
                    f"{ours!r}; give checkpoint= another path, or delete the file."
                )
        xp, device = aa.namespace(like), aa.device(like)
        return {name: x if x.ndim == 0 else xp.asarray(x, device=device) for name, x in arrays.items()}

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` in one step: a run killed meanwhile leaves the file as it was."""
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, run=np.asarray(json.dumps(self.run)), **{k: _to_host(v) for k, v in state.items()})
        os.replace(partial, self.path)
