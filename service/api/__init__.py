"""One file for each dialect; `common` holds what they share.

1. `common`: what a request finds in the running service, bodies, deadlines, errors in the native shape.
2. `classify`, `classify_schema`: the native dialect's hot path; its request, its answer and their description.
3. `operations`: models, health, metrics, administration.
"""
