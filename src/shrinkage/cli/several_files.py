"""Weights in several files: shards of safetensors or torch.save with an index, and torch's distributed checkpoints."""

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from shrinkage.diagnostics.checkpoint_files import OPTIMIZERS
from shrinkage.errors import listed

DESCRIPTION = ".metadata"  # the file that describes a distributed checkpoint
# What such a file is made of. It is a pickle, and a pickle of a stranger could run any other function.
HARMLESS = {
    "collections": {"OrderedDict"},
    "torch": {"Size"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.serialization": {"_get_layout"},
}


def read_index(file: Path, read: Callable[[Path], object]) -> dict[str, Any]:
    """Return the tensors of all files that an index names; `read` returns those of one file."""
    index = json.loads(file.read_text())["weight_map"]
    parts = sorted(set(index.values()))
    away = [part for part in parts if Path(part).name != part or not (file.parent / part).is_file()]
    if away:
        raise ValueError(f"is the index of a model in {len(parts)} files; not beside it are {listed(away, most=3)}")
    found: dict[str, Any] = {}
    for part in parts:
        content = read(file.parent / part)
        if not isinstance(content, Mapping):
            raise ValueError(f"is the index of a model in several files; {part!r} holds no names with tensors")
        found |= content
    missing = [name for name in index if name not in found]
    if missing:
        raise ValueError(f"is the index of a model in several files; none of them has {listed(missing, most=3)}")
    return found


class Reader(FileSystemReader):
    """Reads a distributed checkpoint without running what a pickle in it may ask for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what is in the checkpoint."""
        found = description(Path(self.path))
        if found.storage_meta is None:
            found.storage_meta = StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class Harmless(pickle.Unpickler):
    """Makes nothing but the description of a checkpoint."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class of such a description, or a type of numbers."""
        if module.partition(".")[0] == "pathlib" and name.endswith("Path"):
            return PurePath  # where it was saved, perhaps on another system
        known = name in HARMLESS.get(module, ()) or (
            module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        )
        if not known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of such a file")
        return super().find_class(module, name)


def description(folder: Path) -> Metadata:
    """Return what is in a distributed checkpoint."""
    with (folder / DESCRIPTION).open("rb") as stream:
        found = Harmless(stream).load()
    if not isinstance(found, Metadata):
        raise pickle.UnpicklingError(f"it is a {type(found).__name__}")
    return found


def read_distributed(folder: Path) -> dict[str, Any]:
    """Return the tensors of a distributed checkpoint, nested as they were saved; what optimizers keep is left out."""
    described = description(folder)
    paths: Mapping[str, Any] = described.planner_data if isinstance(described.planner_data, Mapping) else {}
    tensors = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in described.state_dict_metadata.items()
        if isinstance(each, TensorStorageMetadata) and not OPTIMIZERS.match(str(paths.get(name, (name,))[0]))
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        try:
            load(dict(tensors), storage_reader=Reader(folder), no_dist=True)
        except CheckpointException as error:  # a BaseException, which holds what was raised in each process
            causes = ", ".join(sorted({type(cause).__name__ for cause, _ in error.failures.values()}))
            raise ValueError(f"a file of it cannot be read ({causes})") from None
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *outer, last = map(str, paths.get(name, (name,)))
        inside = found
        for each in outer:
            inside = inside.setdefault(each, {})
        inside[last] = tensor
    return found
