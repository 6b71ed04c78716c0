"""What recorded arrays may look like: checked before anything is read or counted by it.

A folder may come from anybody. Its ``zarr.json`` says how many rows there are, how large a chunk is
and what it is called; a reader that believes all of that loops for ever, asks for more memory than
there is, or leaves the folder.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradlab.record.files import read_json

MOST_ARRAYS = 1024
"""In one run."""
MOST_FILES = 10**5
"""In one run's arrays; of format 1 each chunk is one."""
MOST_ROWS = 2**26
MOST_SHARDS = 10**4
"""Files of one array."""
MOST_CHUNKS = 2**16
"""In one file."""
CHUNK = 2**28
"""Most bytes of a chunk."""
ARRAY = 2**38
"""Most bytes of an array: a run of weeks with T = 5000 has tens of gigabytes."""
COORDINATE = 2**20
"""Most values of a coordinate."""
_METADATA = 2**24
_TYPES = {"float32": 4, "float64": 8, "int64": 8, "string": 16}
_DECODED = {"scale_factor", "add_offset", "_FillValue", "missing_value", "dtype", "_Unsigned"}
"""Attributes by which xarray makes other values of the recorded ones."""
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]{0,199}")
_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def checked(folder: Path) -> dict[str, dict[str, Any]]:
    """Metadata of every array of a group by stored name, if they are as gradlab writes them.

    Raises:
      OSError: if the group cannot be read, or holds what is neither a folder nor a regular file.
      ValueError: in words what is not as it should be.
    """
    group = read_json(folder / "zarr.json", _METADATA)
    kept = group.get("consolidated_metadata") if isinstance(group, dict) else None
    arrays = kept.get("metadata") if isinstance(kept, dict) else None
    if not isinstance(arrays, dict) or group.get("node_type") != "group":
        raise ValueError("zarr.json is of no group with the metadata of its arrays")
    if len(arrays) > MOST_ARRAYS:
        raise ValueError(f"{len(arrays):,} arrays; a run has {MOST_ARRAYS:,} at most")
    for name, array in arrays.items():
        try:
            _check(name, array)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{name!a}: metadata that gradlab does not write ({error})") from None
        except ValueError as error:
            raise ValueError(f"{name!a}: {error}") from None
    _check_together(arrays)
    _check_files(folder)
    return arrays


def is_name(text: str) -> bool:
    """Whether an array may have this stored name."""
    return _NAME.fullmatch(text) is not None


def row_bytes(array: Mapping[str, Any]) -> int:
    """Bytes of a row."""
    return math.prod(array["shape"][1:]) * _TYPES[array["data_type"]]


def _check(name: str, array: Mapping[str, Any]) -> None:
    if not is_name(name):
        raise ValueError("no name of a variable")
    if (array["node_type"], array["zarr_format"]) != ("array", 3):
        raise ValueError("no array of zarr 3")
    kind = array["data_type"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"holds {kind!a:.60}, not {', '.join(_TYPES)}")
    shape, dims = array["shape"], array["dimension_names"]
    if not 1 <= len(shape) <= 8 or not all(map(_whole, shape)):
        raise ValueError(f"the shape {shape!a:.60}")
    if not all(isinstance(dim, str) and dim for dim in dims) or len(set(dims)) != len(dims):
        raise ValueError(f"the dimensions {dims!a:.60}")
    grid, keys = array["chunk_grid"], array["chunk_key_encoding"]
    long = grid["configuration"]["chunk_shape"]
    if grid["name"] != "regular" or keys != _KEYS or array.get("storage_transformers"):
        raise ValueError("chunks that are not laid out as gradlab does")
    if not len(shape) == len(dims) == len(long) or not all(_whole(n) and n > 0 for n in long):
        raise ValueError(f"the shape {shape!a:.60} in chunks {long!a:.60}, over {dims!a:.60}")
    fill, attributes = array["fill_value"], array["attributes"]
    if not isinstance(fill, int | float) and fill not in ("NaN", ""):
        raise ValueError(f"the fill value {fill!a:.60}")
    if decoding := _DECODED & set(attributes):
        raise ValueError(f"attributes that change its values: {', '.join(sorted(decoding))}")
    if not all(isinstance(attributes.get(key, ""), str) for key in ("name", "units", "long_name")):
        raise ValueError("a name or a unit that is no text")
    short = _shard(array, long) if array["codecs"][0]["name"] == "sharding_indexed" else long
    if short is long:
        _check_codecs(array["codecs"], kind)
    if math.prod(short) * _TYPES[kind] > CHUNK:
        raise ValueError(f"chunks {short!a:.60} of more than {CHUNK:,} bytes")
    if math.prod(shape) * _TYPES[kind] > ARRAY:
        raise ValueError(f"the shape {shape!a:.60}, more than {ARRAY:,} bytes")
    if math.ceil(shape[0] / long[0]) > MOST_SHARDS:
        raise ValueError(f"{shape[0]:,} rows in files of {long[0]:,}")


