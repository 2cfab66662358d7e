"""Checks that run in several processes at once; `tests/distributed/test_processes.py` starts them and reports."""
