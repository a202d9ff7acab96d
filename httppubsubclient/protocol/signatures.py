"""HTTP Message Signatures (RFC 9421) with hmac-sha256 in two profiles, and Content-Digest (RFC 9530).

A profile says what a signature of one direction covers:

| profile    | always covered                                                  | covered when sent                    |
|------------|-----------------------------------------------------------------|--------------------------------------|
| `REQUEST`  | `@method` `@path` `@query`                                      | `content-digest` `idempotency-key`   |
|            |                                                                 | `pubsub-deliver-at` `pubsub-expires` |
| `DELIVERY` | `@method` `content-digest` `pubsub-topic` `pubsub-subscription` | `pubsub-sequence` `pubsub-previous`  |
|            | `pubsub-attempt` `webhook-id`                                   |                                      |

What is signed is the signature base (RFC 9421 section 2.5), one line for each component, in the sender's order:

    "@method": POST
    "@path": /v1/notify
    "@query": ?topic=foo
    "@signature-params": ("@method" "@path" "@query");created=1790000000;nonce="...";keyid="k1";alg="hmac-sha256"

This module knows the syntax and the arithmetic; whose key it is and whether it is still valid says credentials.py.
Both headers are read strictly: the subset of structured fields (RFC 8941) that signatures of these profiles use, at
most 4 signatures, 4096 characters a header. Whatever does not fit is `Unauthorized`, never another exception.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from httppubsubclient.protocol.errors import InvalidRequest, Unauthorized

__all__ = [
    "ALGORITHM",
    "DELIVERY",
    "LABEL",
    "MAX_HEADER_LENGTH",
    "MAX_SIGNATURES",
    "REQUEST",
    "OwnClaim",
    "Profile",
    "Reason",
    "SignatureClaim",
    "component_list",
    "content_digest",
    "holds",
    "own_holds",
    "parse_content_digest",
    "parse_signatures",
    "prepared_mac",
    "read_own",
    "sign",
    "signature_base",
]

ALGORITHM: Final = "hmac-sha256"
LABEL: Final = "sig1"
MAX_HEADER_LENGTH: Final = 4096
MAX_SIGNATURES: Final = 4

Reason = Literal[
    "missing",
    "malformed",
    "wrong_algorithm",
    "unknown_key",
    "key_expired",
    "not_covered",
    "outside_tolerance",
    "expired",
    "bad_nonce",
    "mismatch",
]
"""The attribute `reason` of an `Unauthorized` that is raised here or in credentials.py."""

# RFC 8941 section 3.1.2 (key), 3.3.3 (string), 3.3.1 (integer). Possessive: no input makes these go back and forth.
_KEY: Final = r"[a-z*][a-z0-9_.*-]*+"
_STRING: Final = r'"(?:[ !#-\[\]-~]|\\["\\])*+"'
_INTEGER: Final = r"-?[0-9]{1,15}+"
_INPUT_MEMBER = re.compile(
    rf'({_KEY})=\( *+((?:"[a-z0-9@_-]++"(?: ++"[a-z0-9@_-]++")*+)?+) *+\)'
    rf"((?:; *+{_KEY}=(?:{_STRING}|{_INTEGER}))*+)"
)
_PARAMETER = re.compile(rf"; *+({_KEY})=(?:({_STRING})|({_INTEGER}))")
_SIGNATURE_MEMBER = re.compile(rf"({_KEY})=:([A-Za-z0-9+/]*+={{0,2}}):")
_SEPARATOR = re.compile(r"[ \t]*+,[ \t]*+")
# One signature, spelled as `sign` spells it: whatever fits here, the strict reading below reads in the same way.
_OWN_INPUT = re.compile(
    rf'{LABEL}=((\("[a-z0-9@_-]++"(?: "[a-z0-9@_-]++")*+\));created=([0-9]{{1,15}});nonce="([!#-\[\]-~]{{16,64}})";'
    rf'keyid="([!#-\[\]-~]{{1,64}})";alg="{ALGORITHM}")'
)
_OWN_SIGNATURE = re.compile(rf"{LABEL}=:([A-Za-z0-9+/]{{43}}=):")
_ESCAPED = re.compile(r'\\(["\\])')
_STRING_PARAMETERS: Final = frozenset({"nonce", "keyid", "alg", "tag"})
_INTEGER_PARAMETERS: Final = frozenset({"created", "expires"})
_REQUIRED_PARAMETERS: Final = ("created", "nonce", "keyid", "alg")
# What goes into a parameter between quotes without escaping.
_PLAIN = re.compile(r"[!#-\[\]-~]{1,64}", re.ASCII)

_MAX_DIGEST_LENGTH: Final = 1024
_DIGEST_MEMBER = re.compile(rf"({_KEY})=:([A-Za-z0-9+/]*+={{0,2}}):")


@dataclass(frozen=True, slots=True)
class Profile:
    """What the signatures of one direction cover: `always`, and of `when_sent` whatever the message has."""

    always: tuple[str, ...]
    when_sent: tuple[str, ...] = ()

    def values(self, derived: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, str]:
        """The components that this message has, in the profile's order: name -> value."""
        values = {}
        for name in self.always + self.when_sent:
            value = derived.get(name) if name.startswith("@") else headers.get(name)
            if value is not None:
                values[name] = value
        return values


