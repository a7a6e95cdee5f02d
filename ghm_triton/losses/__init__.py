"""The losses. Each file has a function and a module; `base.py` has what they share."""
