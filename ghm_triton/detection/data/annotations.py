"""Annotations in COCO's format, checked before training starts."""

import collections
import json
import pathlib
import reprlib
from collections.abc import Callable
from typing import NamedTuple

from ..text import listed


class _Rule(NamedTuple):
    """The requirement for a field of an entry."""

    expected: str
    holds: Callable[[object], bool]
    needed: bool = True


def is_finite(value: object) -> bool:
    """Whether a JSON value is a number that fp32 can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -3e38 < value < 3e38


def _is_integer(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


_ID = _Rule("an integer of 64 bits", _is_integer)
_SIZE = _Rule("an integer from 1 to 1,000,000", lambda value: _is_integer(value) and 1 <= value <= 1_000_000)
_AREA = _Rule("a finite number from 0", lambda value: is_finite(value) and value >= 0, needed=False)
_CROWD = _Rule("0 or 1", lambda value: isinstance(value, int) and value in (0, 1), needed=False)
_RULES = {
    "images": {
        "id": _ID,
        "file_name": _Rule("the name of a file", lambda value: isinstance(value, str) and value.strip() != ""),
        "width": _SIZE,
        "height": _SIZE,
    },
    "annotations": {
        "image_id": _ID,
        "category_id": _ID,
        "bbox": _Rule("a list", lambda value: isinstance(value, list)),
        "iscrowd": _CROWD,
        "area": _AREA,
    },
    "categories": {"id": _ID, "name": _Rule("a string", lambda value: isinstance(value, str))},
}


def read_annotations(path: str | pathlib.Path) -> dict:
    """Return the lists "images", "annotations" and "categories" of a file, with the fields of COCO's object detection.

    The numbers of a box are not checked here: :class:`CocoBoxes` drops invalid boxes and counts them.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not JSON, or a list or a field is missing or wrong; the message names the entry.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotations must be an existing file, got {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"annotations {path} must be JSON, got {error}") from error
    lists = {}
    for name, rules in _RULES.items():
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"annotations {path} must have a list {name!r}, got {_show(entries)}")
        lists[name] = [_check(f"annotations {path}: {name}[{i}]", entry, rules) for i, entry in enumerate(entries)]
    for name in ("images", "categories"):
        ids = [entry["id"] for entry in lists[name]]
        if not ids or len(set(ids)) < len(ids):
            got = "id {} {} times".format(*collections.Counter(ids).most_common(1)[0]) if ids else "an empty list"
            raise ValueError(f"annotations {path} must have {name} with different ids, got {got}")
    return lists


def check_units(content: dict, path: str | pathlib.Path) -> None:
    """Raise a ValueError if the boxes seem to be normalized, or corners instead of [left, top, width, height].

    They seem to be normalized if no value exceeds 1. They seem to be corners if at least a quarter of them extend
    beyond their image, but all would fit if they were corners.
    """
    sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in content["images"]}
    boxes = [
        (entry["bbox"], sizes[entry["image_id"]])
        for entry in content["annotations"]
        if entry["image_id"] in sizes and len(entry["bbox"]) == 4 and all(map(is_finite, entry["bbox"]))
    ]
    expected = f"annotations {path} must have boxes [left, top, width, height] in pixels, got"
    if boxes and all(0 <= value <= 1 for box, _ in boxes for value in box):
        raise ValueError(f"{expected} no value above 1: normalized?")
    leaving = sum(
        left + width > size[0] + 1 or top + height > size[1] + 1 for (left, top, width, height), size in boxes
    )
    corners = all(
        -1 <= left < right <= size[0] + 1 and -1 <= top < bottom <= size[1] + 1
        for (left, top, right, bottom), size in boxes
    )
    if corners and 4 * leaving >= len(boxes) > 0:
        raise ValueError(f"{expected} {leaving} of {len(boxes)} beyond their image, and none as corners: xyxy?")


def check_categories(content: dict, path: str | pathlib.Path) -> None:
    """Raise a ValueError if the category ids of the annotations seem to be off by one, or many are unknown.

    They seem to be off by one if an unknown id is the one below the least or above the largest of the categories.
    """
    known = {entry["id"] for entry in content["categories"]}
    ids = [entry["category_id"] for entry in content["annotations"]]
    unknown = sorted(set(ids) - known)
    number = sum(category not in known for category in ids)
    beside = known and not {min(known) - 1, max(known) + 1}.isdisjoint(unknown)
    if beside or 4 * number >= len(ids) > 0:
        raise ValueError(
            f"annotations {path} must have the category ids {listed(sorted(known))}, got {listed(unknown)} in {number} "
            f"of {len(ids)}" + (": off by one?" if beside else "")
        )


def _check(place: str, entry: object, rules: dict[str, _Rule]) -> dict:
    """Return the fields of `entry` that have a rule."""
    if not isinstance(entry, dict):
        raise ValueError(f"{place} must be an object, got {_show(entry)}")
    for field, rule in rules.items():
        if field not in entry:
            if rule.needed:
                raise ValueError(f"{place}.{field} must be {rule.expected}, got nothing")
        elif not rule.holds(entry[field]):
            raise ValueError(f"{place}.{field} must be {rule.expected}, got {_show(entry[field])}")
    return {field: entry[field] for field in rules if field in entry}


def _show(value: object) -> str:
    return "null" if value is None else reprlib.repr(value)
