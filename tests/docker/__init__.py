"""The deployment against a real engine: `make test-docker`, or `python -m tests.docker`.

The checks are the files `check_*.py`, which the ordinary `pytest` does not collect. Read in this order:

1. `commands`, `engine`, `stand_ins`: the engine that answers, or one of our own with base images made from packages.
2. `monitoring`: the queries of rules and dashboard, and which of them have no data.
3. `deployment`: the images, and the compose project that the checks look at; `load` runs inside a container.
4. `check_configuration`, `check_image`, `check_service`, `check_monitoring`, `check_faults`; `check_checks` breaks what
   they look at and sees that they notice.
5. `__main__`: the order of it all, and the end of it, whatever happens.
"""
