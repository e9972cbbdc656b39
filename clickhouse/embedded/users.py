"""Who may enter. The engine knows one user only; names and passwords are checked here. Pure."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

from clickhouse.embedded.errors import ClickHouseError, Code

DEFAULT_USER = "default"
ANALYST = "analyst"
"""Reads what its role in users.xml may, within the bounds of its profile there, and changes nothing."""


class Users:
    """Names and digests of passwords. The digest makes all comparisons equally long, whatever is sent."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._digests = {name: _digest(password) for name, password in passwords.items()}
        self._nobody = _digest("")

    def authenticate(self, headers: Mapping[str, str], parameters: Mapping[str, str]) -> str:
        """Name of the user who asks. Raises ClickHouseError (516) with one text for a wrong name and a wrong password.

        Credentials are taken from the X-ClickHouse headers, else from Basic authentication, else from the URL.
        """
        name, password = _credentials(headers, parameters)
        is_known = name in self._digests
        is_right = hmac.compare_digest(self._digests.get(name, self._nobody), _digest(password))
        if not (is_known and is_right):
            raise ClickHouseError(
                Code.AUTHENTICATION_FAILED,
                "Authentication failed: password is incorrect, or there is no user with such name.",
            )
        return name


def _credentials(headers: Mapping[str, str], parameters: Mapping[str, str]) -> tuple[str, str]:
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return _text(headers.get("x-clickhouse-user", "")) or DEFAULT_USER, _text(headers.get("x-clickhouse-key", ""))
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ClickHouseError(Code.AUTHENTICATION_FAILED, "Invalid Basic authentication") from error
        return name or DEFAULT_USER, password
    return parameters.get("user") or DEFAULT_USER, parameters.get("password", "")


def _text(header: str) -> str:
    """A header's value, which frameworks read as Latin-1, as the UTF-8 it was sent in."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


def _digest(password: str) -> bytes:
    return hashlib.sha256(password.encode("utf-8", "surrogateescape")).digest()
