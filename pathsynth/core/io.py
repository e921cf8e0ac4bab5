"""File input and output: atomic writes, JSON, CSV, safetensors, .npy and .npz, each with errors that name the file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from pathsynth.core.errors import DataError, OutOfMemory, PathsynthError, one_line

if TYPE_CHECKING:
    import pandas as pd
    import torch

# Images compress little; higher levels take several times longer for a few per cent.
COMPRESS_LEVEL = 4
# A spreadsheet evaluates cells that begin with one of these (OWASP, CSV injection).
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the block succeeds.

    The temporary name keeps the suffix, by which many writers choose the format. Missing parent folders are made.

    Args:
        path: the file to write or to replace.

    Yields:
        The path to write to.

    Raises:
        DataError: for any OSError, such as a full disk. After this or any other error the temporary file is removed and an
            earlier file at `path` is unchanged.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(path, f"could not be written: {os_error_reason(error)}") from error
    finally:
        # an error here must not replace the one being raised
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def catch_read_errors(path: str | Path, kind: str) -> Iterator[None]:
    """Converts any exception from reading a file to a one-line error that names it.

    Args:
        path: the file that the block reads.
        kind: what the file should be, with its article, such as "a .npy file".

    Raises:
        DataError: if the file is missing, unreadable, damaged or in the wrong format. A PathsynthError passes unchanged.
        OutOfMemory: if it is larger than memory.
    """
    try:
        yield
    except PathsynthError:
        raise
    except OSError as error:
        raise DataError(path, f"could not be read: {os_error_reason(error)}") from error
    except MemoryError as error:
        raise OutOfMemory(f"{path} does not fit") from error
    except Exception as error:
        # on damaged input, zipfile, zlib, numpy and Python's parser raise a dozen exception types
        raise DataError(path, f"is not {kind}, or it is damaged: {one_line(error)}") from error


def os_error_reason(error: OSError) -> str:
    """Returns the system's message for an error, without the path."""
    return error.strerror or one_line(error)


def resolve_path(folder: Path, path: str) -> Path:
    """Resolves a path from params.yaml, which is relative to the file's folder and may begin with `~`.

    Raises:
        DataError: if `~user` names an unknown user.
    """
    try:
        return folder / Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(path, "names the home folder of an unknown user") from error


def portable_path(path: str) -> str:
    """Shortens an absolute path to its last name, because outs must not depend on the machine."""
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    return PureWindowsPath(path).name if absolute else path


def read_bytes(path: str | Path) -> bytes:
    """Reads a whole file.

    Raises:
        DataError: if the file cannot be read.
    """
    with catch_read_errors(path, "a file"):
        return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """Reads a UTF-8 text file.

    Raises:
        DataError: if the file cannot be read or is not UTF-8.
    """
    with catch_read_errors(path, "UTF-8 text"):
        return Path(path).read_bytes().decode("utf-8")


def write_text(path: str | Path, text: str) -> None:
    r"""Writes UTF-8 text atomically, with `\n` line ends on every system.

    Raises:
        DataError: if the file cannot be written.
    """
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def compute_sha256(path: str | Path) -> str:
    """Computes the SHA-256 of a file, in hexadecimal digits.

    Raises:
        DataError: if the file cannot be read.
    """
    with catch_read_errors(path, "a file"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: if the file is missing, is not JSON or does not hold an object.
    """
    return check_json_object(parse_json(read_bytes(path), path), path)


def parse_json(data: bytes, path: str | Path) -> Any:
    """Parses UTF-8 JSON; `path` is named in errors.

    Raises:
        DataError: if the bytes are not JSON, or hold NaN or an infinite number.
    """
    with catch_read_errors(path, "JSON"):
        value = json.loads(data.decode("utf-8"))
    _check_finite(value, path)
    return value


def check_json_object(value: Any, path: str | Path) -> dict[str, Any]:
    """Returns `value` if it is a JSON object.

    Raises:
        DataError: if it is not.
    """
    if not isinstance(value, dict):
        raise DataError(path, f"holds a JSON {type(value).__name__}, not an object")
    return value


def format_json(path: str | Path, data: Any) -> str:
    """Formats JSON for `path`: two spaces of indent, keys in the given order, one newline at the end.

    Raises:
        DataError: for NaN or an infinite number, naming its key.
    """
    _check_finite(data, path)
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write_json(path: str | Path, data: dict[str, Any]) -> None:
    """Writes a JSON object atomically, in the layout of `format_json`.

    Raises:
        DataError: for NaN or an infinite number, or if the file cannot be written.
    """
    write_text(path, format_json(path, data))


def _check_finite(data: Any, path: str | Path, key: str = "") -> None:
    """Raises DataError for the first NaN or infinite number in nested JSON data."""
    if isinstance(data, float) and not math.isfinite(data):
        raise DataError(path, f"{key.removeprefix('.')}: not a finite number ({data}), which JSON cannot hold")
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list | tuple) else ()
    for name, value in items:
        _check_finite(value, path, f"{key}.{name}")


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    r"""Writes the columns of a table atomically, without its index and with `\n` line ends.

    Text that a spreadsheet would evaluate as a formula is prefixed with an apostrophe, which the spreadsheet hides.

    Raises:
        DataError: if the file cannot be written.
    """
    from pandas.api import types

    text_columns = {name: column.map(_escape_formula) for name, column in frame.items() if not types.is_numeric_dtype(column)}
    frame = frame.assign(**text_columns)
    with atomic_write(path) as part:
        frame.to_csv(part, index=False, lineterminator="\n", encoding="utf-8")


def _escape_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_PREFIXES) else value


def write_safetensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors atomically as a .safetensors file.

    Raises:
        DataError: if the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    try:
        with atomic_write(path) as part:
            # not save_file, whose files only their owner can read
            part.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata))
    except SafetensorError as error:
        raise DataError(path, f"could not be written: {one_line(error)}") from error


def read_npy(path: str | Path) -> np.ndarray:
    """Opens a .npy file as a read-only memory map, without pickle.

    Raises:
        DataError: if the file is missing, damaged, truncated or holds pickled objects.
    """
    with catch_read_errors(path, "a .npy file"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def write_npy_chunks(path: str | Path, shape: tuple[int, ...], dtype: np.dtype, chunks: Iterable[np.ndarray]) -> None:
    """Writes the chunks of an array, split along its first axis, as one .npy file.

    Not atomic: wrap it in `atomic_write`. On a full disk it raises an error, where a memory map would cause a SIGBUS.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the chunks do not add up to `shape`.
    """
    with open(path, "wb") as file:
        _write_array(file, shape, dtype, chunks)


def write_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Writes arrays atomically as `numpy.savez_compressed` does, but with the same bytes for the same arrays.

    Raises:
        DataError: if the file cannot be written.
        ValueError: for an array of objects.
    """
    write_npz_chunks(path, {key: (array.shape, array.dtype, [array]) for key, array in arrays.items()})


def write_npz_chunks(path: str | Path, members: Mapping[str, tuple[tuple[int, ...], np.dtype, Iterable[np.ndarray]]]) -> None:
    """Writes arrays as `write_npz` does, each given as its shape, its dtype and its chunks along the first axis.

    Raises:
        DataError: if the file cannot be written.
        ValueError: if chunks do not add up to their shape.
    """
    with atomic_write(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESS_LEVEL) as archive:
        for key, array in members.items():
            # a member that is opened by name is dated 1980-01-01, whatever the clock shows
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                _write_array(member, *array)


def _write_array(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype, chunks: Iterable[np.ndarray]) -> None:
    if dtype.hasobject:
        raise ValueError("arrays of Python objects need pickle, which is never written")
    npy.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": npy.dtype_to_descr(dtype)})
    # file.write, because ndarray.tofile does not report why a write failed
    written = sum(file.write(np.ascontiguousarray(chunk).data) for chunk in chunks)
    if written != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"chunks of {written} bytes do not add up to {dtype} {shape}")


