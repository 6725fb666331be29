"""Which files of external data an ONNX file names."""

from __future__ import annotations

from pathlib import Path

from infconv import _protobuf
from infconv._normalise import inner_tensors
from infconv.model import read_proto


def external_locations(path: Path) -> list[str]:
    """Return the files of external data, by their paths from the file's folder. Raises SourceError for no ONNX file.

    Those outside the folder are left out: opening the model refuses them.
    """
    proto, _ = read_proto(path)
    entries = [e for t in (*proto.graph.initializer, *inner_tensors(proto)) for e in t.external_data]
    named = {entry.value for entry in entries if entry.key == "location"} - {_protobuf.MAPPED}
    return sorted(name for name in named if not Path(name).is_absolute() and ".." not in Path(name).parts)
