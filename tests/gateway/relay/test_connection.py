"""An upstream's answer, cut anywhere, broken anywhere: one terminal event, and nothing after it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay import head
from gateway.relay.connection import JOIN_BYTES, Broke, UpstreamConnection
from gateway.relay.memo import HeadMemo
from gateway.relay.outbox import Outbox


class ScriptedTransport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class RecordingSink:
    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.body = b""
        self.reads = self.whole = 0

    def upstream_head(self, status, reason, headers):
        self.events.append(("head", status))

    def upstream_interim(self, status, headers):
        self.events.append(("interim", status))

    def upstream_body(self, chunk):
        self.body += chunk

    def upstream_read(self):
        self.reads += 1

    def upstream_upgraded(self, early):
        self.events.append(("upgraded",))
        self.body += early

    def upstream_writable(self):
        self.events.append(("writable",))

    def upstream_whole(self, known, body):
        self.body += body
        self.events += [("head", known.status), ("done",)]
        self.whole += 1

    def upstream_done(self):
        self.events.append(("done",))

    def upstream_failed(self, how, detail):
        self.events.append(("failed", how))


class Turn:
    """A loop of which one turn is begun."""

    def __init__(self) -> None:
        self.due: list = []

    def call_soon(self, callback):
        self.due.append(callback)

    def end(self):
        due, self.due = self.due, []
        for callback in due:
            callback()


def exchange(is_head: bool = False):
    idle: list[UpstreamConnection] = []
    connection = UpstreamConnection(idle.append, lambda _: None, HeadMemo(), Outbox(Turn()))
    transport, sink = ScriptedTransport(), RecordingSink()
    connection.connection_made(transport)
    connection.begin(sink, b"GET / HTTP/1.1\r\n\r\n", b"", is_head=is_head, complete=True)
    return connection, transport, sink, idle


FIXED = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + FIXED


def feed(connection, stream, cuts):
    at, turn = 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        connection.data_received(stream[at : at + size])
        at, turn = at + size, turn + 1


@pytest.mark.parametrize("answer", [FIXED, CHUNKED, INTERIM])
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_any_cut_of_an_answer_reads_the_same(answer, cuts):
    connection, transport, sink, idle = exchange()
    feed(connection, answer, cuts)
    assert sink.body == b"hello"
    assert sink.events[-2:] == [("head", 200), ("done",)]
    assert idle == [connection]
    assert not transport.closed


def test_a_second_exchange_uses_the_same_connection():
    connection, _, _, _ = exchange()
    connection.data_received(FIXED)
    again = RecordingSink()
    connection.begin(again, b"GET /2 HTTP/1.1\r\n\r\n", b"", is_head=False, complete=True)
    connection.data_received(CHUNKED)
    assert (again.events[-1], again.body) == (("done",), b"hello")


def test_the_answer_to_head_has_no_body_and_keeps_the_connection():
    connection, _, sink, idle = exchange(is_head=True)
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
    assert sink.events == [("head", 200), ("done",)]
    assert idle == [connection]
    again = RecordingSink()
    connection.begin(again, b"GET / HTTP/1.1\r\n\r\n", b"", is_head=False, complete=True)
    connection.data_received(FIXED)
    assert again.body == b"hello"


def test_a_body_without_framing_ends_with_the_connection():
    connection, _, sink, idle = exchange()
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhello")
    connection.connection_lost(None)
    assert (sink.events[-1], sink.body, idle) == (("done",), b"hello", [])


@pytest.mark.parametrize("at", range(1, len(FIXED)))
def test_a_connection_that_dies_early_is_a_failure(at):
    connection, _, sink, _ = exchange()
    connection.data_received(FIXED[:at])
    connection.connection_lost(None)
    ends = [event for event in sink.events if event[0] in ("done", "failed")]
    assert len(ends) == 1 and ends[0][0] == "failed"
    assert ends[0][1] is (Broke.CUT if ("head", 200) in sink.events else Broke.CLOSED)


def test_a_stale_keep_alive_connection_is_told_apart():
    connection, _, _, _ = exchange()
    connection.data_received(FIXED)
    again = RecordingSink()
    connection.begin(again, b"GET / HTTP/1.1\r\n\r\n", b"", is_head=False, complete=True)
    connection.connection_lost(ConnectionResetError())
    assert again.events == [("failed", Broke.CLOSED_IDLE)]


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n", b"x" * 70000])
def test_nonsense_fails_the_exchange_and_closes(garbage):
    connection, transport, sink, _ = exchange()
    connection.data_received(garbage)
    assert sink.events == [("failed", Broke.NONSENSE)]
    assert transport.closed
    connection.connection_lost(None)
    assert len(sink.events) == 1


def test_bytes_after_the_answer_close_the_connection():
    connection, transport, _, _ = exchange()
    connection.data_received(FIXED)
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    assert transport.closed


def test_an_answer_before_the_request_is_whole_does_not_keep_the_connection():
    idle: list[UpstreamConnection] = []
    connection, transport, sink = (
        UpstreamConnection(idle.append, lambda _: None, HeadMemo(), Outbox(Turn())),
        ScriptedTransport(),
        RecordingSink(),
    )
    connection.connection_made(transport)
    connection.begin(sink, b"POST / HTTP/1.1\r\n\r\n", b"", is_head=False, complete=False)
    connection.data_received(FIXED)
    assert sink.events[-1] == ("done",)
    assert transport.closed and not idle


def test_an_upgrade_becomes_a_tunnel():
    connection, _, sink, idle = exchange()
    connection.data_received(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81"
    )
    connection.data_received(b"\x02hi")
    connection.connection_lost(None)
    assert sink.events == [("head", 101), ("upgraded",), ("done",)]
    assert sink.body == b"\x81\x02hi" and not idle


def test_abort_silences_the_exchange():
    connection, transport, sink, _ = exchange()
    connection.abort()
    connection.connection_lost(None)
    assert transport.closed and sink.events == []


def test_hop_by_hop_fields_stop_here():
    start = head.request_start(
        b"POST",
        b"/x",
        [
            (b"host", b"shop.example"),
            (b"connection", b"keep-alive, X-Secret"),
            (b"x-secret", b"1"),
            (b"te", b"trailers"),
            (b"x-forwarded-for", b"10.0.0.9"),
            (b"accept", b"*/*"),
            (b"content-length", b"99"),
        ],
        host=None,
        scheme=b"http",
    )
    made = start + head.request_end(b"127.0.0.1", 3, b"x-deadline-ms: 5\r\n")
    lines = made.split(b"\r\n")
    assert lines[0] == b"POST /x HTTP/1.1"
    assert set(lines[1:-2]) == {
        b"host: shop.example",
        b"accept: */*",
        b"x-forwarded-for: 10.0.0.9, 127.0.0.1",
        b"x-forwarded-proto: http",
        b"x-forwarded-host: shop.example",
        b"content-length: 3",
        b"x-deadline-ms: 5",
    }
    assert made.endswith(b"\r\n\r\n") and made.count(b"\r\n\r\n") == 1


def test_an_upgrade_request_keeps_its_upgrade():
    start = head.request_start(
        b"GET",
        b"/ws",
        [(b"host", b"h"), (b"connection", b"Upgrade"), (b"upgrade", b"websocket")],
        host=b"up:1",
        scheme=b"https",
        upgrade=True,
    )
    made = start + head.request_end(b"::1", head.NO_BODY, b"")
    assert b"connection: upgrade\r\nupgrade: websocket\r\n" in made
    assert b"host: up:1\r\n" in made
    assert b"content-length" not in made and b"transfer-encoding" not in made


def ask(connection, answer, **options):
    sink = RecordingSink()
    request = {"is_head": False, "complete": True, **options}
    connection.begin(sink, b"GET / HTTP/1.1\r\n\r\n", b"", **request)
    connection.data_received(answer)
    return sink


def test_a_head_that_repeats_is_read_once():
    connection, transport, _, idle = exchange()
    connection.data_received(FIXED)
    again = [ask(connection, FIXED) for _ in range(3)]
    assert [sink.whole for sink in again] == [0, 1, 1]
    assert all(sink.body == b"hello" for sink in again)
    assert all(sink.events == [("head", 200), ("done",)] for sink in again)
    assert len(idle) == 4 and not transport.closed
    # A read that does not hold exactly this answer is read in full.
    sink = RecordingSink()
    connection.begin(sink, b"", b"", is_head=False, complete=True)
    connection.data_received(FIXED[:-1])
    assert sink.events == [("head", 200)]
    connection.data_received(FIXED[-1:])
    assert sink.events[-1] == ("done",) and sink.body == b"hello"


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED,
        INTERIM,
        b"HTTP/1.1 404 No\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 204 No\r\n\r\n",
    ],
)
def test_other_answers_are_always_read_in_full(answer):
    connection, _, _, _ = exchange()
    connection.data_received(FIXED)
    sinks = [ask(connection, answer) for _ in range(4)]
    assert [sink.whole for sink in sinks] == [0] * 4
    assert all(sink.events[-1] == ("done",) for sink in sinks)


def test_the_answer_to_head_is_none_of_those_remembered():
    connection, _, _, _ = exchange()
    connection.data_received(FIXED)
    ask(connection, FIXED)
    ask(connection, FIXED)
    head_only = ask(connection, FIXED[: -len(b"hello")], is_head=True)
    assert (head_only.whole, head_only.body) == (0, b"")
    assert ask(connection, FIXED).body == b"hello"


def test_the_requests_of_a_turn_leave_together_at_its_end():
    turn, idle = Turn(), []
    outbox = Outbox(turn)
    written = []

    class Noting(ScriptedTransport):
        def write(self, data):
            if self.closed:
                raise RuntimeError("the handler is closed")
            written.append((self, data))

    def begin(body=b""):
        connection = UpstreamConnection(idle.append, lambda _: None, HeadMemo(), outbox)
        transport, sink = Noting(), RecordingSink()
        connection.connection_made(transport)
        connection.begin(sink, b"GET / HTTP/1.1\r\n\r\n", body, is_head=False, complete=True)
        return connection, transport, sink

    first, broken, given_up, last = (begin() for _ in range(4))
    assert not written and len(turn.due) == 1
    broken[1].closed = True  # the socket has failed, and nobody has been told yet
    given_up[0].abort()
    turn.end()
    assert [transport for transport, _ in written] == [first[1], last[1]]
    broken[0].connection_lost(OSError())
    assert broken[2].events == [("failed", Broke.CLOSED)]
    assert given_up[2].events == []
    large = begin(bytes(JOIN_BYTES))
    assert [len(data) for transport, data in written if transport is large[1]] == [18, JOIN_BYTES]
    turn.end()
    assert len(written) == 4  # once each
