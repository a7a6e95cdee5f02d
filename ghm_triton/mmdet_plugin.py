"""Registers GHMC and GHMR in mmdetection 3.x when it is imported. In a config:

custom_imports = dict(imports=["ghm_triton.mmdet_plugin"], allow_failed_imports=False)
"""

from .mmdet import register_mmdet

register_mmdet()
