"""The losses: the function and the module of each in one file, and in `base.py` what they share."""
