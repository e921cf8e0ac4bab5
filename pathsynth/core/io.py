"""Files that are whole or absent: writing through a temporary file, and reading without trusting what the file says."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import platform
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
from numpy.lib import format as npy

from pathsynth.core.errors import DataError, one_line

if TYPE_CHECKING:
    import pandas as pd
    import torch

# Images compress little; higher levels take several times longer for a few per cent.
COMPRESS_LEVEL = 4
# Deflate cannot make anything smaller than by 1032 (zlib's technical notes), so a member that claims more is not what it says.
MOST_DEFLATE = 1032
HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# With these a cell of a spreadsheet begins that is calculated (OWASP, CSV injection).
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# What zipfile, zlib and numpy raise for damaged bytes; tokenize and SyntaxError come from a header that is no Python literal.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    SyntaxError,
    ValueError,
)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place once the block has ended well.

    The temporary name keeps the suffix, by which many writers choose the format. Missing parent folders are made, and what a
    killed process has left of the same file is removed.

    Args:
        path: the file to write or to replace.

    Yields:
        The path to write to.

    Raises:
        DataError: for any OSError, a full disk among them. After this or any other error the temporary file is gone and an
            earlier file at `path` is as it was.
    """
    path = Path(path)
    part = _part(path, f"{_machine()}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_parts(path)
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(path, f"could not be written: {reason(error)}") from error
    finally:
        # Removal is a courtesy: it must not hide the error that is on its way.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _part(path: Path, process: str) -> Path:
    return path.with_name(f".{path.stem}.{process}.part{path.suffix}")


def _remove_dead_parts(path: Path) -> None:
    """Removes what killed processes have left of the same file; beside outs it would be taken for a part of them."""
    escaped = path.with_name(glob.escape(path.name))
    for part in path.parent.glob(_part(escaped, f"{glob.escape(_machine())}-*").name):
        process = part.name.removesuffix(f".part{path.suffix}").rpartition("-")[2]
        if process.isdecimal() and not _alive(int(process)):
            with suppress(OSError):
                part.unlink()


def _machine() -> str:
    """The machine's name: on a shared disk the number of a process means nothing to others."""
    return platform.node().partition(".")[0]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # another user's, or no number of a process
        return True
    return True


def write_safetensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors, contiguous and on the CPU, as a .safetensors file, whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save

    try:
        with atomic_write(path) as part:
            # its own way to files makes them readable by their owner alone
            part.write_bytes(save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata))
    except SafetensorError as error:
        raise DataError(path, f"could not be written: {one_line(error)}") from error


def located(folder: Path, path: str) -> Path:
    """A path from params.yaml, which is relative to the file's folder; `~` is the user's home.

    Raises:
        DataError: for the home of a user who is not known.
    """
    try:
        return folder / Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(path, "names the home of a user who is not known here") from error


def shown_path(path: str) -> str:
    """A path as it may stand in an out: of an absolute one only the last name, as the rest belongs to one machine."""
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
    return PureWindowsPath(path).name if absolute else path


def json_text(path: str | Path, data: Any) -> str:
    """The text that `write_json` writes to `path`: two spaces of indent, keys in the order given, one newline at the end.

    Raises:
        DataError: for a number that is infinite or not a number, naming its key.
    """
    try:
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        key = next(_not_finite(data), "")
        raise DataError(path, f"{key}: not a finite number, which JSON cannot hold") from error


def write_json(path: str | Path, data: dict[str, Any]) -> None:
    """Writes a JSON object as `json_text` gives it, whole or not at all.

    Raises:
        DataError: for a number that is not finite, or a file that cannot be written.
    """
    write_text(path, json_text(path, data))


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text with the same line ends on every system, whole or not at all.

    Raises:
        DataError: if the file cannot be written.
    """
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Writes the columns of a table without its index, with the same line ends on every system, whole or not at all.

    Words with which a spreadsheet would begin to calculate get an apostrophe before them, which it does not show.

    Raises:
        DataError: if the file cannot be written.
    """
    from pandas.api import types

    words = {name: column.map(_as_word) for name, column in frame.items() if not types.is_numeric_dtype(column)}
    frame = frame.assign(**words)
    with atomic_write(path) as part:
        frame.to_csv(part, index=False, lineterminator="\n", encoding="utf-8")


