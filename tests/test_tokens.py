"""What is in tokens, and how they are signed."""

from __future__ import annotations

import base64
from typing import Any, Callable

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

import cliproxy as cp
from support.keys import LOCKED, PEM, PKCS1, PKCS8, number, octets, pem_of

# The browser flow


def test_pkce_vector() -> None:
    """RFC 7636, appendix B."""
    assert (
        cp.challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
        == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    )


# Small parts


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.!!.c", "a.bnVsbA.c", None, 7, "a.W10.c", "a.\u00fc.c"])
def test_a_jwt_that_is_none(token: object) -> None:
    assert cp.jwt_claims(token) == {}


# --- Keys and signatures


RFC_KEY = {  # RFC 7515, A.2
    "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMs"
    "D1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdV"
    "MTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "d": "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0"
    "BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYT"
    "CBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
}  # fmt: skip
RFC_TEXT = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
RFC_SIGNATURE = (
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZ"
    "cAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-e"
    "OkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)


@pytest.mark.parametrize("form", [PKCS8, PKCS1])
def test_the_known_answer(form: Any) -> None:
    n, d = number(RFC_KEY["n"]), number(RFC_KEY["d"])
    p, q = rsa.rsa_recover_prime_factors(n, 65537, d)
    public = rsa.RSAPublicNumbers(65537, n)
    parts = (rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q))
    known = rsa.RSAPrivateNumbers(p, q, d, *parts, public).private_key()
    assert cp.rs256(RFC_TEXT, pem_of(known, form)) == f"{RFC_TEXT}.{RFC_SIGNATURE}"


SPELLINGS: list[Any] = [
    pytest.param(lambda pem: pem, id="as it is"),
    pytest.param(lambda pem: pem.replace("\n", "\r\n"), id="CR LF"),
    pytest.param(lambda pem: pem.replace("\n", "\\n"), id="escaped twice"),
    pytest.param(lambda pem: pem.replace("\n", " "), id="in one line"),
    pytest.param(lambda pem: f"Bag Attributes\n  friendlyName: x\n{pem}\n\n", id="more around it"),
]


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("form", [PKCS8, PKCS1])
def test_signatures_hold(key: rsa.RSAPrivateKey, form: Any, spell: Callable[[str], str]) -> None:
    signed = cp.rs256("a.b", spell(pem_of(key, form)))
    text, _, signature = signed.rpartition(".")
    assert text == "a.b"
    public = key.public_key()
    public.verify(octets(signature), b"a.b", padding.PKCS1v15(), hashes.SHA256())
    with pytest.raises(InvalidSignature):
        public.verify(octets(signature), b"a.c", padding.PKCS1v15(), hashes.SHA256())


def test_keys_of_other_sizes() -> None:
    for size in (1024, 1031, 3072):  # 1031: no whole number of bytes
        odd = rsa.generate_private_key(65537, size)
        signature = octets(cp.rs256("a.b", pem_of(odd)).rpartition(".")[2])
        odd.public_key().verify(signature, b"a.b", padding.PKCS1v15(), hashes.SHA256())


def cut(pem: str, length: int) -> str:
    """Leave only so many bytes of the DER in it."""
    first, *lines, last = pem.strip().splitlines()
    return "\n".join([first, base64.b64encode(base64.b64decode("".join(lines))[:length]).decode(), last])


BAD_KEYS: list[Any] = [
    pytest.param(lambda key: pem_of(key, PKCS8, LOCKED), "is encrypted", id="encrypted PKCS#8"),
    pytest.param(lambda key: pem_of(key, PKCS1, LOCKED), "is encrypted", id="encrypted PKCS#1"),
    pytest.param(lambda _: pem_of(ec.generate_private_key(ec.SECP256R1())), "is not of RSA", id="EC in PKCS#8"),
    pytest.param(lambda _: pem_of(ec.generate_private_key(ec.SECP256R1()), PKCS1), "is not of RSA", id="EC"),
    pytest.param(lambda key: cut(pem_of(key), 300), "is damaged", id="truncated"),
    pytest.param(lambda key: pem_of(key)[:200], "is no PEM", id="without its end"),
    pytest.param(lambda key: pem_of(key).replace("M", "_", 1), "is damaged", id="no base64"),
    pytest.param(lambda key: cut(pem_of(key), 0), "is damaged", id="nothing in it"),
    pytest.param(lambda _: "my key", "is no PEM", id="a text"),
    pytest.param(lambda _: "", "is no PEM", id="empty"),
    pytest.param(
        lambda key: key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode(),
        "is no PEM", id="the public key",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "says"), BAD_KEYS)
def test_bad_keys(key: rsa.RSAPrivateKey, make: Callable[[Any], str], says: str) -> None:
    with pytest.raises(cp.ProxyError) as caught:
        cp.rs256("a.b", make(key))
    message = str(caught.value)
    assert message.startswith(f"the private key {says}")
    assert "download a new JSON key" in message
    assert "\n" not in message


@pytest.mark.parametrize("form", [PKCS8, PKCS1])
def test_keys_that_are_cut_or_changed_anywhere(key: rsa.RSAPrivateKey, form: Any) -> None:
    whole = pem_of(key, form)
    first, *lines, last = whole.strip().splitlines()
    for length in range(0, len(base64.b64decode("".join(lines))), 37):
        with pytest.raises(cp.ProxyError):
            cp.rs256("a.b", cut(whole, length))
    swapped = [first, *lines[:9], lines[3], *lines[10:], last]  # bytes of the modulus or the exponent
    with pytest.raises(cp.ProxyError, match="is damaged"):
        cp.rs256("a.b", "\n".join(swapped))
