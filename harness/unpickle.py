"""A pickled pandas DataFrame, read without running any of it.

A pickle is a program, and pandas and numpy alone hold functions enough to run anything (`pandas.eval`, `numpy.load`).
So what a file names is never imported: each (module, name) of an exact list stands for a `Record`, which only keeps
what it was called with, and the columns are read out of the records. The pandas that wrote the file need not be the
one installed, nor need pandas be there at all.

Only memory is not guarded: CPython's unpickler can be asked for more of it than there is.

The list is what frames of text, numbers and lists name, as written by pandas 1 to 3 in the pickle protocols 0 to 5.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase
from typing import Any, ClassVar

import numpy as np

# (module, name) -> what the record is read as. Several names of one thing are those of different versions.
ALLOWED = {
    ("pandas", "DataFrame"): "frame",
    ("pandas.core.frame", "DataFrame"): "frame",
    ("pandas.core.internals.managers", "BlockManager"): "manager",
    ("pandas._libs.internals", "_unpickle_block"): "block",
    ("pandas.core.internals.blocks", "new_block"): "block",
    ("pandas.core.indexes.base", "_new_Index"): "index",
    ("pandas", "Index"): "index class",
    ("pandas", "RangeIndex"): "index class",
    ("pandas.core.indexes.base", "Index"): "index class",
    ("pandas.core.indexes.range", "RangeIndex"): "index class",
    ("pandas.core.indexes.numeric", "Int64Index"): "index class",
    ("numpy", "ndarray"): "array class",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy.core.numeric", "_frombuffer"): "array in a buffer",
    ("numpy._core.numeric", "_frombuffer"): "array in a buffer",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy._core.multiarray", "scalar"): "scalar",
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"): "text array",
    ("pandas.core.arrays.string_", "StringArray"): "text class",
    ("pandas.arrays", "StringArray"): "text class",
    ("pandas.core.arrays.string_", "StringDtype"): "text dtype",
    ("pandas", "StringDtype"): "text dtype",
    ("pandas._libs.missing", "NA"): "missing",
    ("pandas", "NA"): "missing",
    ("pandas.core.arrays.string_arrow", "ArrowStringArray"): "arrow text",
    ("pandas.arrays", "ArrowStringArray"): "arrow text",
    ("pyarrow.lib", "_restore_array"): "arrow array",
    ("pyarrow.lib", "type_for_alias"): "arrow type",
    ("pyarrow.lib", "py_buffer"): "buffer",
    ("builtins", "slice"): "slice",
    ("__builtin__", "slice"): "slice",
    ("builtins", "bytearray"): "byte array",
    ("__builtin__", "bytearray"): "byte array",
    ("_codecs", "encode"): "encoded",  # how protocols 0 to 2 write bytes
    ("copyreg", "_reconstructor"): "instance",  # how protocols 0 and 1 write instances
    ("copy_reg", "_reconstructor"): "instance",
    ("builtins", "object"): "object",
    ("__builtin__", "object"): "object",
}


class Record:
    """What a pickle called something with, and the state it then gave to the result.

    That `__setstate__` is there also keeps a pickle from setting attributes of the record types themselves.
    """

    __slots__ = ("args", "state")
    kind: ClassVar[str]
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        self = object.__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


RECORDS = {kind: type(kind, (Record,), {"__slots__": (), "kind": kind}) for kind in set(ALLOWED.values())}


class Unpickler(pickle.Unpickler):
    """Makes records of what is on the list, and refuses the rest."""

    def find_class(self, module: str, name: str) -> Any:
        kind = ALLOWED.get((module, name))
        if kind is None:
            raise pickle.UnpicklingError(
                f"it names {printable(f'{module}.{name}')}, which no table of text and numbers needs"
            )
        return RECORDS[kind]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it names an object outside itself")


def read_frame(file: BufferedIOBase, wanted: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """All column names of a pickled DataFrame, and the cells of those wanted, each a list of one cell per row.

    A cell is text, a number, a list of numbers or a one-dimensional array; it may be a Record where a value is
    missing. Raises UnpicklingError with a reason for anything else than such a frame.
    """
    try:
        root = Unpickler(file).load()
        file.read(1)  # at the end of a compressed file, which notices there that it is cut off
        return columns_of(root, wanted)
    except pickle.UnpicklingError:
        raise
    except EOFError as error:
        raise pickle.UnpicklingError("it is cut off") from error
    except Exception as error:  # a pickle can make the unpickler raise whatever it likes
        raise pickle.UnpicklingError(f"it is not laid out as a DataFrame ({type(error).__name__})") from error


def printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def expect(truth: bool, what: str) -> None:
    if not truth:
        raise pickle.UnpicklingError(f"it is not laid out as a DataFrame ({what})")


def kind_of(value: Any) -> str:
    """What a value is to be read as; an instance of protocol 0 or 1 is of the class it was called with."""
    if not isinstance(value, Record):
        return type(value).__name__
    if value.kind == "instance":
        made = value.args[0]
        return str(made.kind) if isinstance(made, type) and issubclass(made, Record) else "instance"
    return value.kind


def columns_of(root: Any, wanted: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    expect(kind_of(root) == "frame", f"it holds a {kind_of(root)}")
    manager = root.state["_mgr"] if "_mgr" in root.state else root.state["_data"]
    expect(kind_of(manager) == "manager", "the frame has no blocks")
    blocks, axes = blocks_of(manager)
    names = [str(name) for name in labels(axes[0])]
    cells: dict[str, list[Any]] = {}
    for values, placement in blocks:
        places = list(placed(placement, len(names)))
        for row, place in enumerate(places):
            if names[place] in wanted:
                expect(names[place] not in cells, f"two columns {names[place]!r}")
                cells[names[place]] = cells_of(values, row, len(places))
    missing = [name for name in wanted if name in names and name not in cells]
    expect(not missing, "a column without cells")
    expect(len({len(column) for column in cells.values()}) <= 1, "columns of different lengths")
    return names, cells


def blocks_of(manager: Record) -> tuple[list[tuple[Any, Any]], Any]:
    """(values, placement) of each block, and the axes: columns, then rows."""
    if manager.state is None:
        blocks, axes = manager.args
        expect(all(kind_of(block) == "block" for block in blocks), "an unknown block")
        return [(block.args[0], block.args[1]) for block in blocks], axes
    state = manager.state[3]["0.14.1"]  # pandas before 1.3
    return [(block["values"], block["mgr_locs"]) for block in state["blocks"]], state["axes"]


def labels(index: Any) -> list[Any]:
    """The labels of an index of columns."""
    expect(kind_of(index) == "index", "columns without names")
    described = index.args[1]
    if "data" not in described:
        return []  # numbered columns have no names
    return cells_of(described["data"], 0, 1)


def placed(placement: Any, columns: int) -> Iterator[int]:
    """The column numbers that the rows of a block belong to."""
    if kind_of(placement) == "slice":
        start, stop, step = placement.args
        numbers: Sequence[int] = range(start or 0, stop, step or 1)
    else:
        numbers = cells_of(placement, 0, 1)
    expect(len(numbers) <= columns, "more blocks than columns")
    for number in numbers:
        expect(0 <= number < columns, "a block outside the columns")
        yield number


def cells_of(values: Any, row: int, rows: int) -> list[Any]:
    """Row `row` of the `rows` rows of a block's values, which are the cells of one column."""
    kind = kind_of(values)
    if kind == "arrow text":
        state = values.state
        return arrow_text(state["_pa_array"] if "_pa_array" in state else state["_data"])
    if kind == "text array":
        values = next(part for part in values.state if kind_of(part) in READERS)
        kind = kind_of(values)
    expect(kind in READERS, f"a column of kind {kind}")
    flat, count = READERS[kind](values)
    expect(count % rows == 0, "a block of odd shape")
    width = count // rows
    cells = flat[row * width : (row + 1) * width]
    return [plain(cell) for cell in cells] if isinstance(cells, list) else list(cells.tolist())


