"""What serving tells people."""

import pytest

from strop.proxy.serve import url_of


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8484"),
        ("localhost", "http://localhost:8484"),
        ("::1", "http://[::1]:8484"),
        ("[::1]", "http://[::1]:8484"),
    ],
)
def test_the_url_of_an_address_can_be_opened(host: str, url: str) -> None:
    """An IPv6 address has its brackets once, however the setting spells it."""
    assert url == url_of(host, 8484)
