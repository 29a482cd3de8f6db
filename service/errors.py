"""Every error of the service, and the one table that gives each expected error its HTTP status.

`ServiceError` and the errors of `model_store.errors` are what a client can see. A dialect renders an `Outcome` in its
own shape; none of them chooses a status.
"""

from __future__ import annotations

from dataclasses import dataclass

from model_store import errors as store


class ServiceError(store.SuccessorError):
    """Base of the service's own expected errors.

    Args:
        message: one sentence that says what to do.
        param: the field of the request that is wrong, where there is one.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(ServiceError):
    """The request's body, header or parameter is not as documented."""


class NoTextsError(InvalidRequestError):
    """The request has no text to classify."""


class NotSupportedError(ServiceError):
    """The request asks for something of its protocol that this server does not do."""


class BodyTooLargeError(ServiceError):
    """The request's body has more bytes than the server reads."""


class UnsupportedEncodingError(ServiceError):
    """The request's body has a Content-Encoding; the server reads plain bytes."""


class RequestTimeoutError(ServiceError):
    """The request's header and body did not arrive in time."""


class HeaderTooLargeError(ServiceError):
    """The request's line and header have more bytes than the server reads."""


class TooManyConnectionsError(ServiceError):
    """The server has as many connections open as it may; this one was closed."""


class TooManyTextsError(ServiceError):
    """One request has more texts than the server takes."""


class TextTooLargeError(ServiceError):
    """A text has more characters than the server tokenises."""


class ModelNotLoadedError(ServiceError):
    """No version that is loaded answers to that reference."""


class OverloadedError(ServiceError):
    """The request would wait longer than the server allows.

    Args:
        message: one sentence that says what to do.
        retry_after_s: when the queue, at the rate at which it drains now, will have room.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineUnreachableError(OverloadedError):
    """The request would wait longer than its own deadline allows, though not longer than the server does."""


class DeadlineExceededError(ServiceError):
    """The request's deadline passed before it was computed; it was dropped."""


class ClientGoneError(ServiceError):
    """The caller hung up; nobody reads this answer."""


class WorkerLostError(ServiceError):
    """The worker that ran the request died or did not come back; the request may be sent again."""


class ShuttingDownError(ServiceError):
    """The server is going down and takes no more work."""


class AuthenticationError(ServiceError):
    """The request has no API key, or one that is not known (any more)."""


class NotPermittedError(ServiceError):
    """The API key lacks the scope that the route needs, or administration is off: there are no keys."""


class RateLimitedError(OverloadedError):
    """The API key has sent more requests than it may."""


class WrongPortError(ServiceError):
    """The route is on the server's other port."""


class ListenError(ServiceError):
    """The server can't listen on the address that it was given."""


class TlsError(ServiceError):
    """The certificate or its private key can't be used."""


class NotAcknowledgedError(ServiceError):
    """An administrative action was not done by every server process: it took too long, or one can't serve a version."""


class UnusableVersionError(ServiceError):
    """A version that was to be served can't be: it does not load, or does not answer."""


class DemandNotKeptError(ServiceError):
    """What an operator asked for could not be written down."""


_FAULT = "server_error"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client is told about one class of errors: the HTTP status, a broad type and a precise code."""

    status: int
    type: str
    code: str

    @property
    def fault(self) -> bool:
        """It is the server's own fault, and its log has more than the client is told."""
        return self.type == _FAULT


_INVALID = "invalid_request_error"
_MISSING = "not_found_error"
_BUSY = "overloaded_error"
_CONFLICT = "conflict_error"

OUTCOMES: dict[type[store.SuccessorError], Outcome] = {
    store.SuccessorError: Outcome(500, _FAULT, "internal_error"),
    ServiceError: Outcome(500, _FAULT, "internal_error"),
    InvalidRequestError: Outcome(400, _INVALID, "invalid_request"),
    NoTextsError: Outcome(400, _INVALID, "no_texts"),
    NotSupportedError: Outcome(501, _INVALID, "not_supported"),
    BodyTooLargeError: Outcome(413, _INVALID, "body_too_large"),
    UnsupportedEncodingError: Outcome(415, _INVALID, "unsupported_encoding"),
    RequestTimeoutError: Outcome(408, "timeout_error", "request_timeout"),
    HeaderTooLargeError: Outcome(431, _INVALID, "header_too_large"),
    TooManyConnectionsError: Outcome(503, _BUSY, "too_many_connections"),
    TooManyTextsError: Outcome(413, _INVALID, "too_many_texts"),
    TextTooLargeError: Outcome(413, _INVALID, "text_too_large"),
    ModelNotLoadedError: Outcome(404, _MISSING, "model_not_found"),
    OverloadedError: Outcome(429, _BUSY, "overloaded"),
    DeadlineUnreachableError: Outcome(429, _BUSY, "deadline_unreachable"),
    DeadlineExceededError: Outcome(504, "timeout_error", "deadline_exceeded"),
    ClientGoneError: Outcome(499, _INVALID, "client_closed_request"),
    WorkerLostError: Outcome(503, _FAULT, "worker_lost"),
    ShuttingDownError: Outcome(503, _BUSY, "shutting_down"),
    AuthenticationError: Outcome(401, "authentication_error", "invalid_api_key"),
    NotPermittedError: Outcome(403, "permission_error", "not_permitted"),
    RateLimitedError: Outcome(429, _BUSY, "rate_limited"),
    WrongPortError: Outcome(404, _MISSING, "route_not_found"),
    NotAcknowledgedError: Outcome(504, "timeout_error", "not_acknowledged"),
    UnusableVersionError: Outcome(409, _CONFLICT, "unusable_version"),
    DemandNotKeptError: Outcome(409, _CONFLICT, "state_not_writable"),
    ListenError: Outcome(500, _FAULT, "cannot_listen"),
    TlsError: Outcome(500, _FAULT, "cannot_use_certificate"),
    store.StoreError: Outcome(500, _FAULT, "store_error"),
    store.InvalidReferenceError: Outcome(400, _INVALID, "invalid_model"),
    store.ModelNotFoundError: Outcome(404, _MISSING, "model_not_found"),
    store.IntegrityError: Outcome(409, _CONFLICT, "corrupt_version"),
    store.StoreWriteError: Outcome(409, _CONFLICT, "store_not_writable"),
    store.VersionInUseError: Outcome(409, _CONFLICT, "version_in_use"),
    store.ClassifierError: Outcome(500, _FAULT, "model_error"),
    store.ProviderNotAvailableError: Outcome(500, _FAULT, "provider_not_available"),
    store.RuntimeInstallationError: Outcome(500, _FAULT, "runtime_installation"),
    store.InvalidTextError: Outcome(400, _INVALID, "invalid_text"),
    store.TextTooLongError: Outcome(400, _INVALID, "text_too_long"),
    store.InferenceError: Outcome(500, _FAULT, "inference_failed"),
}

# What the server did not expect; the details are in its log, never in the answer.
UNEXPECTED = Outcome(500, _FAULT, "internal_error")

# Errors that routing raises before any of our code runs, by status.
ROUTING = {
    404: Outcome(404, _MISSING, "route_not_found"),
    405: Outcome(405, _INVALID, "method_not_allowed"),
}


def outcome_of(error: BaseException) -> Outcome:
    """The row of the table for an error, which every class of ours has (a test walks them)."""
    return OUTCOMES.get(type(error), UNEXPECTED) if isinstance(error, store.SuccessorError) else UNEXPECTED
