"""Write a COCO data set of tree crowns: tiles of two aerial photographs in the wheel of deepforest 2.1.0.

    python -m ghm_triton.detection.trees DIR [--wheel FILE]

The wheel (MIT license, 20 MB) is downloaded by pip from the package registry that pip is configured for.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from .data.trees import REQUIREMENT, SPLITS, read_wheel, write_tiles


def download_wheel(folder: str | pathlib.Path) -> pathlib.Path:
    """Downloads the wheel of deepforest, without its dependencies, into `folder` with pip. Returns its path.

    Raises:
        OSError: pip failed.
    """
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(pathlib.Path(folder).glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise OSError(f"pip cannot download {REQUIREMENT} ({reason}); --wheel takes a file that is already there")
    return wheels[0]


def main(arguments: list[str] | None = None) -> int:
    """Writes the data set. Returns 1 after an error, which is printed."""
    options = parse(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            photographs = read_wheel(options.wheel or download_wheel(folder))
        for split in SPLITS:
            content = write_tiles(options.directory, photographs, split)
            whole = sum(not entry["iscrowd"] for entry in content["annotations"])
            print(f"{len(content['images'])} tiles with {whole} boxes in {pathlib.Path(options.directory, split)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the options of the command."""
    parser = argparse.ArgumentParser(prog="python -m ghm_triton.detection.trees", description=__doc__.splitlines()[0])
    parser.add_argument("directory", metavar="DIR", help="folder to write to")
    parser.add_argument("--wheel", metavar="FILE", help=f"wheel of {REQUIREMENT}, instead of the download")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
