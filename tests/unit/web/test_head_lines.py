"""What the edge writes into a head: status line and date."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

import pytest

from tokenhub.web.head import STATUS_LINES, http_date, status_line


@pytest.mark.parametrize("seconds", [0, 951_827_696, 1_735_689_599, 1_790_000_000, 4_102_444_800])
def test_a_date_is_written_as_email_writes_it(seconds):
    for month in range(13):
        moment = seconds + month * 31 * 86_400
        assert http_date(moment) == formatdate(moment, usegmt=True).encode()


@pytest.mark.parametrize("status", [one for one in HTTPStatus if one >= 200])
def test_a_known_status_has_its_name(status):
    line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    assert status_line(status.value) == line == STATUS_LINES[status.value]


def test_an_unknown_status_has_none():
    assert status_line(299) == b"HTTP/1.1 299 \r\n"
    for status in (100, 199, 600):
        with pytest.raises(ValueError, match="final answer"):
            status_line(status)
