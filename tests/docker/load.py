"""Asks a server on eight connections until it takes its leave; run inside a container, with the standard library only.

python load.py HOST PORT MODEL: prints `loaded` once answers flow, and in the end what became of all requests, as JSON.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading

CONNECTIONS = 8
ENOUGH = 200


class Tally:
    """What became of the requests of all connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.statuses: dict[int, int] = {}
        self.lost: list[str] = []
        self.flowing = threading.Event()

    def answered(self, status: int) -> None:
        """Count an answer."""
        with self._lock:
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if sum(self.statuses.values()) >= ENOUGH:
                self.flowing.set()


def ask(host: str, port: int, model: str, tally: Tally) -> None:
    """Send one request after the other on one connection until an answer says that it was the last."""
    body = json.dumps({"model": model, "input": ["a good film"] * 4})
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.connect()
    with contextlib.closing(connection):
        while True:
            try:
                connection.request("POST", "/v1/classify", body)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                tally.lost.append(repr(error))
                tally.flowing.set()
                return
            tally.answered(response.status)
            if response.getheader("connection") == "close":
                return


def main(host: str, port: str, model: str) -> None:
    """Load the server, report that it is loaded, and report all once it is gone."""
    tally = Tally()
    threads = [threading.Thread(target=ask, args=(host, int(port), model, tally)) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    tally.flowing.wait()
    sys.stdout.write("loaded\n")
    sys.stdout.flush()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps({"statuses": tally.statuses, "lost": tally.lost}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
