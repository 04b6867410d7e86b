"""A live cluster with gateways for the tests: `callboard up` and `callboard gateway` in a folder of
their own, and a front-end's side of HTTP and websockets."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parents[3]
CALLBOARD = os.environ.get("CALLBOARD", str(ROOT / "target/debug/callboard"))
PYTHON = ROOT / ".venv/bin/python"
ORIGIN = "https://lab.example.org"
START_S = 60
STOP_S = 20


def wait_until(is_done, what: str, limit_s: float = START_S, pause_s: float = 0.05) -> None:
    """Waits for something, or fails by its name."""
    end = time.monotonic() + limit_s
    while not is_done():
        assert time.monotonic() < end, f"{what}: not within {limit_s} s"
        time.sleep(pause_s)


class Process:
    """A program that says when it is ready."""

    def __init__(self, command: list[str], folder: Path, name: str, **settings: str) -> None:
        self.log = folder / f"{name}.log"
        environment = {**os.environ, "CALLBOARD_NATS_SERVER": str(PYTHON.with_name("nats-server"))}
        environment["CALLBOARD_DISK_HIGH_WATER_PERCENT"] = "100"
        environment |= settings
        with self.log.open("w") as log:
            self.child = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        wait_until(self._is_ready, f"{name} is ready")

    def _is_ready(self) -> bool:
        assert self.child.poll() is None, self.log.read_text()
        return "ready" in self.log.read_text()

    def stop(self) -> None:
        """Ends it as Ctrl+C does."""
        self.child.terminate()
        try:
            self.child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self.child.kill()
        self.child.wait()


class Gateway(Process):
    """A gateway, and the requests of one user to it."""

    def __init__(self, cluster: "Cluster", name: str, replicas: int = 1) -> None:
        self.cluster = cluster
        command = cluster.command("--output", "json", "gateway", "--listen", "127.0.0.1:0", role="gateway")
        command += ["--replicas", str(replicas), "--allow-origin", ORIGIN]
        super().__init__(command, cluster.folder, name)
        said = next(line for line in self.log.read_text().splitlines() if '"ready"' in line)
        self.url: str = json.loads(said)["url"]
        wait_until(lambda: self.ask("GET", "/api", "no token").status == 401, "the users are known")

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def memory_mib(self) -> float:
        """What it holds in memory."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def ask(self, method: str, path: str, token: str | None, body: Any = None, headers: dict | None = None) -> "Answer":
        """A request's answer; `body` is JSON unless it is bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers or {}, method=method)
        if token is not None:
            request.add_header("Authorization", f"token {token}")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())

    def token(self, user: str, *arguments: str, role: str = "user") -> str:
        """A new access token of a user, once it is known here."""
        token = self.cluster.token(user, *arguments, role=role)
        wait_until(lambda: self.ask("GET", "/api", token).status == 200, "the token is known", 10)
        return token

    def start_kernel(self, token: str) -> str:
        """A new kernel's id."""
        answer = self.ask("POST", "/api/kernels", token, {})
        assert answer.status == 201, answer
        return answer.json["id"]

    def channels(self, kernel: str, session: str | None = None) -> str:
        """The address of a kernel's websocket."""
        return f"{self.url.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels?session_id={session or uuid.uuid4()}"


class Answer:
    """What a request was answered."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def __repr__(self) -> str:
        return f"{self.status} {self.body[:500]!r}"

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def refuses(self, status: int, *words: str) -> None:
        """Fails unless it is this refusal, in the shape of all refusals."""
        assert self.status == status, self
        assert self.headers.get_content_type() == "application/json", self.headers.items()
        assert set(self.json) == {"reason", "message"} and len(self.json["message"]) < 1000, self
        assert all(word in self.json["message"] for word in words), self


class Cluster:
    """Three nodes; `settings` are configuration keys as environment variables."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self._up = Process([CALLBOARD, "up", "--data", "data", "--python", str(PYTHON)], folder, "up", **settings)

    def command(self, *arguments: str, role: str = "operator") -> list[str]:
        """The command line of a verb."""
        return [CALLBOARD, "--context", str(self.folder / f"data/credentials/{role}.json"), *arguments]

    def run(self, *arguments: str) -> str:
        """What a verb prints."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def status(self, kernel: str) -> dict[str, Any]:
        """What a kernel says of itself."""
        return json.loads(self.run("--output", "json", "kernel", "show", kernel))["status"]

    def token(self, user: str, *arguments: str, role: str = "user") -> str:
        """A new access token of a user."""
        self.run("user", "add", user, "--role", role)
        return self.run("user", "token", user, *arguments)

    def stop(self) -> None:
        """Ends it."""
        self._up.stop()


def request(msg_type: str, content: dict, channel: str = "shell", **header: str) -> dict:
    """A front-end's message."""
    head = {"msg_id": uuid.uuid4().hex, "msg_type": msg_type, "session": "s", "username": "", "version": "5.3"}
    head |= {"date": "2026-01-01T00:00:00.000000Z", **header}
    return {"channel": channel, "header": head, "parent_header": {}, "metadata": {}, "content": content}


def execute(code: str, **header: str) -> dict:
    """The request to run a cell."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    return request("execute_request", content, **header)


def channels(gateway: Gateway, kernel: str, token: str | None, session: str | None = None, **options: Any) -> ClientConnection:
    """A websocket to a kernel."""
    headers = {"Authorization": f"token {token}"} if token else {}
    return connect(gateway.channels(kernel, session), additional_headers=headers, max_size=None, **options)


def ask(socket: ClientConnection, message: dict) -> list[dict]:
    """What is said in answer to a message, up to its `idle`."""
    socket.send(json.dumps(message))
    said = []
    while True:
        heard = json.loads(socket.recv(60))
        if heard["parent_header"].get("msg_id") != message["header"]["msg_id"]:
            continue
        said.append(heard)
        types = {it["msg_type"] for it in said}
        if heard["content"].get("execution_state") == "idle" or (
            heard["msg_type"].endswith("_reply") and "status" not in types
        ):
            return said
