"""The deployment against a real engine: `make test-docker`.

The checks are the files `check_*.py`, which the ordinary `pytest` does not collect. Read in this order:

1. `commands`, `engine`, `stand_ins`: the engine that answers, or one of our own with base images made from packages.
2. `deployment`: the images, and a compose project that checks look at. `load` runs in a container beside it.
3. `monitoring`, `published_types`: what rules and dashboard ask, and which of it has no data; what manifests may hold.
4. `conftest`: one engine, one build and one running project for all; the end of it all, whatever happens.
5. `check_configuration`, `check_image`, `check_service`, `check_monitoring`, `check_life_cycle`, `check_faults`; and
   `check_checks`, which breaks what they look at and sees that they notice.
"""
