"""What became of a call that a broadcaster did not answer, in words that say what to do about it.

Without an answer there is little to go by. What TLS says is told as far as it says anything: a server that wants a
certificate and gets none, and one that is spoken to in the wrong protocol, often just close the connection. So then all
that is likely is named.
"""

from __future__ import annotations

import ssl
from typing import Final

import httpx

__all__ = ["is_hopeless", "what_failed"]

_OWN_CERTIFICATE: Final = "broadcaster_client_certfile, or --tls, says which one we show"

_NOBODY_WE_TRUST: Final = frozenset({2, 18, 19, 20, 21})
"""X509_V_ERR_...: no issuer (2, 20, 21), a certificate that signed itself (18, 19)."""

_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
"""What OpenSSL, of whichever version, says of an answer in plain HTTP."""

_MAX_CAUSES: Final = 10
"""There are four with httpx. Errors that are raised again may be among their own causes."""


def what_failed(error: Exception, seconds: float, url: str, *, shows_certificate: bool) -> str:
    """What the broadcaster at `url` did, to be put behind its name. `seconds` is how long it had."""
    if isinstance(error, TimeoutError):
        return f"did not answer within {seconds:.3g} s"
    if isinstance(error, httpx.ConnectTimeout):
        return "did not accept a connection in time"
    tls = _tls_error(error)
    if tls is not None and (said := _said_by_tls(tls)):
        return said
    if isinstance(error, httpx.ConnectError):
        return f"is not reachable ({error})"
    if isinstance(error, (httpx.ReadError, httpx.WriteError)) or _is_disconnected(error):
        if not url.startswith("https:"):
            other = "it speaks TLS there and its URL begins with https:"
        elif shows_certificate:
            other = "it does not take the certificate that we show"
        else:
            other = f"it wants a certificate of ours ({_OWN_CERTIFICATE})"
        return f"closed the connection without an answer; perhaps {other}, or the body is above its max_body_bytes"
    return f"broke off ({type(error).__name__}: {error})"


def is_hopeless(error: Exception) -> bool:
    """Whether another try comes out the same until somebody changes a certificate or a setting."""
    tls = _tls_error(error)
    return isinstance(error, httpx.ConnectError) and (
        isinstance(tls, ssl.SSLCertVerificationError) or (tls is not None and tls.reason in _NO_TLS)
    )


def _said_by_tls(error: ssl.SSLError) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NOBODY_WE_TRUST:
            return (
                f"shows a certificate of nobody that we trust ({error.verify_message}); "
                "broadcaster_ca_file, or --ca-file, or --tls, says whom to trust"
            )
        return f"shows a certificate that is not good: {error.verify_message}"
    reason = error.reason or ""
    if reason in _NO_TLS:
        return "does not speak TLS there; perhaps its URL begins with http:"
    if "CERTIFICATE" in reason or reason.endswith("UNKNOWN_CA"):  # an alert
        return f"does not take the certificate that we show, or that we show none ({reason}); {_OWN_CERTIFICATE}"
    return None


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """That of TLS among what an error came from."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None or isinstance(cause, ssl.SSLError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _is_disconnected(error: Exception) -> bool:
    """As httpx's own transport and FastTransport say that there was no answer at all."""
    return isinstance(error, httpx.RemoteProtocolError) and (
        "disconnected without" in str(error) or "closed the connection without" in str(error)
    )
