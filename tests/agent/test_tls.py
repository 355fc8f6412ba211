"""Requests to the fleet: whose certificate is believed, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from est_server import Est

from agent.errors import Untrusted
from agent.identity.tls import Https, fleet_context, says_expired


def test_a_clock_at_2100_sends_nothing_to_a_server_that_has_expired_by_it(authority) -> None:
    """What users said goes to the cloud tier: a machine that cannot tell the time does not hand it out."""
    est = Est(authority)
    with est.running() as url:
        at_2100 = Https(url, lambda: fleet_context(authority.pem), lambda: datetime(2100, 1, 1, tzinfo=UTC), 5.0)
        with pytest.raises(Untrusted, match=r"the server's certificate expired .* or set the clock"):
            at_2100.post("/v2/models/kitchen/infer", b"{}", {})
        assert est.paths == []


def test_a_clock_at_1970_still_connects(authority) -> None:
    """OpenSSL alone would say that the certificate is not valid yet."""
    est = Est(authority)
    with est.running(datetime.now(UTC) + timedelta(days=1)) as url:
        at_1970 = Https(url, lambda: fleet_context(authority.pem), lambda: datetime(1970, 1, 1, tzinfo=UTC), 5.0)
        connection, response = at_1970.post("/.well-known/est/simplereenroll", b"", {})
        assert response.status == 401
        connection.close()


def test_the_alert_is_known_by_its_name() -> None:
    assert says_expired("[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] sslv3 alert certificate expired (_ssl.c:2580)")
    assert not says_expired("[SSL: SSLV3_ALERT_CERTIFICATE_REVOKED] sslv3 alert certificate revoked (_ssl.c:2580)")
