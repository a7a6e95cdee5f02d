"""Checkpoints. They are written under a temporary name and then renamed, so that a checkpoint is always complete."""

import os
import pathlib
import random

import numpy
import torch

FORMAT = 1


def save_checkpoint(path: str | pathlib.Path, state: dict) -> None:
    """Write `state` to `path`. An existing file stays as it is until the new one is complete.

    Raises:
        OSError: The file cannot be written (no space, no permission).
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.writing")
    try:
        with open(temporary, "wb") as file:
            torch.save(state | {"format": FORMAT}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns some OSErrors into RuntimeErrors
        temporary.unlink(missing_ok=True)
        kept = "; the earlier checkpoint is unchanged" if path.exists() else ""
        raise OSError(f"checkpoint {path} cannot be written: {error}{kept}") from error


def load_checkpoint(path: str | pathlib.Path) -> dict:
    """Return the state that :func:`save_checkpoint` wrote, on the CPU. No code in the file is run.

    Raises:
        OSError: The file does not exist, or cannot be read.
        ValueError: The file is not a checkpoint of this package.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"checkpoint must be an existing file, got {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on other files, the unpickler may raise almost any exception
        raise ValueError(f"checkpoint must be a file of ghm_triton.detection.train, got {path}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        got = f"format {state.get('format')!r}" if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"checkpoint must be a file of ghm_triton.detection.train, format {FORMAT}, got {path}: {got}")
    return state


def random_state() -> dict:
    """Return the states of the random generators of Python, NumPy and PyTorch in this process, as plain types."""
    name, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    """Restore the states that :func:`random_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
