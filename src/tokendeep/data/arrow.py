"""Parquet and Arrow files as records, read batch by batch. Knows nothing of folders and columns."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokendeep.data.files import open_file, origin_of
from tokendeep.data.row import Row, without_index
from tokendeep.errors import InputError

BATCH = 1000


def arrow_rows(path: Path) -> Iterator[Row]:
    """The rows of a file; an index of pandas is no column.

    Raises:
        InputError: it is no Parquet (or Arrow), or is cut off.
    """
    import pyarrow as pa

    origin = replace(origin_of(path), table=True)
    try:
        for number, values in enumerate((one for batch in _batches(path) for one in batch.to_pylist()), 1):
            yield Row(number, f"{path}, row {number}", without_index(values), origin)
    except (pa.ArrowException, OSError) as error:
        kind = "Parquet" if ".parquet" in path.suffixes else "Arrow"
        raise InputError(f"{path} is no whole {kind} file ({str(error).splitlines()[0]}); write it again.") from error


def _batches(path: Path) -> Iterator[Any]:
    """Record batches of a Parquet file, or of an Arrow file or stream (which `datasets` writes)."""
    import pyarrow as pa
    from pyarrow import parquet

    with open_file(path) as file:
        source = pa.BufferReader(file.read()) if path.suffix.lower() == ".gz" else pa.PythonFile(file)
        if ".parquet" in path.suffixes:
            yield from parquet.ParquetFile(source).iter_batches(BATCH)
            return
        start = source.read(6)
        source.seek(0)
        if start == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
        else:
            yield from pa.ipc.open_stream(source)
