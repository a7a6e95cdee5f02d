"""What is tested: versions, device, driver, and which backend each dtype takes."""

import contextlib
import datetime
import platform
import shutil
import subprocess

import torch

import ghm_triton

from ..backend import kernels, use_triton
from ..interpreter import interpreting
from .cases import Place

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def triton_version() -> str:
    """Return the version of Triton, or "" where it is not installed."""
    if kernels is None:
        return ""
    import triton

    return triton.__version__


def versions() -> dict[str, str]:
    """Return the versions that a row of a CSV has, by column."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version(),
        "ghm_triton": ghm_triton.__version__,
    }


def now() -> str:
    """Return the time in UTC, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def find_places(device: torch.device) -> list[Place]:
    """Return what can be checked on `device`: the kernels on a GPU, else the eager backend and the interpreter."""
    if device.type in ("cuda", "xpu"):
        return [Place(device, "triton" if kernels is not None else "eager")]
    place = Place(torch.device("cpu"), "eager")
    return [place, Place(place.device, "triton")] if kernels is not None and interpreting() else [place]


def describe_machine(device: torch.device) -> list[str]:
    """Return lines that tell what is tested."""
    versions = f"ghm-triton {ghm_triton.__version__}, PyTorch {torch.__version__}, Triton {triton_version() or 'none'}"
    lines = [f"{versions}, Python {platform.python_version()}, {platform.platform(terse=True)} {platform.machine()}"]
    if device.type in ("cuda", "xpu"):
        lines.append(f"device: {_describe_gpu(device)}")
    else:
        found = torch.accelerator.is_available() if hasattr(torch, "accelerator") else False
        threads = torch.get_num_threads()
        lines.append(f"device: the CPU{'' if found else '. No GPU was found'}, {threads} thread{'s' * (threads > 1)}")
        if kernels is not None and not interpreting():
            lines.append("The kernels are not checked. TRITON_INTERPRET=1 checks them in Triton's interpreter.")
    names = {True: "Triton kernels", False: "eager"}
    inputs = [torch.empty(0, device=device, dtype=dtype) for dtype in DTYPES]
    chosen = [(str(input.dtype).removeprefix("torch."), names[use_triton(None, input)]) for input in inputs]
    return [*lines, "backend: " + ", ".join(f"{dtype} {name}" for dtype, name in chosen)]


def _describe_gpu(device: torch.device) -> str:
    module = getattr(torch, device.type)
    properties = module.get_device_properties(device)
    parts = [f"{device}, {properties.name}", f"{properties.total_memory / 2**30:.1f} GiB"]
    parts.append(f"{free_bytes(device) / 2**30:.1f} GiB free")
    if device.type == "cuda" and torch.version.hip is None:
        parts += [f"compute capability {properties.major}.{properties.minor}", f"CUDA {torch.version.cuda}"]
    elif device.type == "cuda":
        parts += [getattr(properties, "gcnArchName", "unknown architecture"), f"ROCm {torch.version.hip}"]
    return ", ".join([*parts, f"driver {getattr(properties, 'driver_version', None) or driver_version()}"])


def driver_version() -> str:
    """Return the version of the driver of NVIDIA or AMD, or "unknown"."""
    for command in (
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        ["cat", "/sys/module/amdgpu/version"],
    ):
        if shutil.which(command[0]):
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                done = subprocess.run(command, capture_output=True, text=True, timeout=10)
                if done.returncode == 0 and done.stdout.strip():
                    return done.stdout.split()[0]
    return "unknown"


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a GPU; 0 where it is unknown, and for the CPU, where nothing large is tried."""
    with contextlib.suppress(AttributeError, RuntimeError):
        return getattr(torch, device.type).mem_get_info(device)[0]
    return 0


def device_name(device: torch.device) -> str:
    """Return the name of the hardware, as the CSV of the sweep has it."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).get_device_properties(device).name
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
