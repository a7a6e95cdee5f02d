"""Paths of the annotations and images of a split."""

import argparse
import pathlib


def find_split(directory: str | pathlib.Path, split: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the annotations and the image folder of a split in COCO's layout.

    These are annotations/instances_SPLIT*.json, and SPLIT*/ or images/SPLIT*/.

    Raises:
        FileNotFoundError: There is no match, or more than one.
    """
    directory = pathlib.Path(directory)
    files = sorted(directory.glob(f"annotations/instances_{split}*.json"))
    if len(files) != 1:
        got = ", ".join(file.name for file in files) or "none"
        raise FileNotFoundError(f"data must have one {directory}/annotations/instances_{split}*.json, got {got}")
    name = files[0].stem.removeprefix("instances_")
    folders = [directory / name, directory / "images" / name]
    for folder in folders:
        if folder.is_dir():
            return files[0], folder
    raise FileNotFoundError(
        f"data must have the images of {files[0].name} in {folders[0]} or {folders[1]}, got neither"
    )


def locate_split(options: argparse.Namespace, split: str) -> tuple[str | pathlib.Path, str | pathlib.Path]:
    """Return the annotations and the image folder given by --SPLIT-json and --SPLIT-images, or by --data.

    Raises:
        FileNotFoundError: As for :func:`find_split`.
        ValueError: The options do not name a data set.
    """
    given = getattr(options, f"{split}_json"), getattr(options, f"{split}_images")
    if all(given):
        return given
    if any(given):
        raise ValueError(f"--{split}-json and --{split}-images must both be given or none, got {given}")
    if options.data is None:
        raise ValueError(
            f"--data must be a folder in COCO's layout, or --{split}-json and --{split}-images given, got neither"
        )
    return find_split(options.data, split)
