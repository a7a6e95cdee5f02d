"""What the wheel and the sdist hold, and that both work when installed beside the PyTorch of this environment."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

for needed in ("build", "pip"):  # not imported, nor searched by importlib: setuptools then refuses to be imported
    try:
        importlib.metadata.version(needed)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"could not find {needed!r}", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("package")]
ROOT = pathlib.Path(__file__).parents[2]
LEFT_BEHIND = (
    "__pycache__",
    "*.pyc",
    "*.egg-info",
    ".*cache",
    ".hypothesis",
    ".venv*",
    ".git",
    "build",
    "dist",
    "runs",
)


def run(*command, cwd):
    """The output of the command; its failure is this test's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def sources(root):
    """The Python files of a tree, by their path in it."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*.py")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository without what building and running leave behind."""
    return shutil.copytree(
        ROOT, tmp_path_factory.mktemp("package") / "tree", ignore=shutil.ignore_patterns(*LEFT_BEHIND)
    )


@pytest.fixture(scope="module")
def archives(tree):
    """(wheel, sdist); the wheel is built from the sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tree.parent / "dist", tree, cwd=tree.parent)
    (wheel,), (sdist,) = (tree.parent / "dist").glob("*.whl"), (tree.parent / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture
def environment(tmp_path):
    """The Python of a new virtual environment, which has the libraries of this one but not its editable packages."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "libraries.pth").write_text("\n".join(libraries))  # a .pth file in those is not followed
    return tmp_path / "env" / "bin" / "python"


def install(environment, *arguments, cwd):
    flags = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    run(sys.executable, "-m", "pip", "--python", environment, "install", *flags, *arguments, cwd=cwd)


def test_the_wheel_holds_the_package(tree, archives):
    """Each module of ghm_triton/ and kernels/, the marker of types, and nothing else."""
    expected = {f"ghm_triton/{path}" for path in sources(tree / "ghm_triton")} | {"ghm_triton/py.typed"}
    expected |= {f"ghm_triton/kernels/{path}" for path in sources(tree / "kernels")}
    found = set(zipfile.ZipFile(archives[0]).namelist())
    assert {path for path in found if ".dist-info/" not in path} == expected
    assert any(path.endswith("licenses/LICENSE") for path in found)


def test_the_sdist_holds_the_repository(tree, archives):
    """Each file that is not ignored by Git, so that tests and reports run from it."""
    made_by_setuptools = {"PKG-INFO", "setup.cfg"}
    with tarfile.open(archives[1]) as sdist:
        found = {path.partition("/")[2] for path in sdist.getnames() if sdist.getmember(path).isfile()}
    expected = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    found, expected = ({path for path in paths if ".egg-info/" not in path} for paths in (found, expected))
    assert found - made_by_setuptools == expected


def test_the_wheel_works(archives, environment, tmp_path):
    """In an empty environment: a loss, its gradient, the kernels and the version."""
    install(environment, archives[0], cwd=tmp_path)
    script = """
import importlib.metadata, torch, ghm_triton
from ghm_triton.backend import kernels
logits = torch.zeros(4, 3, requires_grad=True)
loss = ghm_triton.GHMCLoss(bins=2)(logits, torch.tensor([0, 1, 2, -1]))
loss.backward()
assert abs(loss.item() - 0.6931472) < 1e-6, loss  # all 12 elements in one region: every weight is 1
assert abs(logits.grad[0, 0].item() + 1 / 24) < 1e-8, logits.grad
assert importlib.metadata.version("ghm-triton") == ghm_triton.__version__
print(ghm_triton.__file__, kernels and kernels.__file__)
"""
    for place in run(environment, "-c", script, cwd=tmp_path).split():
        assert place == "None" or place.startswith(str(tmp_path / "env"))


def test_the_tests_run_from_the_sdist(archives, environment, tmp_path):
    """Unpacked and installed as `make test` does: each test is collected, and a fast file passes."""
    shutil.unpack_archive(archives[1], tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("ghm_triton-*")
    install(environment, "--editable", unpacked, cwd=tmp_path)
    collected = run(environment, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", cwd=unpacked)
    assert "error" not in collected.lower().splitlines()[-1]
    place = run(environment, "-c", "import ghm_triton.kernels; print(ghm_triton.kernels.__file__)", cwd=tmp_path)
    assert place.strip() == str(unpacked / "kernels" / "__init__.py")
    run(environment, "-m", "pytest", "-p", "no:cacheprovider", "tests/losses/test_density.py", cwd=unpacked)
