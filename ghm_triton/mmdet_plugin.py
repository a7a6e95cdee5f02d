"""Register GHMC and GHMR in mmdetection 3.x when this module is imported.

In a config::

    custom_imports = dict(imports=["ghm_triton.mmdet_plugin"], allow_failed_imports=False)
"""

from .mmdet import register_mmdet

register_mmdet()
