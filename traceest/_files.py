"""Files that are written whole or not at all, and read without being believed."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any

import numpy as np

Header = tuple[tuple[int, ...], np.dtype]
"""Shape and dtype of an array that has not been read."""

TEXT = 2**20
"""Most characters of the text in an archive: it names fields, and holds no data."""


def as_path(path: str | PathLike[str], caller: str) -> Path:
    """The path of a file that can be written, found out without leaving anything behind.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError
        If its folder is missing or takes no files, or if it is itself a folder.
    """
    path = Path(os.fsdecode(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{caller}: a folder is in the way; give the path of a file", str(path))
    partial = _new(path, caller)
    partial.unlink()
    return path


@contextmanager
def replacing(path: Path, caller: str, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A new file beside `path` that takes its place at the end, in one step; after an error nothing has happened.

    It has a name that nobody can foresee, and is never a link; where `path` is one, the link is replaced and what it
    points at is left alone. Whoever writes the same path at the same time writes another file; the last one stays.
    """
    partial = _new(path, caller)
    try:
        with open(partial, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a machine that stops may leave the new name with none of the content
        os.replace(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise


def _new(path: Path, caller: str) -> Path:
    """An empty file of a new name in the folder of `path`, with the permissions that any new file has."""
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.partial")
    try:
        # O_EXCL: no link is followed, and nothing that is there already is touched.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        kind = type(error)
        why = error.strerror or str(error)
        raise kind(error.errno, f"{caller}: cannot write to the folder ({why})", str(path.parent)) from error
    return partial


def write_archive(path: Path, caller: str, text: dict[str, Any], arrays: dict[str, Any]) -> None:
    """NumPy's ``.npz`` of JSON texts and arrays, in one step."""
    members: Any = {name: np.asarray(json.dumps(x, default=lambda x: x.item())) for name, x in text.items()}
    with replacing(path, caller) as file:
        np.savez(file, **members, **arrays)


class Archive:
    """An ``.npz`` file of which members are looked at by name, and their sizes before anything of them is read.

    Nothing is unpickled, and nothing unpacked: members are as large as they are in the file, so that a small file
    cannot ask for much memory.
    """

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        self._file, self._size = file, size
        self._members: dict[str, list[zipfile.ZipInfo]] = {}
        for member in file.infolist():
            self._members.setdefault(member.filename, []).append(member)

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._members

    def header(self, name: str) -> Header:
        """Shape and dtype of a member."""
        with self._open(name) as file:
            shape, dtype, _ = self._header(name, file)
        return shape, dtype

    def text(self, name: str) -> Any:
        """What the JSON of a member says."""
        shape, dtype = self.header(name)
        if shape != () or dtype.kind != "U" or dtype.itemsize > 4 * TEXT:
            raise ValueError(f"its {name!r} is no text of at most {TEXT} characters")
        return json.loads(str(self._read(name)))

    def array(self, name: str, fits: Callable[[tuple[int, ...], np.dtype], bool]) -> Any:
        """The numbers of a member, once its shape and dtype are found to fit."""
        shape, dtype = self.header(name)
        if dtype.kind not in "biufc" or not fits(shape, dtype):
            raise ValueError(f"its {name!r} has shape {shape} and dtype {dtype}, which do not fit the rest")
        return np.asarray(self._read(name), dtype=dtype.newbyteorder("="))

    def number(self, name: str) -> int:
        """A whole number that is not negative."""
        n = int(self.array(name, lambda shape, dtype: shape == () and dtype.kind in "iu"))
        if not 0 <= n < 2**53:
            raise ValueError(f"its {name!r} is {n}, which no run has counted")
        return n

    def _open(self, name: str) -> IO[bytes]:
        members = self._members.get(f"{name}.npy", [])
        if len(members) != 1:
            raise ValueError(f"it has {len(members)} members {name!r}, expected one")
        (member,) = members
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > self._size:
            raise ValueError(f"its {name!r} is compressed, or larger than the file itself")
        return self._file.open(member)

    def _header(self, name: str, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
        """Shape, dtype and place of the numbers, which have to be as many as there are bytes for."""
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its {name!r} is in format {version} of NumPy's")
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        start, (member,) = file.tell(), self._members[f"{name}.npy"]
        n = 1
        for d in shape:
            n *= int(d)
        if min(shape, default=0) < 0 or dtype.hasobject or start + n * dtype.itemsize != member.file_size:
            raise ValueError(f"its {name!r} says shape {shape} and dtype {dtype}, which its size does not fit")
        return shape, dtype, start

    def _read(self, name: str) -> Any:
        with self._open(name) as file:
            x = np.lib.format.read_array(file, allow_pickle=False)
            file.read(1)  # at the end of a member its checksum is compared
        return x


@contextmanager
def archive(path: Path, caller: str, expected: str) -> Iterator[Archive]:
    """Read an archive; whatever is wrong with it is a ValueError that says so.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is not what was expected.
    """
    fd = os.open(path, os.O_RDONLY | vars(os).get("O_NONBLOCK", 0) | vars(os).get("O_BINARY", 0))
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
        os.close(fd)
        raise ValueError(f"{caller}: {path} is no regular file; expected {expected}.")
    with open(fd, "rb") as file:
        try:
            with zipfile.ZipFile(file) as members:
                yield Archive(members, status.st_size)
        except Refused as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # of zipfile, zlib, struct, json and NumPy, each of its own kind
            raise ValueError(
                f"{caller}: {path} is broken, or no file of this library ({error or type(error).__name__}); "
                f"expected {expected}."
            ) from error


class Refused(ValueError):
    """Why a file that can be read is not the one that was asked for."""