def _as_word(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Writes one array in numpy's .npy format (version 1.0, C order), without pickle.

    This writes straight to `path`; wrap it in `atomic_write` for a file that is whole or absent.

    Raises:
        OSError: if the file cannot be written, with the system's reason, which `ndarray.tofile` would lose.
        ValueError: for an array of objects.
    """
    array = _plain(array)
    write_npy_in_pieces(path, array.shape, array.dtype, [array])


def write_npy_in_pieces(path: str | Path, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterable[np.ndarray]) -> None:
    """Writes the array that `pieces` make up along their first axis, as `write_npy` would write the whole.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the pieces are not the array of `shape` and `dtype` together.
    """
    with NpyWriter(path, shape, dtype) as writer:
        for piece in pieces:
            writer.add(piece)


class NpyWriter:
    """Writes an array to a .npy file piece by piece along its first axis. A context manager.

    Args:
        path: the file; wrap it in `atomic_write` for one that is whole or absent. Or a file that is open for writing.
        shape: of the whole array.
        dtype: its type, not one of objects.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the pieces are not the array of `shape` and `dtype` together, when the block has ended.
    """

    def __init__(self, path: str | Path | IO[bytes], shape: tuple[int, ...], dtype: np.dtype):
        self._shape, self._dtype, self._rows = shape, np.dtype(dtype), 0
        # closed at the end of this object's own block
        self._file = open(path, "wb") if isinstance(path, str | Path) else path  # noqa: SIM115
        header = {"shape": shape, "fortran_order": False, "descr": npy.dtype_to_descr(self._dtype)}
        npy.write_array_header_1_0(self._file, header)

    def add(self, piece: np.ndarray) -> None:
        """Adds the next rows."""
        if piece.dtype != self._dtype or piece.shape[1:] != self._shape[1:]:
            raise ValueError(f"a piece {piece.dtype} {piece.shape} of an array {self._dtype} {self._shape}")
        self._rows += len(piece) if piece.ndim else 1
        self._file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)

    def leave_room(self) -> None:
        """Adds the rows that are missing as zeros, which take no room on disk until they are written over."""
        left = self._shape[0] - self._rows
        self._file.truncate(self._file.tell() + left * math.prod(self._shape[1:]) * self._dtype.itemsize)
        self._rows += left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None and self._rows != (self._shape[0] if self._shape else 1):
            raise ValueError(f"{self._rows} rows for an array of shape {self._shape}")


def write_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Writes arrays as `numpy.savez_compressed` does, whole or not at all; the same arrays always give the same bytes.

    Raises:
        DataError: if the file cannot be written.
        ValueError: for an array of objects.
    """
    plain = {key: _plain(array) for key, array in arrays.items()}
    write_npz_in_pieces(path, {key: (array.shape, array.dtype, [array]) for key, array in plain.items()})


def write_npz_in_pieces(
    path: str | Path, members: Mapping[str, tuple[tuple[int, ...], np.dtype, Iterable[np.ndarray]]]
) -> None:
    """Writes arrays as `write_npz` does, each given by shape, type and the pieces that make it up along its first axis.

    Raises:
        DataError: if the file cannot be written.
        ValueError: if the pieces are not the array of that shape and type together.
    """
    with atomic_write(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESS_LEVEL) as archive:
        for key, (shape, dtype, pieces) in members.items():
            # A member that is opened by its name is dated 1980-01-01, whatever the clock says.
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member, NpyWriter(member, shape, dtype) as writer:
                for piece in pieces:
                    writer.add(piece)


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: if the file is missing, is not JSON or holds something else than an object.
    """
    return json_object(parse_json(read_bytes(path), path), path)


def read_text(path: str | Path) -> str:
    """Reads a UTF-8 text file.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(path, f"is not UTF-8: {one_line(error)}") from error


def read_bytes(path: str | Path) -> bytes:
    """What a file holds.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(path, f"could not be read: {reason(error)}") from error


def parse_json(data: bytes, path: str | Path) -> Any:
    """The value that the bytes of a JSON file stand for; `path` is named in errors.

    Raises:
        DataError: if they are not JSON in UTF-8, or hold a number that is not finite.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"is not JSON, or only a part of it: {one_line(error)}") from error
    # a number like 1e999 is read as infinite
    if (key := next(_not_finite(value), None)) is not None:
        raise DataError(path, f"{key}: not a finite number")
    return value


def json_object(value: Any, path: str | Path) -> dict[str, Any]:
    """`value` itself, a JSON object.

    Raises:
        DataError: for another kind of value.
    """
    if not isinstance(value, dict):
        raise DataError(path, f"holds a JSON {type(value).__name__}, not an object")
    return value


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal digits.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(path, f"could not be read: {reason(error)}") from error


