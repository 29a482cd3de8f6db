"""One file for each dialect; the others hold what they share.

1. `common`: what a request finds in the running service, bodies, deadlines, and how a dialect shows an error.
2. `endpoint`: a route, what its handler gets and gives, and the work that most of them ask for.
3. `access`: who may do what.
4. `classify`, `classify_schema`: the native dialect's hot path; its request, its answer and their description.
5. `operations`: models, health, metrics, administration.
6. `dialects`, `envelope`: every route in one table; what is around all of them.
"""