def _shard(array: Mapping[str, Any], long: list[int]) -> list[int]:
    """The shape of the chunks within a file."""
    (codec,) = array["codecs"]
    inner = codec["configuration"]
    short = inner["chunk_shape"]
    if len(short) != len(long) or not all(_whole(n) and n > 0 for n in short):
        raise ValueError(f"chunks {short!a:.60} in files of {long!a:.60}")
    wide = [max(1, n) for n in array["shape"][1:]]
    if long[0] % short[0] or long[0] // short[0] > MOST_CHUNKS or not long[1:] == short[1:] == wide:
        raise ValueError(f"chunks {short!a:.60} in files of {long!a:.60}")
    if inner["index_codecs"] != [_BYTES] or inner["index_location"] != "start":
        raise ValueError("an index that is not as gradlab writes it")
    if array["dimension_names"][0] != "step" or array["data_type"] == "string":
        raise ValueError("no array along step")
    _check_codecs(inner["codecs"], array["data_type"])
    return short


def _check_codecs(codecs: list[Mapping[str, Any]], kind: str) -> None:
    first = {"name": "vlen-utf8", "configuration": {}} if kind == "string" else _BYTES
    if len(codecs) != 2 or dict(codecs[0]) != first or codecs[1]["name"] != "zstd":
        names = [codec.get("name") for codec in codecs]
        raise ValueError(f"holds the codecs {names!a:.80}, not as gradlab writes them")


def _check_together(arrays: Mapping[str, Mapping[str, Any]]) -> None:
    """One length a dimension; and there are steps."""
    sizes: dict[str, int] = {}
    for array in arrays.values():
        for dim, size in zip(array["dimension_names"], array["shape"], strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"{dim!a} is {sizes[dim]:,} long, and {size:,}")
    step = arrays.get("step")
    if step is None or step["dimension_names"] != ["step"] or step["data_type"] != "int64":
        raise ValueError("no training steps")
    if sizes["step"] > MOST_ROWS:
        raise ValueError(f"{sizes['step']:,} rows; a run has {MOST_ROWS:,} at most")
    names = [array["attributes"].get("name", name) for name, array in arrays.items()]
    if len(set(names)) < len(names):
        raise ValueError("two arrays of one name")
    large = [name for name, one in arrays.items() if len(one["shape"]) == 1 and name in sizes]
    if any(sizes[name] > COORDINATE for name in large if name != "step"):
        raise ValueError(f"a coordinate of more than {COORDINATE:,} values")


def _check_files(folder: Path) -> None:
    """Refuse pipes, devices, and links to folders: zarr would open them."""
    left = [folder]
    count = 0
    while left:
        for entry in os.scandir(left.pop()):
            count += 1
            if count > MOST_FILES:
                raise ValueError(f"more than {MOST_FILES:,} files")
            if entry.is_dir(follow_symlinks=False):
                left.append(Path(entry.path))
            elif not _is_regular(entry):
                raise OSError(f"{entry.name!a} is no regular file")


def _is_regular(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or was one that the writer has just replaced."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except FileNotFoundError:
        return not entry.is_symlink()


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