def plain(cell: Any) -> Any:
    """A cell without records, where it holds numbers."""
    if isinstance(cell, list) and cell and isinstance(cell[0], Record):
        return [plain(part) if kind_of(part) == "scalar" else part for part in cell]
    kind = kind_of(cell)
    if kind == "scalar":
        dtype, data = cell.args
        return np.frombuffer(bytes_of(data), dtype_of(dtype), count=1).item()
    return READERS[kind](cell)[0] if kind in READERS else cell


def array(record: Record) -> tuple[Any, int]:
    """An array's cells end to end, row by row, and how many: a list of objects or a numpy array of numbers."""
    _, shape, dtype, by_column, data = record.state
    if isinstance(data, list):
        expect(len(data) == math.prod(shape), "an array of another length than its shape")
        return data, len(data)
    return numbers(bytes_of(data), dtype, shape, "F" if by_column else "C")


def array_in_a_buffer(record: Record) -> tuple[Any, int]:
    data, dtype, shape, order = record.args
    return numbers(bytes_of(data), dtype, shape, order)


READERS: dict[str, Callable[[Any], tuple[Any, int]]] = {"array": array, "array in a buffer": array_in_a_buffer}


def numbers(data: bytes | bytearray, dtype: Any, shape: tuple[int, ...], order: Any) -> tuple[Any, int]:
    flat = np.frombuffer(data, dtype_of(dtype))
    expect(flat.size == math.prod(shape), "an array of another length than its shape")
    return flat.reshape(shape, order=order).ravel(), flat.size


