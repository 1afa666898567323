"""Binding: what is bound, what is said when it cannot be, what the kernel does with the queue."""

from __future__ import annotations

import os
import socket

import pytest

from gateway.listening import ListenError, Listening


def connect(listening):
    host, _, port = listening.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)))


def test_port_zero_gives_one_real_port_to_all():
    listening = Listening("127.0.0.1:0", 3, key="server.listen")
    try:
        ports = {sock.getsockname()[1] for sock in listening.sockets}
        assert len(ports) == 1 and len(listening.sockets) == 3
        assert listening.url == f"http://127.0.0.1:{ports.pop()}"
        with connect(listening):
            pass
    finally:
        listening.close()


def test_a_port_in_use_is_refused_even_if_it_could_be_shared():
    listening = Listening("127.0.0.1:0", 1, key="server.listen")
    address = listening.url.removeprefix("http://")
    try:
        with pytest.raises(ListenError) as caught:
            Listening(address, 2, key="server.listen")
    finally:
        listening.close()
    assert f"{address} is in use by another process" in str(caught.value)
    assert "--set server.listen=ADDRESS" in str(caught.value)


def test_a_port_can_be_taken_again_while_old_connections_say_goodbye():
    listening = Listening("127.0.0.1:0", 1, key="server.listen")
    address = listening.url.removeprefix("http://")
    client = connect(listening)
    accepted, _ = listening.sockets[0].accept()
    accepted.close()  # this side first: it stays in TIME_WAIT
    client.close()
    listening.close()
    Listening(address, 2, key="server.listen").close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
def test_ipv6():
    listening = Listening("[::1]:0", 2, key="server.listen")
    try:
        assert listening.url.startswith("http://[::1]:")
        with connect(listening):
            pass
    finally:
        listening.close()


def test_an_address_of_another_host_is_explained():
    with pytest.raises(ListenError, match=r"cannot listen on 192.0.2.1:0: .*change"):
        Listening("192.0.2.1:0", 1, key="server.listen")
    with pytest.raises(ListenError, match=r"cannot listen on no-such-host\.invalid:80"):
        Listening("no-such-host.invalid:80", 1, key="server.listen")


def test_a_unix_socket_is_shared_by_copies_and_removed(tmp_path):
    path = tmp_path / "p.sock"
    listening = Listening(f"unix:{path}", 2, key="server.listen")
    assert listening.url == f"unix:{path}" and len(listening.sockets) == 2
    with pytest.raises(ListenError, match="is in use by another process"):
        Listening(f"unix:{path}", 1, key="server.listen")
    listening.close()
    assert not path.exists()


def test_a_socket_that_a_killed_gateway_left_is_replaced(tmp_path):
    path = tmp_path / "p.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
    Listening(f"unix:{path}", 1, key="server.listen").close()


def test_a_file_at_the_path_is_not_touched(tmp_path):
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(ListenError, match="a file that is no socket is there"):
        Listening(f"unix:{path}", 1, key="server.listen")
    assert path.read_text() == "mine"
