"""`python -m perf.accuracy` compares detectors trained with different losses."""