def dtype_of(record: Any) -> np.dtype[Any]:
    code, byte_order = record.args[0], record.state[1]
    expect(kind_of(record) == "dtype" and bool(re.fullmatch("b1|[iuf][1248]", code)), f"cells of type {code!r}")
    expect(byte_order in ("<", ">", "|"), "an unknown byte order")
    dtype: np.dtype[Any] = np.dtype(byte_order + code)
    return dtype


def bytes_of(value: Any, depth: int = 3) -> bytes | bytearray:
    """Bytes in any of the ways in which protocols write them, the deepest a buffer of a byte array of encoded text."""
    if isinstance(value, (bytes, bytearray)):
        return value
    kind = kind_of(value)
    if kind == "encoded":
        text, encoding = value.args
        expect(encoding == "latin1", "bytes in an unknown encoding")
        return bytes(text, "latin1")
    expect(kind in ("buffer", "byte array") and depth > 0, "no bytes where there should be some")
    return bytes_of(value.args[0], depth - 1) if value.args else b""


def arrow_text(record: Any) -> list[str | None]:
    """The texts of an Arrow string array: a bitmap of what is there, offsets, and the UTF-8 bytes end to end.

    Layout: https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-layout
    """
    expect(kind_of(record) == "arrow array", "text of an unknown kind")
    kind, length, _, offset, buffers, *_ = record.args[0]
    (name,) = kind.args
    expect(name in ("string", "large_string"), f"text of type {name!r}")
    bitmap, ends, data = (b"" if part is None else bytes_of(part) for part in buffers)
    bounds = np.frombuffer(ends, np.int64 if name == "large_string" else np.int32)[offset : offset + length + 1]
    expect(length >= 0 <= offset and len(bounds) == length + 1, "offsets of another length")
    expect(bool((np.diff(bounds) >= 0).all()) and bounds[0] >= 0 and bounds[-1] <= len(data), "offsets out of order")
    texts = [str(data[a:b], "utf-8") for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    if not bitmap:
        return list(texts)
    there = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")[offset : offset + length]
    return [text if known else None for text, known in zip(texts, there.tolist(), strict=True)]
