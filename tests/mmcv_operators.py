"""A stand-in for mmcv's compiled operators, which mmdetection needs at import, and a way to run scripts with it.

python mmcv_operators.py SCRIPT ARGUMENTS ...
"""

import importlib.machinery
import runpy
import sys
import types


def _missing(*args, **kwargs):
    raise NotImplementedError("mmcv's compiled operators are not installed")


class _Operators(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _missing


def install() -> None:
    """Make `mmcv._ext` a module in which each operator raises NotImplementedError."""
    module = _Operators("mmcv._ext")
    module.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = module


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
