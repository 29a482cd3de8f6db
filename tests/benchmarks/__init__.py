"""The service against what the same processor can do at best: `make bench`, or `python -m tests.benchmarks`.

Every ratio is of figures that were taken in turns within one run. Read in this order:

1. `figures`: a figure, its bar, and the report that collects them.
2. `subjects`, `artificial`: the model files and texts that are measured.
3. `engine`: ONNX Runtime alone, in every arrangement that gives the same answers.
4. `servers`, `plain_endpoint`, `least_endpoint`, `wrk`: the servers that are driven, and what drives them.
5. `throughput`, `floor`, `arrivals`, `life_cycle`, `queue_cost`: the measurements.
6. `peers`: other serving systems under the same load, with `make bench-peers`.
7. `__main__`: the order in which they run.
"""
