from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokenhubctl.sse import Event, EventReader

STREAM = (
    "\ufeff: greeting\n\n"
    "event: connected\ndata: {}\n\n"
    'id: 1\r\nevent: route_success\r\ndata: {"model_id":\r\ndata: "käse"}\r\n\r\n'
    "retry: 250\rretry: soon\rid: 2\rdata:no space\r\r"
    "event: dropped without data\n\n"
    "id: a\0b\ndata\ndata:  two spaces\n\n"
    "id: 9\ndata: cut off"
).encode()

EVENTS = [
    Event("", "connected", "{}"),
    Event("1", "route_success", '{"model_id":\n"käse"}'),
    Event("2", "message", "no space"),
    Event("2", "message", "\n two spaces"),
]


def read(parts):
    reader = EventReader()
    events = [event for part in parts for event in reader.feed(part)]
    return reader, events


def test_a_stream_in_one_piece():
    reader, events = read([STREAM])
    assert events == EVENTS
    assert reader.retry_ms == 250


def test_the_cut_off_event_gives_neither_an_event_nor_its_id():
    reader, _ = read([STREAM])
    assert reader.last_id == "2"


def test_a_cut_at_every_byte_gives_each_event_once():
    for at in range(len(STREAM) + 1):
        assert read([STREAM[:at], STREAM[at:]])[1] == EVENTS


def test_byte_by_byte():
    assert read([bytes([byte]) for byte in STREAM])[1] == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_chunking(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    parts = [STREAM[a:b] for a, b in pairwise(edges)]
    assert read(parts)[1] == EVENTS


@given(st.binary(max_size=300), st.integers(0, 300))
def test_arbitrary_bytes_never_fail_and_never_depend_on_the_cut(data, at):
    assert read([data])[1] == read([data[:at], data[at:]])[1]


def test_a_reader_that_resumes_keeps_the_old_id_until_a_new_one_comes():
    reader = EventReader("41")
    assert reader.feed(b"data: x\n\n") == [Event("41", "message", "x")]
    assert reader.feed(b"id: 42\ndata: y\n\n")[0].id == "42"
