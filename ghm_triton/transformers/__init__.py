"""GHM-C as the classification loss of Hugging Face's detection transformers.

criterion.py   GHM-C in the criterion that a model builds in each forward pass
models.py      the models that it fits
"""

try:
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ghm_triton.transformers needs the package transformers, which cannot be imported: "
        "run pip install -e '.[transformers]' in the clone of ghm-triton"
    ) from error

from .models import harmonize, unharmonize

__all__ = ["harmonize", "unharmonize"]
