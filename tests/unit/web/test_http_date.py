"""The Date header, against the standard library's own writer."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from tokenhub.web.head import http_date


@pytest.mark.parametrize("seconds", [0, 951_827_696, 1_735_689_599, 1_790_000_000, 4_102_444_800])
def test_a_date_is_written_as_email_writes_it(seconds):
    assert http_date(seconds) == formatdate(seconds, usegmt=True).encode()
    for month in range(12):
        moment = seconds + month * 31 * 86_400
        assert http_date(moment) == formatdate(moment, usegmt=True).encode()