REQUEST: Final = Profile(
    ("@method", "@path", "@query"), ("content-digest", "idempotency-key", "pubsub-deliver-at", "pubsub-expires")
)
DELIVERY: Final = Profile(
    ("@method", "content-digest", "pubsub-topic", "pubsub-subscription", "pubsub-attempt", "webhook-id"),
    ("pubsub-sequence", "pubsub-previous"),
)


class OwnClaim(NamedTuple):
    """What `read_own` finds."""

    parameters: str
    components: str
    """As `component_list` writes them."""
    created: int
    nonce: str
    key_id: str
    signature: str


@dataclass(frozen=True, slots=True)
class SignatureClaim:
    """One signature of a message as its two headers state it; nothing of it is proven yet."""

    label: str
    components: tuple[str, ...]
    created: int
    """Unix seconds."""
    nonce: str
    key_id: str
    algorithm: str
    expires: int | None
    parameters: str
    """The value of `@signature-params`, serialised as RFC 9421 section 2.3 wants it."""
    signature: bytes


def content_digest(sha256: bytes) -> str:
    """The value of Content-Digest (RFC 9530 section 2) for the SHA-256 of a body: `sha-256=:...:`."""
    return f"sha-256=:{base64.b64encode(sha256).decode('ascii')}:"


def parse_content_digest(text: str) -> bytes:
    """The SHA-256 (32 bytes) of a Content-Digest, other algorithms beside it or not. Raises `InvalidRequest`."""
    text = text.strip(" \t")
    if len(text) > _MAX_DIGEST_LENGTH:
        raise InvalidRequest(f"Content-Digest has at most {_MAX_DIGEST_LENGTH} characters")
    digests: dict[str, str] = {}
    position = 0
    while True:
        member = _DIGEST_MEMBER.match(text, position)
        if member is None:
            raise InvalidRequest("Content-Digest has the form sha-256=:<base64>: (RFC 9530)")
        # RFC 8941 would take the last of two; a sender and a proxy that differ on that must not both be right.
        if member[1] in digests:
            raise InvalidRequest(f"Content-Digest names {member[1]} twice")
        digests[member[1]] = member[2]
        if member.end() == len(text):
            break
        separator = _SEPARATOR.match(text, member.end())
        if separator is None:
            raise InvalidRequest(
                "Content-Digest has the form sha-256=:<base64>:, several separated by commas (RFC 9530)"
            )
        position = separator.end()
    if "sha-256" not in digests:
        raise InvalidRequest("Content-Digest names no sha-256, the only algorithm that is taken")
    sha256 = _decoded(digests["sha-256"])
    if sha256 is None or len(sha256) != 32:
        raise InvalidRequest("the sha-256 of Content-Digest is not the base64 of 32 bytes")
    return sha256


