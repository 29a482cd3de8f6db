"""One file per compression method; a recipe finds it by its file's name. `step.py` says what such a file holds."""
