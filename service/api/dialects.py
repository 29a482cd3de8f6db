"""Every dialect's routes in one table."""

from __future__ import annotations

from service.api import classify
from service.api.endpoint import EndpointTable

TABLE = EndpointTable(classify.ENDPOINTS)
