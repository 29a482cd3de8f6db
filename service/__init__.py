"""The online world: a server for the versions of a store.

Read in this order:

1. `settings`: everything that can be chosen.
2. `app`: the only wiring.
3. `served_model`, `batcher`: a loaded version; the queue and how a batch is formed.
4. `workers`, `engine`: the threads; admission, deadlines and the watchdog in front of them. `isolation`: a text that
   breaks its batch fails alone. `background`: what goes on beside answering. `scheduling`: when threads get a core.
5. `cost_model`: what a call costs, learned from calls.
6. `loading`, `registry`, `demand`: from the store to a model that answers; which version a request means; which names
   operators load or let go of by hand. `allocator`: the memory of what has gone.
7. `api`: one file for each dialect.
8. `errors`, `metrics`: every error and its status; every instrument. `access`, `rate_limit`: API keys and how often
   each may be used. `telemetry`, `tracing`: traces.
9. `server`, `protocol`, `logs`: sockets and signals; one connection. `health_check`: what a container asks.
10. `processes`, `control`: several server processes, and what they are told together.
11. `comparison`, `cli`, `cli_models`, `cli_keys`: two models against each other over HTTP; the command line.
"""
