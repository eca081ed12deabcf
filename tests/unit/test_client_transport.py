"""What goes wrong between client and daemon becomes an error of ours, and says what to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from fakes.api_server import ApiServer, Body, Raw, Request, api_server, instance
from innkeeper import errors
from innkeeper.client.client import Client
from innkeeper.client.http import Deadline
from innkeeper.client.transport import Transport, connect_unix, parse_events


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as running:
        yield running


@pytest.fixture
def client(server: ApiServer) -> Client:
    return Client(Transport(server.paths))


def test_list_and_handle(server: ApiServer, client: Client) -> None:
    server.answer("GET", "/v1/instances", {"instances": [instance("a"), instance("b", state="stopped")]})
    assert [(vm.name, vm.state) for vm in client.instances.list()] == [("a", "running"), ("b", "stopped")]


def test_verbs_send_what_the_api_takes(server: ApiServer, client: Client) -> None:
    server.answer("POST", "/v1/instances/web/.*", instance("web", state="stopped"))
    vm = client.instances.handle("web")
    vm.stop(timeout_s=5)
    vm.start(wait="ready")
    vm.pause()
    assert vm.state == "stopped"
    assert [(one.path.rpartition("/")[2], one.json()) for one in server.requests] == [
        ("stop", {"timeout_s": 5}),
        ("start", {"wait": "ready"}),
        ("pause", {}),
    ]


def test_create_leaves_out_what_is_not_given(server: ApiServer, client: Client) -> None:
    server.answer("POST", "/v1/instances", instance("web"))
    client.instances.create({"image": "tiny"}, start=True, wait="ready")
    body = server.requests[0].json()
    assert body["spec"] == {"image": "tiny"}
    assert body["wait"] == "ready"
    assert "name" not in body and "timeout_s" not in body


def test_errors_come_back_as_their_class(server: ApiServer, client: Client) -> None:
    server.answer("GET", "/v1/instances/web", errors.WrongState("It sleeps", hint="wake it"))
    with pytest.raises(errors.WrongState, match="It sleeps; wake it"):
        client.instances.get("web")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a?b", "A", "a\r\nb"])
def test_what_can_be_no_name_is_not_found(client: Client, name: str) -> None:
    with pytest.raises(errors.NotFound, match="No instance is named"):
        client.instances.get(name)


def test_an_unknown_request_hints_at_an_old_daemon(client: Client) -> None:
    with pytest.raises(errors.Unsupported, match="older version"):
        client.host.show()


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Raw(b"hello\r\n"), errors.DaemonUnreachable, "no Innkeeper daemon"),
        (Raw(b""), errors.DaemonUnreachable, "ended before it answered"),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"), errors.Failed, "broke off"),
        (Body(b"<html>"), errors.DaemonUnreachable, "not JSON"),
        (Raw(b"HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\noops"), errors.Failed, "HTTP status 500"),
    ],
)
def test_strange_answers(
    server: ApiServer, client: Client, answer: object, kind: type[Exception], message: str
) -> None:
    server.answer("POST", "/v1/instances", answer)
    with pytest.raises(kind, match=message):
        client.instances.create({})


def test_looking_is_repeated_when_the_daemon_went_away(server: ApiServer, client: Client) -> None:
    answers: list[object] = [Raw(b""), {"version": "1", "pid": 7}]
    server.answer("GET", "/v1/version", lambda request: answers.pop(0))
    assert client.version()["pid"] == 7


def test_a_verb_is_not_repeated(server: ApiServer, client: Client) -> None:
    server.answer("POST", "/v1/instances/web/start", Raw(b""))
    with pytest.raises(errors.DaemonUnreachable):
        client.instances.handle("web").start()
    assert len(server.requests) == 1


def test_a_hanging_daemon_meets_the_deadline(server: ApiServer) -> None:
    server.answer("GET", "/v1/version", Raw(b"", hold=True))
    with pytest.raises(errors.DaemonUnreachable, match=r"within 0\.1 s"):
        Transport(server.paths).json("GET", "/v1/version", timeout_s=0.1)


def test_nobody_listens(server: ApiServer, client: Client) -> None:
    server.stop()
    with pytest.raises(errors.DaemonUnreachable, match="inn serve") as stale:
        client.version()
    assert stale.value.details["reason"] == "absent"
    server.paths.api_socket.unlink()
    with pytest.raises(errors.DaemonUnreachable) as missing:
        client.version()
    assert missing.value.details["reason"] == "absent"


def test_the_daemon_is_started_once_when_nobody_listens(server: ApiServer) -> None:
    server.stop()
    server.paths.api_socket.unlink()
    server.answer("GET", "/v1/version", {"pid": 1})
    starts: list[int] = []

    def start() -> None:
        starts.append(1)
        server.start()

    transport = Transport(server.paths, start)
    assert transport.json("GET", "/v1/version") == {"pid": 1}
    assert transport.json("GET", "/v1/version") == {"pid": 1}
    assert len(starts) == 1


def test_permission_is_no_reason_to_start_one(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    class Refusing(socket.socket):
        connect = refuse

    monkeypatch.setattr(socket, "socket", Refusing)
    transport = Transport(server.paths, lambda: pytest.fail("started a daemon"))
    with pytest.raises(errors.DaemonUnreachable, match="No permission"):
        transport.connect(Deadline(1))


def test_a_full_backlog_is_waited_for(server: ApiServer) -> None:
    server.stop()
    server.paths.api_socket.unlink()
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(server.paths.api_socket))
        listener.listen(0)
        held = [connect_unix(server.paths, Deadline(1))]
        with pytest.raises((errors.DaemonUnreachable, TimeoutError)):
            for _ in range(3):
                held.append(connect_unix(server.paths, Deadline(0.1)))
        for one in held:
            one.close()


def test_an_upload_that_is_refused_early_says_why(server: ApiServer, client: Client) -> None:
    server.answer("PUT", "/v1/instances/web/files", errors.WrongState("It does not run"))

    def endless() -> Iterator[bytes]:
        for _ in range(3):
            yield b"x" * 65536

    with pytest.raises(errors.WrongState):
        client.instances.handle("web").write_file("/x", endless())


def test_files_and_logs_are_streams(server: ApiServer, client: Client) -> None:
    server.answer("GET", "/v1/instances/web/files", Body(b"content of the file", chunked=True))
    server.answer("GET", "/v1/instances/web/logs", Body(b"line\n" * 10, chunked=True))
    server.answer("PUT", "/v1/instances/web/files", {"bytes": 5})
    vm = client.instances.handle("web")
    assert b"".join(vm.read_file("/etc/x y&z")) == b"content of the file"
    assert server.requests[0].query == {"path": "/etc/x y&z"}
    assert b"".join(vm.logs(tail_bytes=50)) == b"line\n" * 10
    vm.write_file("/t", b"12345", mode=0o755)
    assert server.requests[-1].query == {"path": "/t", "mode": "0755"}
    assert server.requests[-1].body == b"12345"


def test_events_are_parsed_across_pieces() -> None:
    text = b': hi\r\n\r\nevent: change\ndata: {"a":\ndata: 1}\nid: 7\n\ndata: \xc3\xa4\n\nevent: last\n\n'
    found = list(parse_events(text[i : i + 1] for i in range(len(text))))
    assert [(one.kind, one.data, one.id) for one in found] == [
        ("change", '{"a":\n1}', "7"),
        ("message", "ä", "7"),
    ]
    assert found[0].json() == {"a": 1}


def test_image_build_reports_and_ends(server: ApiServer, client: Client) -> None:
    stream = (
        b'event: progress\ndata: {"stage":"kernel","fraction":0.5,"detail":"x"}\n\n'
        b": still at it\n\n"
        b'event: done\ndata: {"image":{"name":"tiny"}}\n\n'
    )
    server.answer("POST", "/v1/images/build", Body(stream, "text/event-stream", chunked=True))
    seen: list[dict[str, object]] = []
    assert client.images.build("tiny", on_progress=seen.append) == {"name": "tiny"}
    assert [one["stage"] for one in seen] == ["kernel"]


def test_image_build_fails(server: ApiServer, client: Client) -> None:
    told = b'event: error\ndata: {"error":{"code":"no_capacity","message":"Disk full"}}\n\n'
    server.answer("POST", "/v1/images/build", Body(told, "text/event-stream"))
    with pytest.raises(errors.NoCapacity, match="Disk full"):
        client.images.build("tiny")
    server.answer("POST", "/v1/images/build", Body(b": hm\n\n", "text/event-stream"))
    with pytest.raises(errors.DaemonUnreachable, match="before the image was done"):
        client.images.build("tiny")


def test_public_names() -> None:
    import innkeeper

    assert innkeeper.Client is Client
    assert innkeeper.errors.NotFound is errors.NotFound
    assert set(innkeeper.__all__) <= set(dir(innkeeper))
    assert all(getattr(innkeeper, name) for name in innkeeper.__all__)
    with pytest.raises(AttributeError):
        innkeeper.nothing  # noqa: B018


def test_no_descriptor_is_left_open(server: ApiServer, client: Client) -> None:
    def answer(request: Request) -> object:
        return errors.NotFound("x") if request.query else {"version": "1"}

    server.answer("GET", "/v1/version", answer)
    client.version()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        client.version()
    # The server's ends of the last connections may just be closing.
    assert len(os.listdir("/proc/self/fd")) <= before + 2
