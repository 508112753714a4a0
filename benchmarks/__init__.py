"""Measurements: the layers in `cases.py`, the programs in `run.py` and `device.py`; see README.md."""
