"""Every dialect's routes in one table."""

from __future__ import annotations

from service.api import classify, hugging_face, open_inference, text_embeddings_inference
from service.api.endpoint import EndpointTable

TABLE = EndpointTable(
    (
        *classify.ENDPOINTS,
        *open_inference.ENDPOINTS,
        *text_embeddings_inference.ENDPOINTS,
        *hugging_face.ENDPOINTS,
    )
)
