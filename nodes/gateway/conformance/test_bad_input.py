"""Whatever strangers send is refused with a reason or a code, costs a bounded amount of memory, and
nobody else notices."""

import asyncio
import concurrent.futures
import json
import socket
import struct
import threading
import time
import uuid
from contextlib import contextmanager

import pytest
from live import ORIGIN, Gateway, ask, channels, execute, request, wait_until
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus

V1 = "v1.kernel.websocket.jupyter.org"
# What a gateway may hold more than before while one client does its worst.
MEMORY_MAX_MIB = 150
# How late another client's answer may come meanwhile, on a machine that runs other tests too.
ANSWER_MAX_S = 10
FLOOD_MESSAGES = 100_000
HALF_OPEN = 2_000


@pytest.fixture(scope="module", autouse=True)
def nobody_else_notices(gateway, token, kernel):
    """Another client uses the gateway all the time: its requests are answered soon, and its websocket
    stays open."""
    is_over, slowest = threading.Event(), [0.0]

    def use():
        with channels(gateway, kernel, token) as socket:
            while not is_over.wait(0.2):
                began = time.monotonic()
                ask(socket, request("kernel_info_request", {}))
                assert gateway.ask("GET", f"/api/kernels/{kernel}", token).status == 200
                slowest[0] = max(slowest[0], time.monotonic() - began)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(use)
        try:
            yield
        finally:
            is_over.set()
        other.result(60)
    assert slowest[0] < ANSWER_MAX_S, f"another client waited {slowest[0]:.1f} s"


@contextmanager
def bounded(gateway: Gateway):
    """Fails if the gateway takes too much memory meanwhile."""
    before, most, is_over = gateway.memory_mib(), [0.0], threading.Event()

    def watch():
        while not is_over.wait(0.05):
            most[0] = max(most[0], gateway.memory_mib())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        is_over.set()
        watching.join()
    assert most[0] - before < MEMORY_MAX_MIB, f"{before:.0f} MiB became {most[0]:.0f} MiB"


def closed_with(socket) -> tuple[int, str]:
    """The code and reason with which a websocket is closed, whatever comes before."""
    try:
        while True:
            socket.recv(60)
    except ConnectionClosed as closed:
        return closed.rcvd.code, closed.rcvd.reason


