"""Checks that run in several processes at once; `tests/test_distributed.py` starts them and reports."""
