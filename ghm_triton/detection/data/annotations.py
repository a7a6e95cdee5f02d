"""Annotations in COCO's format, checked before training starts."""

import json
import pathlib

_NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def read_annotations(path: str | pathlib.Path) -> dict:
    """The content of a file of annotations, with COCO's lists and their fields.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or a list or a field is missing or of another kind; the message says which.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotations must be a file, got {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"annotations {path} must be JSON, got {error}") from error
    for name, fields in _NEEDED.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"annotations {path} must have a list {name!r}, got {type(entries).__name__}")
        for position, entry in enumerate(entries):
            missing = [field for field in fields if not isinstance(entry, dict) or field not in entry]
            if missing:
                raise ValueError(f"annotations {path}: {name}[{position}] lacks {', '.join(missing)}")
    for name in ("images", "categories"):
        ids = [entry["id"] for entry in content[name]]
        if not ids or len(set(ids)) < len(ids):
            got = f"{len(ids) - len(set(ids))} ids twice" if ids else "an empty list"
            raise ValueError(f"annotations {path} must have {name} with different ids, got {got}")
    return content
