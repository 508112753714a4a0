"""Whole programs that use convjax from the outside, each run with `python -m examples.<name>`."""
