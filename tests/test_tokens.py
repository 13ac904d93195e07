"""What is in tokens, and how they are signed."""

from __future__ import annotations

import pytest

import cliproxy as cp

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