def sign(
    components: tuple[str, ...], values: tuple[str, ...], *, key_id: str, secret: bytes, created: int, nonce: str
) -> dict[str, str]:
    """Sign `values`, those of `components`, in this order: the headers `signature-input` and `signature`.

    The key and the frame of the base are prepared once and kept, so a signature costs one HMAC over a few hundred
    bytes. Raises `InvalidRequest` for what cannot be signed: a value that is not one line of ASCII, a key id or nonce
    with quotes.
    """
    if not _PLAIN.fullmatch(nonce) or not _PLAIN.fullmatch(key_id):
        raise InvalidRequest("a nonce and a key id are 1 to 64 visible ASCII characters without quotes and backslashes")
    parameters = f'{component_list(components)};created={created};nonce="{nonce}";keyid="{key_id}";alg="{ALGORITHM}"'
    base = signature_base(components, values, parameters)
    if base is None:
        raise InvalidRequest("a signed header is one line of ASCII")
    signature = base64.b64encode(_mac(secret, base)).decode("ascii")
    return {"signature-input": f"{LABEL}={parameters}", "signature": f"{LABEL}=:{signature}:"}


def signature_base(components: tuple[str, ...], values: tuple[str, ...], parameters: str) -> bytes | None:
    """The bytes that are signed (RFC 9421 section 2.5). None when the values are not one line of ASCII each."""
    base = _base_frame(components) % (*[value.strip(" \t") for value in values], parameters)
    # A value with a line break could pretend to be further components.
    if base.count("\n") != len(components) or "\r" in base or not base.isascii():
        return None
    return base.encode("ascii")


def holds(claim: SignatureClaim, values: tuple[str, ...], secret: bytes) -> bool:
    """Whether `secret` makes this signature over `values`, those of the claim's components in its order."""
    base = signature_base(claim.components, values, claim.parameters)
    return base is not None and hmac.compare_digest(_mac(secret, base), claim.signature)


def read_own(headers: Mapping[str, str]) -> OwnClaim | None:
    """The signature of a message that has just one, spelled as `sign` does; None for all others, good or bad.

    The short way for nearly every message: a tenth of what `parse_signatures` takes.
    """
    described = _OWN_INPUT.fullmatch(headers.get("signature-input", ""))
    given = _OWN_SIGNATURE.fullmatch(headers.get("signature", ""))
    if described is None or given is None:
        return None
    parameters, components, created, nonce, key_id = described.groups()
    created = int(created)
    if len(str(created)) != len(described[3]) or len(parameters) > MAX_HEADER_LENGTH - 5:
        return None
    return OwnClaim(parameters, components, created, nonce, key_id, given[1])


def own_holds(claim: OwnClaim, components: tuple[str, ...], values: tuple[str, ...], secret: bytes) -> bool:
    """As `holds`, for `components` that are those of the claim."""
    base = signature_base(components, values, claim.parameters)
    if base is None:
        return False
    expected = binascii.b2a_base64(_mac(secret, base), newline=False)
    return hmac.compare_digest(expected, claim.signature.encode("ascii"))


def parse_signatures(headers: Mapping[str, str]) -> list[SignatureClaim]:
    """The signatures that a message carries, 1 to 4 of them. Raises `Unauthorized` (missing, malformed)."""
    signatures = _parse_signature(_header(headers, "signature"))
    claims = _parse_signature_input(_header(headers, "signature-input"), signatures)
    if len(claims) != len(signatures):
        raise _malformed("Signature and Signature-Input do not have the same labels")
    return claims


def _parse_signature(text: str) -> dict[str, bytes]:
    signatures: dict[str, bytes] = {}
    for member in _members("Signature", _SIGNATURE_MEMBER, text, "label=:<base64>:"):
        signature = _decoded(member[2])
        if signature is None:
            raise _malformed(f"the signature {_shown(member[1])} is not base64")
        if member[1] in signatures:
            raise _malformed(f"Signature has the label {_shown(member[1])} twice")
        signatures[member[1]] = signature
    return signatures


def _parse_signature_input(text: str, signatures: Mapping[str, bytes]) -> list[SignatureClaim]:
    claims: list[SignatureClaim] = []
    form = 'label=("component" ...);created=...;nonce="...";keyid="...";alg="..."'
    for member in _members("Signature-Input", _INPUT_MEMBER, text, form):
        label = member[1]
        if label not in signatures:
            raise _malformed(f"Signature has no {_shown(label)}, which Signature-Input describes")
        if any(label == claim.label for claim in claims):
            raise _malformed(f"Signature-Input has the label {_shown(label)} twice")
        claims.append(_claim(label, _components(member[2]), member[3], signatures[label]))
    return claims


