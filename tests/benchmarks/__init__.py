"""The service against what the same processor can do at best: `make bench`, or `python -m tests.benchmarks`.

Every ratio is of figures that were taken in turns within one run. Read in this order:

1. `figures`: a figure, its bar, and the report that collects them.
2. `subjects`, `artificial`: the model files and texts that are measured.
3. `engine`: ONNX Runtime alone, in every arrangement that gives the same answers.
4. `servers`, `plain_endpoint`, `least_endpoint`, `wrk`: the servers that are driven, and what drives them.
5. `open_loop`, `timer`, `priority`: a load that comes at given times, and what keeps to them.
6. `throughput`, `floor`, `arrivals`, `life_cycle`, `queue_cost`: the measurements.
7. `peers`: other serving systems under the same load, with `make bench-peers`.
8. `__main__`: the order in which they run.
"""
