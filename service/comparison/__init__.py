"""Predecessor against successor: both driven over HTTP with real texts, side by side, and what that shows.

Read in this order:

1. `texts`: the texts, their labels, and whether they fit the models.
2. `connection`, `load`: the load generator: keep-alive connections, and the closed loop over them.
3. `servers`: the servers that are started for a comparison, and what they say of their models.
4. `measure`: the interleaving, and the raw samples that it leaves.
5. `quality`, `results`: from samples to figures with intervals, and the conclusions that they allow.
6. `report`, `plots`: the table, report.json, report.md, samples.csv, and the pictures.
7. `cli`: `successor compare`; `errors`: what it says in one line.
"""
