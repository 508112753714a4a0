"""Measurements: the layers in `cases.py`, the program in `run.py`."""
