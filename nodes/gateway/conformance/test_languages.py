"""Kernels that are not Python, through the gateway: bash_kernel."""

import json

from live import execute, request, wait_until
from websockets.sync.client import connect


def run(socket, message: dict) -> list[dict]:
    """What is said in answer to a message, up to its `idle` and reply."""
    socket.send(json.dumps(message))
    said = []
    while not {"idle", "reply"} <= {"reply" if it["channel"] == "shell" else it["content"].get("execution_state") for it in said}:
        heard = json.loads(socket.recv(60))
        if heard["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            said.append(heard)
    return said


def text(said: list[dict], name: str = "stdout") -> str:
    """What a cell printed."""
    return "".join(it["content"]["text"] for it in said if it["msg_type"] == "stream" and it["content"]["name"] == name)


def test_kernelspecs_of_the_nodes_are_listed(gateway, token):
    listed = gateway.ask("GET", "/api/kernelspecs", token).json
    assert listed["default"] == "python3" and {"python3", "bash"} <= set(listed["kernelspecs"])
    bash = listed["kernelspecs"]["bash"]
    assert bash["spec"]["language"] == "bash"
    assert bash["spec"]["display_name"] == "Bash (Callboard, not replicated)"
    assert gateway.ask("GET", "/api/kernelspecs/bash", token).json == bash
    gateway.ask("GET", "/api/kernelspecs/fish", token).refuses(404, "'fish'", "bash", "python3")


def test_a_bash_kernel_runs_is_interrupted_and_restarted(gateway, token):
    started = gateway.ask("POST", "/api/kernels", token, {"name": "bash"})
    assert started.status == 201 and started.json["name"] == "bash", started
    kernel = started.json["id"]
    path = f"/api/kernels/{kernel}"
    assert gateway.ask("GET", path, token).json["name"] == "bash"
    headers = {"Authorization": f"token {token}"}
    with connect(gateway.channels(kernel, "s"), additional_headers=headers, max_size=None) as socket:
        info = run(socket, request("kernel_info_request", {}))
        assert [it["content"]["language_info"]["name"] for it in info if it["channel"] == "shell"] == ["bash"]
        assert text(run(socket, execute("x=5; echo hello"))) == "hello\n"
        assert text(run(socket, execute("echo $x"))) == "5\n"
        # Said by what is interrupted: between two commands of its own, bash may miss a Ctrl-C.
        waiting = execute("sh -c 'echo on; exec sleep 100'")
        socket.send(json.dumps(waiting))
        heard = []
        while not any(it["msg_type"] == "stream" for it in heard):
            heard.append(json.loads(socket.recv(60)))
        assert gateway.ask("POST", f"{path}/interrupt", token).status == 204
        while heard[-1]["msg_type"] != "execute_reply":
            heard.append(json.loads(socket.recv(60)))
        assert heard[-1]["content"]["status"] != "ok"
        assert gateway.ask("POST", f"{path}/restart", token).status == 200
        said = run(socket, execute('echo "[$x]"'))
        assert (text(said), text(said, "stderr")) == ("[]\n", "")
    assert gateway.ask("DELETE", path, token).status == 204
    wait_until(lambda: gateway.ask("GET", path, token).status == 404, "it is stopped")


def test_a_session_has_the_kernel_it_names_and_an_unknown_one_is_refused(gateway, token):
    body = {"path": "shell.ipynb", "type": "notebook", "name": "", "kernel": {"name": "bash"}}
    made = gateway.ask("POST", "/api/sessions", token, body)
    assert made.status == 201 and made.json["kernel"]["name"] == "bash", made
    assert gateway.ask("DELETE", f"/api/sessions/{made.json['id']}", token).status == 204
    unknown = {**body, "path": "fish.ipynb", "kernel": {"name": "fish"}}
    gateway.ask("POST", "/api/sessions", token, unknown).refuses(501, "'fish'", "bash")
    gateway.ask("POST", "/api/kernels", token, {"name": "fish"}).refuses(404, "'fish'", "bash")
