"""Detectors by name, and a small one that trains on a CPU."""
