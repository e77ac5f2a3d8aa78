"""What is gone on from is looked at first: of another operator, or from a file that tells what is not so, it fails."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import operators_zoo as zoo
import pytest
import torch
from assertions import Counter

import traceest as te
from traceest import _files

N = 120
J = zoo.jacobian(4, N // 4, 150)


def columns_alone(J: Any) -> Any:
    return te.gram(te.Operator(J.shape, like=J, matmat=lambda X: J @ X))


# Each sampler: how the operator is made of a matrix (the factor of a Gram one), the matrix, and the options.
SAMPLERS: dict[str, tuple[Callable[[Any], Any], np.ndarray, dict[str, Any]]] = {
    "hutchinson": (te.aslinearoperator, zoo.nonsymmetric(N), {"method": "hutchinson"}),
    "hutchinson, complex": (te.aslinearoperator, zoo.complex_general(N), {"method": "hutchinson"}),
    "hutchinson, skew": (
        te.aslinearoperator,
        zoo.nonsymmetric(N) - zoo.nonsymmetric(N).T,
        {"method": "hutchinson"},
    ),
    "rhutch of blocks": (lambda J: te.gram(J, n_blocks=4), J, {}),
    "rhutch, balanced": (lambda J: te.gram(J, n_blocks=4), J, {"distribution": "balanced"}),
    "fhutch": (columns_alone, J[:, :N], {}),
    "hutchpp": (te.aslinearoperator, zoo.spectral("poly", N), {"method": "hutchpp"}),
    "xtrace": (te.aslinearoperator, zoo.spectral("slowexp", N), {"method": "xtrace"}),
    "xnystrace": (lambda A: te.aslinearoperator(A, psd=True), zoo.spectral("poly", N), {}),
    "auto": (te.aslinearoperator, zoo.indefinite(N), {}),
    "one block, by vjps first": (te.gram, J, {"max_matvecs": 200}),
}
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "another": lambda A: A[::-1].copy() + np.eye(*A.shape),
    "a training step": lambda A: A + 1e-4 * np.random.default_rng(0).standard_normal(A.shape),
    "twice": lambda A: 2 * A,
    "one row": lambda A: A + (np.arange(len(A)) == 5)[:, None] * 0.1,
}


class Killed(Exception):
    """What ends a run from outside."""


def killed(_: te.Estimate) -> None:
    raise Killed


def begin(how: str, path: Path, as_array: Callable[[Any], Any] = np.asarray) -> tuple[Any, Any, dict[str, Any]]:
    make, A, options = SAMPLERS[how]
    asked = {"rtol": 1e-7, "max_matvecs": 60, "rng": 3, "checkpoint": path} | options
    with pytest.raises(Killed):
        te.trace(make(as_array(A)), **asked, callback=killed)
    return make, A, asked


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", SAMPLERS)
def test_a_checkpoint_of_another_operator_is_refused(how: str, change: str, tmp_path: Path) -> None:
    make, A, asked = begin(how, tmp_path / "run.npz")
    before = (tmp_path / "run.npz").read_bytes()
    with pytest.raises(ValueError, match="of another operator: its first probe gives a product"):
        te.trace(make(CHANGES[change](A)), **asked)
    assert (tmp_path / "run.npz").read_bytes() == before, "what was paid for is left as it was"
    assert te.trace(make(A), **asked).n_products > 0


@pytest.mark.parametrize("how", ["hutchinson", "rhutch of blocks", "xnystrace", "hutchpp"])
def test_verifying_costs_one_product_and_says_so(how: str, tmp_path: Path) -> None:
    make, A, asked = begin(how, tmp_path / "run.npz")
    whole = te.trace(make(A), **asked | {"checkpoint": tmp_path / "whole.npz"})
    for times in (1, 2):
        counter, told = Counter(te.aslinearoperator(A, n_blocks=4 if "blocks" in how else None)), []
        with pytest.raises(Killed):
            te.trace(_of(make, counter, how), **asked, explain=told.append, callback=killed)
        assert counter.n_matvecs + counter.n_rmatvecs == 1, times
        assert any("whose first probe gives the same product" in line for line in told)
    resumed = te.trace(make(A), **asked)
    assert resumed.n_products == whole.n_products + 3, "a product for each time that it was gone on with"
    assert float(resumed) == pytest.approx(float(whole), rel=1e-10)


def _of(make: Callable[[Any], Any], counter: Counter, how: str) -> Any:
    if "blocks" in how:
        return te.gram(counter)
    counter.psd = how == "xnystrace"
    counter.symmetric = counter.psd
    return counter


@pytest.mark.parametrize(
    ("framework", "how", "dtype"),
    [
        *(("torch", how, "float64") for how in ("hutchinson", "rhutch of blocks", "xnystrace", "hutchpp", "auto")),
        *(("torch", how, "float32") for how in ("hutchinson", "rhutch of blocks", "xnystrace")),
        pytest.param("jax", "rhutch of blocks", "float32", marks=pytest.mark.slow),
        ("jax", "xnystrace", "float64"),
    ],
)
def test_operators_of_frameworks_are_verified_too(framework: str, how: str, dtype: str, tmp_path: Path) -> None:
    def as_array(x: Any) -> Any:
        return torch.as_tensor(x.astype(dtype)) if framework == "torch" else jnp.asarray(x.astype(dtype))

    make, A, asked = begin(how, tmp_path / "run.npz", as_array)
    with pytest.raises(ValueError, match="of another operator"):
        te.trace(make(as_array(1.01 * A)), **asked)
    # What rounding does is no other operator.
    noise = 1 + 3 * np.finfo(dtype).eps * np.random.default_rng(0).standard_normal(A.shape)
    assert te.trace(make(as_array(A * noise)), **asked).n_products > 20


@pytest.mark.parametrize("how", ["hutchinson", "hutchinson, skew", "rhutch of blocks", "fhutch"])
def test_an_estimate_of_another_operator_is_not_gone_on_from(how: str, tmp_path: Path) -> None:
    make, A, options = SAMPLERS[how]
    options = {"rtol": 1e-9, "max_matvecs": 20, "method": "hutchinson"} | options
    start = te.trace(make(A), rng=0, **options)
    te.save(start, tmp_path / "start.npz")
    for first in (start, te.load(tmp_path / "start.npz")):
        for change in ("another", "a training step") if "skew" not in how else ("another",):
            with pytest.raises(ValueError, match="of another operator"):
                te.trace(make(CHANGES[change](A)), rng=1, start=first, **options)
        assert te.trace(make(A), rng=1, start=first, **options | {"max_matvecs": 29}).samples.shape[1] == 29 - 0
        with pytest.raises(ValueError, match="start= rests on the probes that rng= would draw again"):
            te.trace(make(A), rng=0, start=first, **options)


# -- writing ------------------------------------------------------------------------------------------------------
def tracker() -> te.Tracker:
    found = te.Tracker(3, rng=0)
    found.update(te.gram(J, n_blocks=4))
    return found


WRITERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": lambda path: te.trace(np.diag(1.0 / np.arange(1.0, 81)), rtol=0.2, rng=0, checkpoint=path),
    "save": lambda path: te.save(te.hutchinson(np.eye(40) + 1, 4, rng=0), path),
    "save a summary": lambda path: te.save(te.summary(np.eye(40) + 1, n_matvecs=4, rng=0), path),
    "table": lambda path: tracker().to_csv(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path = tmp_path / "run.npz"
    links = [tmp_path / "run.npz.partial", tmp_path / ".run.npz.partial"]
    for link in links if name == "checkpoint" else [path, *links]:  # a checkpoint that is there is read first
        link.symlink_to(precious)
    WRITERS[name](path)
    assert precious.read_text() == "precious"
    assert path.is_file()
    assert not path.is_symlink()
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"precious", "run.npz", "run.npz.partial", ".run.npz.partial"}, "no partial file is left behind"


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_leaves_what_was_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.npz"
    WRITERS[name](path)
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_a_file_is_complete_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace, seen = tmp_path / "run.npz", os.replace, []

    def watched(source: Any, target: Any) -> None:
        seen.append(te.load(source).n_matvecs)
        assert not Path(target).exists()
        assert Path(source).parent == Path(target).parent, "within one file system, where it is one step"
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    WRITERS["save"](path)
    assert seen == [4]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_file_has_the_permissions_that_any_file_has(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    WRITERS["save"](tmp_path / "run.npz")
    assert (tmp_path / "run.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("place", ["missing", "a file", "a folder"])
def test_a_place_that_takes_no_file_is_named(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    path = tmp_path / place / "run.npz"
    if place == "a folder":
        path.mkdir(parents=True)
    with pytest.raises(OSError, match=r"cannot write to the folder|a folder is in the way"):
        WRITERS[name](path)


def test_a_missing_folder_is_noticed_before_anything_is_paid_for(tmp_path: Path) -> None:
    counter = Counter(te.aslinearoperator(zoo.spectral("poly", N)))
    with pytest.raises(FileNotFoundError, match="trace: cannot write to the folder"):
        te.trace(counter, rng=0, checkpoint=tmp_path / "missing" / "run.npz")
    assert counter.n_matvecs == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_is_noticed(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write to the folder"):
        WRITERS["checkpoint"](tmp_path / "run.npz")
    tmp_path.chmod(0o700)


def test_two_threads_write_one_file(tmp_path: Path) -> None:
    path, failed = tmp_path / "run.npz", []

    def write(seed: int) -> None:
        try:
            for i in range(40):
                te.save(te.hutchinson(np.eye(20) + 1, 4, rng=seed + i), path)
                assert te.load(path).n_matvecs == 4
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(100 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, traceest as te\n"
        "for i in range(60):\n"
        "    te.trace(np.diag(1 / np.arange(1.0, 81)), rtol=0.3, rng=0, checkpoint=sys.argv[1])\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run.npz")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


# -- reading ------------------------------------------------------------------------------------------------------
class Bomb:
    """What a pickle may do to whoever opens it."""

    def __reduce__(self) -> Any:
        return os.mkdir, (Bomb.target,)


def npy(x: Any, header: str | None = None) -> bytes:
    """A member of an archive, with another header where one is given."""
    out = io.BytesIO()
    np.save(out, x, allow_pickle=True)
    if header is None:
        return out.getvalue()
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64


def rewritten(path: Path, compress: bool = False, **members: Any) -> None:
    """The archive with these members instead: arrays, bytes of members, or None for none."""
    with zipfile.ZipFile(path) as file:
        kept = {name.removesuffix(".npy"): file.read(name) for name in file.namelist()}
    kept |= members
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as file:
        for name, x in kept.items():
            if x is not None:
                file.writestr(f"{name}.npy", x if isinstance(x, bytes) else npy(x))


def huge(dtype: str = "<f8") -> bytes:
    return npy(0, f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (80, 1000000000), }}")


def text(x: Any) -> np.ndarray:
    return np.asarray(json.dumps(x))


def broken(path: Path, raw: bytes, array: str, words: str, count: str) -> dict[str, Callable[[], Any]]:
    """Ways to break a file: `array`, `words` and `count` are names of members of it."""

    def twice() -> None:
        with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr(f"{array}.npy", npy(np.zeros((80, 4))))

    def flipped() -> None:
        at = raw.index(b"\x93NUMPY", raw.index(f"{array}.npy".encode())) + 140
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])

    return {
        "empty": lambda: path.write_bytes(b""),
        "truncated": lambda: path.write_bytes(raw[:-10]),
        "half": lambda: path.write_bytes(raw[: len(raw) // 2]),
        "text": lambda: path.write_text("hello " * 50),
        "an array": lambda: path.write_bytes(npy(np.zeros(3))),
        "a pickle": lambda: path.write_bytes(npy(np.array([Bomb()], dtype=object))),
        "bits flipped": flipped,
        "foreign": lambda: np.savez(path, x=np.zeros(3)),
        "no arrays": lambda: rewritten(path, **{array: None}),
        "pickled member": lambda: rewritten(path, **{array: np.array([[Bomb()]], dtype=object)}),
        "pickled words": lambda: rewritten(path, **{words: np.array(Bomb(), dtype=object)}),
        "words that are no JSON": lambda: rewritten(path, **{words: np.asarray("hello")}),
        "words that are a list": lambda: rewritten(path, **{words: text([1])}),
        "words that never end": lambda: rewritten(path, **{words: np.asarray("[" * 100_000)}),
        "words too many": lambda: rewritten(path, **{words: np.asarray(" " * 2**21)}),
        "compressed": lambda: rewritten(path, compress=True, **{array: np.zeros((80, 100_000))}),
        "a header that lies": lambda: rewritten(path, **{array: huge()}),
        "a header that asks for less": lambda: rewritten(
            path, **{array: npy(0, "{'descr': '<f8', 'fortran_order': False, 'shape': (80, -1), }")}
        ),
        "no header": lambda: rewritten(path, **{array: b"\x93NUMPY\x01\x00\x04\x00((((" + b"\0" * 64}),
        "no NumPy": lambda: rewritten(path, **{array: b"hello"}),
        "texts for numbers": lambda: rewritten(path, **{array: np.full((80, 10), "a")}),
        "another shape": lambda: rewritten(path, **{array: np.zeros((3, 2, 1))}),
        "another dtype": lambda: rewritten(path, **{array: np.zeros((80, 10), dtype=np.float16)}),
        "twice": twice,
        "a count that is a list": lambda: rewritten(path, **{count: np.asarray([1, 2])}),
    }


@pytest.mark.parametrize("reader", ["trace", "load"])
def test_broken_and_hostile_files_are_refused_as_what_they_are(reader: str, tmp_path: Path) -> None:
    A, path = te.aslinearoperator(np.diag(1.0 / np.arange(1, 81)), psd=True), tmp_path / "run.npz"
    Bomb.target = str(tmp_path / "exploded")
    if reader == "trace":
        te.trace(A, rtol=0.2, rng=0, checkpoint=path)
        members = "products", "run", "n_matvecs"
        read = lambda: te.trace(A, rtol=1e-2, rng=0, checkpoint=path)  # noqa: E731
    else:
        te.save(te.hutchinson(A, 10, rng=0), path)
        members = "samples", "static", "value"
        read = lambda: te.load(path)  # noqa: E731
    raw = path.read_bytes()
    for name, spoil in broken(path, raw, *members).items():
        if (reader, name) == ("load", "no arrays"):  # samples may be missing
            continue
        path.write_bytes(raw)
        spoil()
        with pytest.raises(ValueError, match=r"run\.npz") as error:
            read()
        assert type(error.value) is ValueError, name
        assert "expected" in str(error.value) or "give checkpoint=" in str(error.value), name
    path.write_bytes(raw)
    assert read().n_matvecs >= 10
    assert not Path(Bomb.target).exists()


NUMBERS: dict[str, dict[str, Any]] = {
    "negative": {"n_matvecs": np.asarray(-1000)},
    "beyond": {"n_matvecs": np.asarray(2**62)},
    "a fraction": {"n_matvecs": np.asarray(10.5)},
    "too few": {"n_matvecs": np.asarray(0)},
    "more drawn than seen": {"drawn": np.asarray(10**9)},
    "fewer probes than products": {"probes": np.zeros((80, 3))},
    "no witness": {"witness": None},
    "NaN": {"products": np.full((80, 10), np.nan)},
    "another witness": {"witnessed": np.zeros((80, 1))},
    "looks": {"looks": np.zeros((3, 3))},
    "no looks": {"looks": None},
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    A, path = te.aslinearoperator(np.diag(1.0 / np.arange(1, 81)), psd=True), tmp_path / "run.npz"
    te.trace(A, rtol=0.2, rng=0, checkpoint=path)
    rewritten(path, **NUMBERS[name])
    with pytest.raises(ValueError, match="trace: "):
        te.trace(A, rtol=1e-2, rng=0, checkpoint=path)


SETS: dict[str, Any] = {
    "signs": np.zeros((1, N), np.int8),
    "shuffled": np.full(32, 32),
    "turns": None,
    "twists": np.full((4, 8), -1),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_signs_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    make, A, asked = begin("rhutch of blocks", tmp_path / "run.npz")
    assert "signs" in np.load(tmp_path / "run.npz")
    rewritten(tmp_path / "run.npz", **{name: SETS[name]})
    with pytest.raises(ValueError, match="broken"):
        te.trace(make(A), **asked)


WORDS: dict[str, Any] = {
    "n_matvecs": -1,
    "n_rmatvecs": 1.5,
    "converged": "yes",
    "method": 3,
    "bounds": [2.0, 1.0],
    "statistic": None,
    "probes": [1],
    "shape": [1, 2, 3],
    "more": 1,
}


@pytest.mark.parametrize("field", WORDS)
def test_an_estimate_that_says_what_none_says_is_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    te.save(te.hutchinson(np.eye(40) + 1, 4, rng=0), path)
    static = json.loads(str(np.load(path)["static"]))
    rewritten(path, static=text(static | {field: WORDS[field]}))
    with pytest.raises(ValueError, match=r"load: .* is broken"):
        te.load(path)
    rewritten(path, static=text(static), stderr=np.asarray(-1.0))
    with pytest.raises(ValueError, match="negative"):
        te.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="is no regular file"):
        te.load(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="is no regular file"):
        WRITERS["checkpoint"](tmp_path / "run.npz")


def test_a_large_file_is_not_read_for_what_it_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with much else in it only the members that are looked for are read."""
    path = tmp_path / "run.npz"
    te.save(te.hutchinson(np.eye(40) + 1, 4, rng=0), path)
    rewritten(path, other=np.zeros(1000))
    read, names = _files.Archive._open, []

    def watched(self: Any, name: str) -> Any:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(_files.Archive, "_open", watched)
    assert te.load(path).n_matvecs == 4
    assert "other" not in names


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no regular file"):
        te.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        te.load(tmp_path / "run.npz")


