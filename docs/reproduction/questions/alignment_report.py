"""Tables and figure of the alignment study."""

from __future__ import annotations
from pathlib import Path
from typing import Any
def tables(result): return []
def draw(result, path): pass
