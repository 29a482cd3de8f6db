"""Why a peer is left out."""

from model_store.errors import SuccessorError


class PeerError(SuccessorError):
    """A peer can't be measured: not installed, not started, or its answers are not those of the file."""