def _claim(label: str, components: tuple[str, ...], text: str, signature: bytes) -> SignatureClaim:
    if len(set(components)) != len(components):
        raise _malformed(f"the signature {_shown(label)} covers a component twice")
    strings: dict[str, str] = {}
    integers: dict[str, int] = {}
    serialised = [component_list(components)]
    for name, quoted, digits in _PARAMETER.findall(text):
        if name in strings or name in integers:
            raise _malformed(f"the signature {_shown(label)} has the parameter {_shown(name)} twice")
        if quoted and name in _STRING_PARAMETERS:
            strings[name] = _ESCAPED.sub(r"\1", quoted[1:-1])
            serialised.append(f"{name}={quoted}")
        elif digits and name in _INTEGER_PARAMETERS:
            integers[name] = int(digits)
            serialised.append(f"{name}={integers[name]}")
        else:
            raise _malformed(
                f"the signature {_shown(label)} has the parameter {_shown(name)}, unknown or of wrong type"
            )
    for name in _REQUIRED_PARAMETERS:
        if name not in strings and name not in integers:
            raise _malformed(f"the signature {_shown(label)} lacks the parameter {name!r}")
    return SignatureClaim(
        label=label,
        components=components,
        created=integers["created"],
        nonce=strings["nonce"],
        key_id=strings["keyid"],
        algorithm=strings["alg"],
        expires=integers.get("expires"),
        parameters=";".join(serialised),
        signature=signature,
    )


def _members(header: str, form: re.Pattern[str], text: str, shown_form: str) -> list[re.Match[str]]:
    """The members of a dictionary (RFC 8941 section 3.2)."""
    members: list[re.Match[str]] = []
    position = 0
    while True:
        member = form.match(text, position)
        if member is None:
            raise _malformed(f"{header} does not have the form {shown_form} from character {position + 1} on")
        if len(members) == MAX_SIGNATURES:
            raise _malformed(f"{header} has more than {MAX_SIGNATURES} signatures")
        members.append(member)
        if member.end() == len(text):
            return members
        separator = _SEPARATOR.match(text, member.end())
        if separator is None:
            raise _malformed(f"{header} does not have the form {shown_form} at character {member.end() + 1}")
        position = separator.end()


def _header(headers: Mapping[str, str], name: str) -> str:
    text = headers.get(name, "").strip(" \t")
    if not text:
        raise Unauthorized(
            f"the header {name} is missing: this is signed with HTTP Message Signatures (RFC 9421)", reason="missing"
        )
    if len(text) > MAX_HEADER_LENGTH:
        raise _malformed(f"the header {name} has more than {MAX_HEADER_LENGTH} characters")
    return text


@lru_cache(maxsize=256)
def _components(text: str) -> tuple[str, ...]:
    return tuple(text.replace('"', "").split())


@lru_cache(maxsize=256)
def _base_frame(components: tuple[str, ...]) -> str:
    return "\n".join(f'"{name}": %s' for name in (*components, "@signature-params"))


@lru_cache(maxsize=256)
def component_list(components: tuple[str, ...]) -> str:
    """The covered components as an inner list (RFC 9421 section 2.3), without parameters."""
    return "(" + " ".join(f'"{name}"' for name in components) + ")"


@lru_cache(maxsize=256)
def prepared_mac(secret: bytes) -> HMAC:
    """An HMAC with its key set up; copy it before use."""
    return HMAC(secret, SHA256())


def _mac(secret: bytes, base: bytes) -> bytes:
    mac = prepared_mac(secret).copy()
    mac.update(base)
    return mac.finalize()


def _decoded(text: str) -> bytes | None:
    """Base64, padded and canonical (RFC 4648 section 3.5); None for anything else."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except binascii.Error:
        return None
    return decoded if base64.b64encode(decoded) == text.encode("ascii") else None


def _malformed(detail: str) -> Unauthorized:
    return Unauthorized(detail, reason="malformed")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