def read_npz(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the named arrays of an .npz archive, in the order of `keys`, without pickle.

    Raises:
        DataError: if the file is missing or damaged, lacks a key, or a member holds pickled objects.
    """
    arrays = {}
    with _open_npz(path, keys) as archive:
        for key in keys:
            _read_header(archive, key)
            with archive.open(f"{key}.npy") as member:
                arrays[key] = npy.read_array(member, allow_pickle=False)
    return arrays


def read_npz_shapes(path: str | Path, keys: Sequence[str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Reads the shapes and dtypes of the named arrays of an .npz archive from their headers.

    Raises:
        DataError: as `read_npz`.
    """
    with _open_npz(path, keys) as archive:
        headers = {key: _read_header(archive, key) for key in keys}
    return {key: (shape, dtype) for key, (shape, _, dtype, _) in headers.items()}


def stream_npz(path: str | Path, key: str, rows: int) -> Iterator[np.ndarray]:
    """Yields one array of an .npz archive in chunks along its first axis, for arrays larger than memory.

    The archive's checksum is compared when the last chunk has been read.

    Args:
        path: the archive.
        key: name of an array in C order, numpy's default.
        rows: maximum rows of a chunk.

    Yields:
        Arrays (n, ...) with n <= rows, together the whole array.

    Raises:
        DataError: as `read_npz`, or if the array is not in C order.
    """
    with _open_npz(path, [key]) as archive:
        shape, fortran, dtype, start = _read_header(archive, key)
        if fortran and len(shape) > 1:
            raise DataError(path, f"{key}: is in Fortran order; save it again after numpy.ascontiguousarray")
        with archive.open(f"{key}.npy") as member:
            member.read(start)
            for first in range(0, shape[0], rows):
                chunk_shape = (min(rows, shape[0] - first), *shape[1:])
                data = member.read(math.prod(chunk_shape) * dtype.itemsize)
                yield np.frombuffer(data, dtype).reshape(chunk_shape)


@contextmanager
def _open_npz(path: str | Path, keys: Sequence[str]) -> Iterator[zipfile.ZipFile]:
    """Opens an archive that must have the keys; errors while it is read name the file."""
    with catch_read_errors(path, "an .npz archive"), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if missing := [key for key in keys if key not in names]:
            raise DataError(path, f"has no array {', '.join(missing)}; it holds {', '.join(names) or 'none'}")
        yield archive


def _read_header(archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Reads shape, Fortran order, dtype and header length of a member, and checks its size before memory is allocated."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as member:
        read = npy.read_array_header_1_0 if npy.read_magic(member) == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(member)
        start = member.tell()
    if dtype.hasobject:
        raise ValueError(f"{key} holds pickled Python objects, which are never loaded; store numbers")
    # Python's integers do not overflow, as numpy's product of a shape would
    expected, actual = math.prod(shape) * dtype.itemsize, info.file_size - start
    if expected != actual:
        raise ValueError(f"{key} has shape {shape} of {dtype}, {expected} bytes, but holds {actual} bytes")
    return shape, fortran, dtype, start
