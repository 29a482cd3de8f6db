"""Other serving systems on the same file, texts, session options and load: `make bench-peers`.

Read in this order:

1. `assignment`: how a peer is to serve; `inference`: what each one's workers run.
2. `litserve_server`, `bentoml_server`, `mlserver_server`, `ray_server`: the peers, as fast as they were found to be.
   Each runs in an environment of its own; nothing here imports them.
3. `catalogue`: where each is asked, and how; `environments`: what is installed for it.
4. `processes`: started together, paused while another one is measured, and all ended.
5. `screening`: every setting of every peer, and the best of each for the measurement; `contest`: their turns.
"""
