"""RSA keys of service accounts."""

from __future__ import annotations

import base64
from typing import Any

from cryptography.hazmat.primitives import serialization

PEM, FORMATS = serialization.Encoding.PEM, serialization.PrivateFormat
PKCS8, PKCS1 = FORMATS.PKCS8, FORMATS.TraditionalOpenSSL
OPEN, LOCKED = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"secret")


def octets(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "===")


def number(text: str) -> int:
    return int.from_bytes(octets(text), "big")


def pem_of(key: Any, form: Any = PKCS8, lock: Any = OPEN) -> str:
    return str(key.private_bytes(PEM, form, lock).decode())
