"""Who may do what: static bearer tokens with roles, checked before any route is looked up (decision 17).

Without tokens everybody who reaches the port may do everything, which is why only loopback is listened on then.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from meshpulse.asgi import Scope
from tsdb.db import DEFAULT_TENANT
from tsdb.errors import Reason
from tsdb.tally import Tally


class Role(StrEnum):
    """What a token is for; ``admin`` may do everything."""

    READ = "read"
    WRITE = "write"
    ACTUATE = "actuate"
    ADMIN = "admin"


PUBLIC = frozenset({"/-/healthy", "/-/ready", "/ready"})
"""Asked by probes, which hold no token; they tell nothing but how far a start is."""

_WRITES = (
    "/api/v1/write",
    "/api/v1/import",
    "/api/v1/otlp/",
    "/opentelemetry/",
    "/otlp/",
    "/loki/api/v1/push",
    "/api/prom/push",
)
_ADMIN = ("/api/v1/admin/", "/-/reload", "/-/quit", "/loki/api/v1/delete")
_ACTUATED = "/api/v1/health/"
_READING = frozenset({"GET", "HEAD"})


def role_needed(method: str, path: str) -> Role:
    """What a request needs; reading, unless its path says otherwise."""
    if path.startswith(_WRITES):
        return Role.WRITE
    if path.startswith(_ADMIN):
        return Role.ADMIN
    if path.startswith(_ACTUATED) and method not in _READING:
        return Role.ACTUATE
    return Role.READ


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the configuration.

    Attributes
    ----------
    name : for logs and errors; the user name when it comes as basic authentication
    digest : SHA-256 of the secret: all are equally long, so that comparing tells nothing about the length
    tenants : those it may name; empty = all
    """

    name: str
    digest: bytes
    roles: frozenset[Role]
    tenants: frozenset[str] = frozenset()

    @classmethod
    def of(cls, name: str, secret: str, roles: Iterable[Role], tenants: Iterable[str] = ()) -> Token:
        """A token from its secret."""
        return cls(name, hashlib.sha256(secret.encode()).digest(), frozenset(roles), frozenset(tenants))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served: 401 without a valid token, 403 when it is not for this."""

    status: int
    text: str


class Guard:
    """Checks requests against the tokens and counts what it refuses."""

    def __init__(self, tokens: Iterable[Token], tally: Tally) -> None:
        self._tokens = tuple(tokens)
        self._tally = tally

    def replace(self, tokens: Iterable[Token]) -> bool:
        """Ask for other tokens from now on; whether they are others."""
        before, self._tokens = self._tokens, tuple(tokens)
        return before != self._tokens

    def refuse(self, scope: Scope) -> Refusal | None:
        """Why an HTTP or WebSocket request is not served; None = go ahead."""
        path = scope["path"]
        method = scope.get("method", "GET")
        if not self._tokens or path in PUBLIC or method == "OPTIONS":  # a preflight never carries a token
            return None
        authorization = b""
        tenant = DEFAULT_TENANT
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"x-scope-orgid":
                tenant = value.decode("latin-1") or DEFAULT_TENANT
        token = self._find(authorization)
        if token is None:
            self._tally.add(Reason.UNAUTHENTICATED)
            return Refusal(401, "a valid token is needed: Authorization: Bearer TOKEN")
        role = role_needed(method, path)
        if role not in token.roles and Role.ADMIN not in token.roles:
            self._tally.add(Reason.FORBIDDEN)
            return Refusal(403, f"token {token.name} has not the role {role}")
        if token.tenants and tenant not in token.tenants:
            self._tally.add(Reason.FORBIDDEN)
            return Refusal(403, f"token {token.name} is not for tenant {tenant[:64]}")
        return None

    def _find(self, authorization: bytes) -> Token | None:
        """The token of an ``Authorization`` header; all are compared, whichever fits, in constant time."""
        digest = hashlib.sha256(_secret(authorization)).digest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def _secret(authorization: bytes) -> bytes:
    """The secret of a bearer token, or the password of basic authentication; ``b""`` when there is neither."""
    scheme, _, rest = authorization.strip().partition(b" ")
    match scheme.lower():
        case b"bearer":
            return rest.strip()
        case b"basic":
            try:
                return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
            except binascii.Error:
                return b""
    return b""