def raw(gateway, *parts: bytes) -> bytes:
    """What is answered to bytes, up to the end of the connection."""
    answer = b""
    with socket.create_connection(gateway.address, 60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer


# Who asks


BAD_TOKENS = [
    "x",
    "cb_",
    "cb_aaaaaaaaaaaa_",
    "cb_aaaaaaaaaaaa_" + "A" * 43,
    "cb_../../../etc_passwd",
    "a" * 8000,
    "é",
    "\x00",
]


@pytest.mark.parametrize("bad", BAD_TOKENS, ids=range(len(BAD_TOKENS)))
def test_a_token_that_is_none_is_refused_wherever_it_stands(gateway, kernel, bad):
    quoted = "".join(f"%{byte:02x}" for byte in bad.encode())
    gateway.ask("GET", f"/api/kernels?token={quoted}", None).refuses(401, "user token")
    gateway.ask("GET", f"/t/{quoted}/api/kernels", None).refuses(401, "user token")
    if bad.isprintable() and bad.isascii():
        gateway.ask("GET", "/api/kernels", bad).refuses(401, "user token")
        with pytest.raises(InvalidStatus) as refused:
            channels(gateway, kernel, bad)
        assert refused.value.response.status_code == 401


def test_no_token_is_refused_and_says_how_to_get_one(gateway):
    for path in ["/api", "/api/kernels", "/api/kernelspecs", "/api/status", "/api/me", f"/api/kernels/{uuid.uuid4()}"]:
        answer = gateway.ask("GET", path, None)
        answer.refuses(401, "callboard user token")
        assert answer.headers["WWW-Authenticate"] == "token"


def test_an_expired_token_is_refused(cluster, gateway):
    token = cluster.token("eve", "--expires-in", "1s")
    wait_until(lambda: gateway.ask("GET", "/api", token).status == 401, "the token expires", 10)


def test_a_revoked_token_closes_its_websockets_at_once_and_no_others(cluster, gateway):
    revoked, kept = gateway.token("mallory"), gateway.token("mallory")
    kernel = gateway.start_kernel(kept)
    with channels(gateway, kernel, revoked) as closing, channels(gateway, kernel, kept) as staying:
        ask(closing, request("kernel_info_request", {}))
        cluster.run("user", "revoke", revoked.split("_")[1])
        began = time.monotonic()
        code, reason = closed_with(closing)
        assert (code, "not valid" in reason) == (1008, True) and time.monotonic() - began < 2
        ask(staying, request("kernel_info_request", {}))
    gateway.ask("GET", "/api", revoked).refuses(401)


def test_a_token_that_expires_closes_its_websockets_and_no_others(gateway):
    kept = gateway.token("mallory")
    kernel = gateway.start_kernel(kept)
    # Long enough to begin with, on a busy machine as well.
    expiring = gateway.token("mallory", "--expires-in", "10s")
    with channels(gateway, kernel, expiring) as closing, channels(gateway, kernel, kept) as staying:
        ask(closing, request("kernel_info_request", {}))
        code, reason = closed_with(closing)
        assert (code, "not valid" in reason) == (1008, True)
        ask(staying, request("kernel_info_request", {}))


def test_a_viewer_changes_nothing(gateway):
    owner = gateway.token("vera")
    kernel = gateway.start_kernel(owner)
    viewer = gateway.token("vera", role="viewer")
    wait_until(lambda: gateway.ask("DELETE", f"/api/kernels/{kernel}", viewer).status == 403, "the role is known", 10)
    gateway.ask("POST", "/api/kernels", viewer, {}).refuses(403, "may only look")
    gateway.ask("POST", f"/api/kernels/{kernel}/restart", viewer).refuses(403)
    with channels(gateway, kernel, viewer) as socket:
        said = ask(socket, execute("x = 1"))
        assert any(it["content"].get("status") == "error" for it in said), said


def test_another_users_kernel_is_not_there(gateway, kernel):
    token = gateway.token("oscar")
    assert gateway.ask("GET", "/api/kernels", token).json == []
    gateway.ask("GET", f"/api/kernels/{kernel}", token).refuses(404)
    gateway.ask("DELETE", f"/api/kernels/{kernel}", token).refuses(404)
    gateway.ask("POST", f"/api/kernels/{kernel}/interrupt", token).refuses(404)
    gateway.ask("POST", "/api/kernels", token, {"env": {"KERNEL_ID": kernel}}).refuses(409)
    with pytest.raises(InvalidStatus) as refused:
        channels(gateway, kernel, token)
    assert refused.value.response.status_code == 404


# What is asked


HOSTILE = [
    "..",
    "../..",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "a" * 4000,
    "*",
    "%3e",
    "cb.v1.x",
    "%ff",
    "1;rm%20-rf",
    "{id}",
    "$SYS",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_in_paths_are_not_found(gateway, token, name):
    for path in ["/api/kernels/{}", "/api/kernelspecs/{}", "/kernelspecs/python3/{}", "/kernelspecs/{}/logo-svg.svg"]:
        answer = gateway.ask("GET", path.replace("{}", name), token)
        # What dots lead to may exist.
        assert answer.status in (400, 404) or (".." in name and answer.status == 200), answer
        assert b"root:" not in answer.body
        if answer.status != 200:
            answer.refuses(answer.status)


BAD_BODIES = [
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"',
    b"\xff\xfe",
    b'{"name": 1}',
    b'{"env": []}',
    b"[" * 100_000,
    b'{"env": {"KERNEL_ID": 1}}',
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_a_body_that_is_no_request_is_refused(gateway, token, body):
    gateway.ask("POST", "/api/kernels", token, body).refuses(400, "JSON")


@pytest.mark.parametrize("bad", ["../../etc", "", "*", "a b", "x" * 5000, "00000000"])
def test_a_hostile_kernel_id_is_refused(gateway, token, bad):
    gateway.ask("POST", "/api/kernels", token, {"env": {"KERNEL_ID": bad}}).refuses(400, "KERNEL_ID")


def test_other_hostile_variables_do_not_reach_the_kernel(gateway, token):
    hostile = {
        "KERNEL_WORKING_DIR": "../../../../etc",
        "KERNEL_USERNAME": "root",
        "KERNEL_UID": "0",
        "LD_PRELOAD": "/tmp/evil.so",
        "PATH": "",
        "KERNEL_X": "\x00\n$(id)",
    }
    answer = gateway.ask("POST", "/api/kernels", token, {"env": hostile})
    assert answer.status == 201, answer
    with channels(gateway, answer.json["id"], token) as socket:
        code = "import os; print(os.getcwd(), [os.environ.get(it) for it in ('LD_PRELOAD', 'KERNEL_X', 'KERNEL_UID')])"
        said = ask(socket, execute(code))
        text = "".join(it["content"]["text"] for it in said if it["msg_type"] == "stream")
        assert "[None, None, None]" in text and not text.startswith("/etc"), text
    assert gateway.ask("DELETE", f"/api/kernels/{answer.json['id']}", token).status == 204


@pytest.mark.parametrize("name", ["fake", "../python3", "python4" * 1000], ids=range(3))
def test_an_unknown_kernelspec_is_named(gateway, token, name):
    gateway.ask("POST", "/api/kernels", token, {"name": name}).refuses(404, "python3")


def test_methods_that_a_path_does_not_have_are_named(gateway, token):
    answer = gateway.ask("PUT", "/api/kernels", token)
    answer.refuses(405, "GET, POST")
    assert answer.headers["Allow"] == "GET, POST, HEAD, OPTIONS"
    gateway.ask("POST", "/api/kernelspecs", token).refuses(405)
    gateway.ask("DELETE", f"/t/{token}/api", None).refuses(405)


def test_head_is_get_without_a_body_and_a_slash_at_the_end_does_not_matter(gateway, token):
    got, head = (gateway.ask(method, "/api/kernelspecs", token) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"") and head.headers["Content-Length"] == str(len(got.body))
    assert gateway.ask("GET", "/api/kernelspecs/", token).json == got.json


def test_preflights_name_the_allowed_origin_and_no_other(gateway):
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = gateway.ask("OPTIONS", "/api/kernels", None, headers={"Origin": ORIGIN, **preflight})
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    other = gateway.ask("OPTIONS", "/api/kernels", None, headers={"Origin": "https://evil.example", **preflight})
    assert "Access-Control-Allow-Origin" not in other.headers
    other.refuses(400)
    assert gateway.ask("OPTIONS", "/api/kernels", None).status == 200
    # A refusal can be read by the page that is allowed to ask.
    assert gateway.ask("GET", "/api", None, headers={"Origin": ORIGIN}).headers["Access-Control-Allow-Origin"] == ORIGIN


def test_a_body_that_is_too_large_is_refused(gateway, token):
    gateway.ask("POST", "/api/kernels", token, b" " * (2 << 20)).refuses(413)


def test_an_enormous_head_is_refused(gateway):
    status = raw(gateway, b"GET /api HTTP/1.1\r\nHost: x\r\nX: ", b"a" * (1 << 20), b"\r\n\r\n").split(b"\r\n")[0]
    assert status in (b"HTTP/1.1 431 Request Header Fields Too Large", b""), status
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(1000))
    status = raw(gateway, b"GET /api HTTP/1.1\r\nHost: x\r\n", many, b"\r\n").split(b"\r\n")[0]
    assert status.startswith((b"HTTP/1.1 4",)) or not status, status


JUNK = [
    b"\x00\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00" * 20,
    b"GET /\xff HTTP/1.1\r\n\r\n",
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_what_is_no_http_is_refused(gateway, junk):
    answer = raw(gateway, junk, b"\r\n\r\n")
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer


def test_a_session_id_may_be_anything_that_is_short(gateway, token, kernel):
    for hostile in ["..%2f..%2f", "%00", "*", "%22%7d", "a" * 256]:
        with channels(gateway, kernel, token, hostile) as socket:
            ask(socket, request("kernel_info_request", {}))
    with pytest.raises(InvalidStatus) as refused:
        channels(gateway, kernel, token, "a" * 257)
    assert refused.value.response.status_code == 400
    assert "session_id" in json.loads(refused.value.response.body)["message"]


# What is framed


BAD_FRAMES = [
    "",
    "{",
    "[]",
    "null",
    "{}",
    '{"header": 1}',
    '{"header": {"msg_id": "a"}}',
    '{"channel": "hb", "header": {"msg_id": "a", "msg_type": "b"}}',
    '{"channel": "iopub", "header": {"msg_id": "a", "msg_type": "status"}}',
    "[" * 100_000,
    b"",
    b"\xff" * 100,
    struct.pack(">I", 0xFFFFFFFF),
    struct.pack(">III", 2, 12, 4),
]


@pytest.mark.parametrize("frame", BAD_FRAMES, ids=range(len(BAD_FRAMES)))
def test_a_bad_frame_is_told_and_ten_close_the_websocket(gateway, token, kernel, frame):
    with channels(gateway, kernel, token) as socket:
        socket.send(frame)
        while (heard := json.loads(socket.recv(60)))["msg_type"] != "stream":
            pass
        assert heard["content"]["text"].startswith("[callboard] "), heard
        ask(socket, request("kernel_info_request", {}))
        for _ in range(9):
            socket.send(frame)
        assert closed_with(socket)[0] == 1002


BAD_V1_FRAMES = [
    b"",
    b"\x00" * 8,
    struct.pack("<Q", 1 << 63),
    struct.pack("<7Q", 6, 56, 1, 2, 3, 4, 5),
    "text",
]


@pytest.mark.parametrize("frame", BAD_V1_FRAMES, ids=range(len(BAD_V1_FRAMES)))
def test_bad_frames_of_the_v1_framing_close_the_websocket(gateway, token, kernel, frame):
    with channels(gateway, kernel, token, subprotocols=[V1]) as socket:
        assert socket.subprotocol == V1
        for _ in range(10):
            socket.send(frame)
        assert closed_with(socket)[0] == 1002


def test_a_frame_that_is_too_large_closes_the_websocket(gateway, token, kernel):
    with bounded(gateway), channels(gateway, kernel, token) as socket:
        try:
            socket.send("x" * (5 << 20))
        except ConnectionClosed:
            pass
        assert closed_with(socket)[0] == 1009
    # One that the kernel does not take is refused, and the websocket stays.
    with channels(gateway, kernel, token) as socket:
        said = ask(socket, execute("#" * (3 << 20)))
        assert any(it["content"].get("status") == "error" for it in said), said
        ask(socket, request("kernel_info_request", {}))


def test_an_unknown_subprotocol_is_not_answered(gateway, token, kernel):
    with channels(gateway, kernel, token, subprotocols=["v9.evil"]) as socket:
        assert socket.subprotocol is None


# How much


@pytest.fixture(scope="module")
def deaf(gateway, token):
    """The kernel of a client that never reads."""
    kernel = gateway.start_kernel(token)
    with socket.create_connection(gateway.address, 60) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        path = gateway.channels(kernel).split(str(gateway.address[1]), 1)[1]
        head = f"GET {path}&token={token} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        head += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 101"
        yield kernel
    assert gateway.ask("DELETE", f"/api/kernels/{kernel}", token).status == 204


def test_a_client_that_never_reads_costs_bounded_memory(gateway, token, deaf):
    with bounded(gateway), channels(gateway, deaf, token) as other:
        # More than sockets and the queue of the websocket hold; the log has room for each cell.
        for _ in range(6):
            said = ask(other, execute("for i in range(100): print(i, 'x' * 100_000)"))
            assert any(it["msg_type"] == "stream" for it in said), [it["msg_type"] for it in said]


def test_a_flood_costs_bounded_memory_and_is_answered(gateway, token):
    kernel = gateway.start_kernel(token)
    head, tail = json.dumps(execute("pass", msg_id="ID")).split("ID")

    async def flood():
        headers = {"Authorization": f"token {token}"}
        async with connect_async(gateway.channels(kernel), additional_headers=headers) as socket:

            async def send():
                for number in range(FLOOD_MESSAGES):
                    await socket.send(f"{head}{number}{tail}")

            sending = asyncio.create_task(send())
            answers = 0
            while not sending.done() or answers < FLOOD_MESSAGES:
                await asyncio.wait_for(socket.recv(), 60)
                answers += 1
            await sending

    with bounded(gateway):
        asyncio.run(flood())
    assert gateway.ask("DELETE", f"/api/kernels/{kernel}", token).status == 204


def test_half_open_connections_keep_nobody_out_and_are_closed(gateway, token):
    half_open = []
    with bounded(gateway):
        for _ in range(HALF_OPEN):
            connection = socket.create_connection(gateway.address, 60)
            connection.sendall(b"GET /api HTTP/1.1\r\nHost: x\r\nX: ")
            half_open.append(connection)
        assert gateway.ask("GET", "/api", token).status == 200
        for connection in half_open:
            connection.settimeout(60)
            answer = connection.recv(100)
            assert not answer or answer.startswith(b"HTTP/1.1 408"), answer
            connection.close()


def test_a_client_that_never_reads_is_cut_off(gateway, token, deaf):
    def is_cut():
        return gateway.ask("GET", f"/api/kernels/{deaf}", token).json["connections"] == 0

    wait_until(is_cut, "the connection is cut", 60)