def test_what_is_packed_or_says_more_than_it_holds_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by what the directory and the header say, before there is an array of that size."""
    path = tmp_path / "run.npz"
    te.save(te.hutchinson(np.eye(40) + 1, 4, rng=0), path)
    read = np.lib.format.read_array

    def watched(file: Any, **options: Any) -> Any:
        x = read(file, **options)
        assert x.nbytes < 10_000
        return x

    monkeypatch.setattr(np.lib.format, "read_array", watched)
    rewritten(path, compress=True, samples=np.zeros((1, 100_000)))
    with pytest.raises(ValueError, match="is compressed, or larger than the file itself"):
        te.load(path)
    rewritten(path, samples=npy(0, "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1000000000000), }"))
    with pytest.raises(ValueError, match="which its size does not fit"):
        te.load(path)


def test_a_size_of_which_the_directory_lies_is_not_asked_for(tmp_path: Path) -> None:
    """A member that is said to be larger than the file, by its header and by the archive's directory alike."""
    path = tmp_path / "run.npz"
    te.save(te.hutchinson(np.eye(40) + 1, 4, rng=0), path)
    rewritten(path, samples=npy(0, "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 100000000), }"))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"samples.npy") - 46 + 24  # of the uncompressed size, in the directory at the end
    raw[at : at + 4] = (128 + 8 * 10**8).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="is compressed, or larger than the file itself"):
        te.load(path)


