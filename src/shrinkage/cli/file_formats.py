"""What a file is, by its first bytes: one of weights that can be read, or something else, named for the message."""

import json
import zipfile
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from shrinkage.errors import listed

LEGACY_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # torch.save before its files were zip archives
BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes",
    b"GGUF": "a GGUF file of llama.cpp",
    b"\x93NUMPY": "an array of NumPy",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself: fetch that with git lfs pull",
}
MARKS = {  # bytes at some place
    257: (b"ustar", "a tar archive: unpack it first"),
    4: (b"TFL3", "a model of TensorFlow Lite"),
}
HEAD = 4096
MOST_HEADER = 100_000_000  # bytes of JSON that safetensors reads


class Format(Enum):
    """What can hold a state_dict."""

    TORCH = "a file of torch.save"
    SAFETENSORS = "a safetensors file"
    INDEX = "the index of a model in several files"
    DISTRIBUTED = "a folder of torch.distributed.checkpoint"


def format_of(file: Path) -> Format | str:
    """Return the format of `file`, or what it is instead, in words that follow "is"."""
    if file.is_dir():
        return folder(file)
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    if not head:
        return "empty: it has no bytes"
    if head.startswith(LEGACY_TORCH):
        return Format.TORCH
    if head.startswith(b"PK"):
        return archive(file)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MOST_HEADER:
        return Format.SAFETENSORS
    for beginning, what in BEGINNINGS.items():
        if head.startswith(beginning):
            return what
    for place, (mark, what) in MARKS.items():
        if head[place:].startswith(mark):
            return what
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return f"a pickle that torch.save did not write, which is not loaded because it can run code; {SAVE}"
    return text(file, head) or binary(file, head)


SAVE = "save the weights with torch.save(model.state_dict(), ...)"


def archive(file: Path) -> Format | str:
    """Return what a zip archive is, by the names of its members."""
    try:
        with zipfile.ZipFile(file) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "cut off or damaged: it begins as a file of torch.save does, and does not end so; copy or save it again"
    inside = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in names}
    if "constants.pkl" in inside:
        return "a model of TorchScript: save the state_dict() of what torch.jit.load makes of it"
    if "archive_format" in inside or any(name.startswith("models/") for name in inside):
        return "a program of torch.export: save the state_dict of what torch.export.load makes of it"
    if "data.pkl" in inside:
        return Format.TORCH
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy's arrays"
    return f"a zip archive that torch.save did not write: it holds {listed(names, most=3) or 'nothing'}"


def text(file: Path, head: bytes) -> Format | str | None:
    """Return what a file of text is; None for other bytes."""
    try:
        beginning = head.decode() if len(head) < HEAD else head[: HEAD - 4].decode(errors="ignore")
    except UnicodeDecodeError:
        return None
    if not all(letter.isprintable() or letter.isspace() for letter in beginning):
        return None
    if beginning.lstrip().startswith("{"):
        return json_text(file)
    if beginning.lstrip().lower().startswith(("<!doctype html", "<html")):
        return "a web page, perhaps what a download answered instead of the file"
    return f"a text file, which begins with {beginning.strip()[:30]!r}"


def json_text(file: Path) -> Format | str:
    """Return what a file of JSON is."""
    try:
        content: Any = json.loads(file.read_text())
    except ValueError:
        return "a text file of JSON"
    parts = content.get("weight_map") if isinstance(content, dict) else None
    named = isinstance(parts, dict) and parts and all(isinstance(part, str) for part in parts.values())
    return Format.INDEX if named else "a text file of JSON"


def binary(file: Path, head: bytes) -> str:
    """Return what other bytes are."""
    # ONNX begins with field 1, a version, and goes on with the producer's name (2) or the graph (7)
    if file.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a")):
        return "a model of ONNX; the zeros are counted in a PyTorch model's state_dict"
    if file.suffix == ".safetensors":
        return "no safetensors file: such a one begins with the length of its header, in 8 bytes, and the header, JSON"
    return "neither a file of torch.save nor one of safetensors"


def folder(path: Path) -> Format | str:
    """Return what is in a folder, or in words that follow "is" why it is not read."""
    if (path / ".metadata").is_file():
        return Format.DISTRIBUTED
    endings = {".bin", ".ckpt", ".pt", ".pth", ".safetensors"}
    indices = [each.name for each in path.iterdir() if each.name.endswith(".index.json")]
    files = sorted(each.name for each in path.iterdir() if each.suffix in endings)
    return f"a folder: give a file in it, such as {listed(sorted(indices) or files, most=3)}" if files else "a folder"