def read_npy(path: str | Path) -> np.ndarray:
    """Maps the array of a .npy file into memory, read-only and without pickle.

    Raises:
        DataError: if the file is missing, damaged, shorter than its header says, or holds pickled objects.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(path, f"could not be read: {reason(error)}") from error
    except (*DAMAGE, TypeError) as error:
        raise DataError(path, f"is not a whole .npy file: {one_line(error)}") from error


def read_npz(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the named arrays of an .npz archive without pickle; members that are not named are not looked at.

    Each member's header is read and compared with the archive before any memory is taken for it.

    Args:
        path: the archive.
        keys: names of the arrays to read.

    Returns:
        One array for each key, in the order of `keys`.

    Raises:
        DataError: if the file is missing or damaged, lacks a key, or a member holds pickled objects or claims a size that the
            archive does not hold.
    """
    with _opened(path, keys) as archive:
        return {key: _read_member(path, archive, key) for key in keys}


def npz_shapes(path: str | Path, keys: Sequence[str]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shapes and types of the named arrays of an .npz archive, by their headers alone.

    Raises:
        DataError: as `read_npz`.
    """
    with _opened(path, keys) as archive:
        return {key: _checked_header(path, archive, key) for key in keys}


def stream_npz(path: str | Path, key: str, rows: int) -> Iterator[np.ndarray]:
    """Yields one array of an .npz archive piece by piece along its first axis, so that any size fits into memory.

    The archive's own checksum is compared when the last piece has been read.

    Args:
        path: the archive.
        key: name of an array in C order, as numpy writes unless told otherwise.
        rows: most rows of a piece.

    Yields:
        Arrays (n, ...) with n <= rows, together the whole array.

    Raises:
        DataError: as `read_npz`, or for an array that is not in C order.
    """
    with _opened(path, [key]) as archive:
        shape, dtype = _checked_header(path, archive, key)
        with archive.open(archive.getinfo(f"{key}.npy")) as member:
            _, fortran, _ = HEADER_READERS[npy.read_magic(member)](member)
            if fortran and len(shape) > 1:
                raise DataError(path, f"{key}: is in Fortran order; save it again after numpy.ascontiguousarray")
            bytes_per_row = math.prod(shape[1:]) * dtype.itemsize
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                data = member.read(count * bytes_per_row)
                if len(data) != count * bytes_per_row:
                    raise DataError(path, f"{key}: ends after {start} rows and {len(data)} bytes of {shape[0]} rows")
                yield np.frombuffer(data, dtype).reshape(count, *shape[1:])


@contextmanager
def _opened(path: str | Path, keys: Sequence[str]) -> Iterator[zipfile.ZipFile]:
    """An archive that has the keys; damage that shows while it is read is a DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            if twice := next((key for key in keys if names.count(key) > 1), None):
                raise DataError(path, f"holds {twice} more than once, and nothing says which one counts")
            missing = [key for key in keys if key not in names]
            if missing:
                raise DataError(path, f"has no array {', '.join(missing)}; it holds {', '.join(names) or 'none'}")
            yield archive
    except OSError as error:
        raise DataError(path, f"could not be read: {reason(error)}") from error
    except DAMAGE as error:
        raise DataError(path, f"is not a whole .npz archive: {one_line(error)}") from error


def _checked_header(path: str | Path, archive: zipfile.ZipFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a member, once its header agrees with what the archive holds."""
    info = archive.getinfo(f"{key}.npy")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(path, f"{key}: encrypted or compressed in a way that numpy does not read")
    if info.file_size > MOST_DEFLATE * min(info.compress_size, os.path.getsize(path)):
        raise DataError(path, f"{key}: claims {info.file_size} bytes, more than {info.compress_size} packed bytes can hold")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version not in HEADER_READERS:
            raise DataError(path, f"{key}: .npy format {version[0]}.{version[1]}, not 1.0 or 2.0")
        shape, _, dtype = HEADER_READERS[version](member)
        if dtype.hasobject:
            raise DataError(path, f"{key}: holds pickled Python objects, which are never loaded")
        held = info.file_size - member.tell()
    # Python's integers do not overflow; numpy's product of a shape would.
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != held:
        raise DataError(path, f"{key}: shape {shape} of {dtype} claims {claimed} bytes, but {held} are there")
    return shape, dtype


def _read_member(path: str | Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    _checked_header(path, archive, key)
    with archive.open(archive.getinfo(f"{key}.npy")) as member:
        return npy.read_array(member, allow_pickle=False)


def _plain(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array, order="C")
    if array.dtype.hasobject:
        raise ValueError("an array of Python objects would need pickle, which is never written")
    return array


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _not_finite(data: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of the numbers in `data` that JSON cannot hold."""
    if isinstance(data, float) and not math.isfinite(data):
        yield key.removeprefix(".")
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _not_finite(value, f"{key}.{name}")
    elif isinstance(data, list | tuple):
        for i, value in enumerate(data):
            yield from _not_finite(value, f"{key}.{i}")


def reason(error: OSError) -> str:
    """What the system says of a failure, without the path."""
    return error.strerror or one_line(error)