def test_arrays_that_no_estimate_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    e = te.hutchinson(np.eye(40) + 1, 4, rng=0)
    te.save(e, path)
    rewritten(path, samples=np.zeros((1, 0)))
    with pytest.raises(ValueError, match="do not fit the rest"):
        te.load(path)
    axes = (1,) * 9
    rewritten(path, samples=None, reach=None, **dict.fromkeys(("value", "stderr", "df"), np.ones(axes)))
    with pytest.raises(ValueError, match="its value has 9 axes"):
        te.load(path)


def test_numbers_of_another_machine_come_in_the_order_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    e = te.hutchinson(np.eye(40) + 1, 4, rng=0)
    te.save(e, path)
    names = [name for name in ("value", "stderr", "df", "samples", "reach") if getattr(e, name) is not None]
    rewritten(path, **{name: np.asarray(getattr(e, name)).astype(">f8") for name in names})
    for name in names:
        found = getattr(te.load(path), name)
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, getattr(e, name))


def test_a_count_is_not_negative(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    for n in (-1, 2**53):
        np.savez(path, n=np.asarray(n))
        with (
            pytest.raises(ValueError, match="which no run has counted"),
            _files.archive(path, "test", "a count") as file,
        ):
            file.number("n")


def test_a_file_that_is_there_already_is_not_taken_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one whose name somebody has foreseen."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    monkeypatch.setattr(_files.secrets, "token_hex", lambda n: "0")
    (tmp_path / ".run.npz.0.partial").symlink_to(precious)
    with pytest.raises(FileExistsError):
        WRITERS["save"](tmp_path / "run.npz")
    assert precious.read_text() == "precious"
