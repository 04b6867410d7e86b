"""What becomes of a kernel, and of its clients, when proxies and machines come and go."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import Empty

import pytest
from conftest import CALLBOARD, PATIENCE_S, Session, eventually
from jupyter_client.connect import write_connection_file


def test_a_restart_keeps_the_kernel_and_clears_its_variables(cluster, session):
    assert session.run("x = 1; x") == "1"
    kernel = session.kernel
    session.manager.restart_kernel()
    session.reconnect()
    assert session.kernel == kernel
    assert session.run("x") == "NameError"
    session.close()
    assert kernel not in cluster.kernels()
    assert not Path(session.manager.connection_file).exists()


@pytest.mark.parametrize("how", ["message", "signal"])
def test_an_interrupt_ends_the_cell_and_not_the_session(session, how):
    session.run("x = 1")
    msg_id = session.client.execute("print('begins')\nimport time\ntime.sleep(600)")
    while session.client.get_iopub_msg(timeout=PATIENCE_S)["msg_type"] != "stream":
        pass
    if how == "message":
        session.manager.interrupt_kernel()
    else:
        os.kill(session.pid, signal.SIGINT)
    reply = session.client.get_shell_msg(timeout=PATIENCE_S)
    assert reply["parent_header"]["msg_id"] == msg_id
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert session.run("x") == "1"


def test_a_kernel_outlives_its_proxy_and_is_used_through_another(cluster, session):
    session.run("x = 1")
    kernel = session.kernel
    os.kill(session.pid, signal.SIGKILL)
    session.ended()
    other = Session(env=os.environ | {"CALLBOARD_KERNEL": kernel})
    assert other.run("x += 1; x") == "2"
    # Whoever only looks in does not end it.
    other.close()
    # As Jupyter programs start a process anew that died.
    session.manager.restart_kernel(now=True)
    session.reconnect()
    assert session.kernel == kernel
    assert session.run("x") == "2"


def test_a_restart_that_was_cut_off_is_made_up_for(session):
    session.run("x = 1")
    os.kill(session.pid, signal.SIGKILL)
    session.ended()
    file = Path(session.manager.connection_file)
    content = json.loads(file.read_text())
    content["callboard"]["restart"] = True
    file.write_text(json.dumps(content))
    session.manager.restart_kernel(now=True)
    session.reconnect()
    assert session.run("x") == "NameError"
    assert json.loads(file.read_text())["callboard"]["restart"] is False


def test_each_client_gets_its_own_replies_and_all_see_the_outputs(session):
    first, second = session.client, session.new_client()
    sent = {client: client.execute("print(6 * 7)") for client in (first, second)}
    for client, msg_id in sent.items():
        answered = None
        while answered != msg_id:
            # Behind the answers to its own questions whether the kernel is ready.
            parent = client.get_shell_msg(timeout=PATIENCE_S)["parent_header"]
            answered = parent["msg_id"]
            assert parent["session"] == client.session.session
    for client in sent:
        seen = set()
        while seen != set(sent.values()):
            message = client.get_iopub_msg(timeout=PATIENCE_S)
            if message["msg_type"] == "stream":
                assert message["content"]["text"] == "42\n"
                seen.add(message["parent_header"]["msg_id"])
        with pytest.raises(Empty):
            client.get_shell_msg(timeout=0.5)


def test_only_the_client_that_runs_a_cell_is_asked_for_input(session):
    first, second = session.client, session.new_client()
    first.execute("print(input('name? '))", allow_stdin=True)
    asked = first.get_stdin_msg(timeout=PATIENCE_S)
    assert asked["content"]["prompt"] == "name? "
    with pytest.raises(Empty):
        second.get_stdin_msg(timeout=0.5)
    first.input("Ada")
    reply = first.get_shell_msg(timeout=PATIENCE_S)
    assert reply["content"]["status"] == "ok"
    while (message := first.get_iopub_msg(timeout=PATIENCE_S))["msg_type"] != "stream":
        pass
    assert message["content"]["text"] == "Ada\n"


def test_a_message_with_a_wrong_signature_is_dropped(session):
    stranger = session.manager.blocking_class()
    stranger.load_connection_file(session.manager.connection_file)
    stranger.session.key = b"another"
    stranger.start_channels()
    try:
        stranger.kernel_info()
        with pytest.raises(Empty):
            stranger.get_shell_msg(timeout=1)
    finally:
        stranger.stop_channels()
    assert session.run("1") == "1"


def test_the_loss_of_the_executor_between_two_cells_loses_nothing(cluster, session):
    session.run("import random\nx = [random.random() for _ in range(1_000)]")
    before = session.run("sum(x)")
    cluster.kill(cluster.executor(session.kernel))
    assert session.run("sum(x)") == before


def test_the_ipc_transport_is_served_too(cluster):
    session = Session(transport="ipc")
    assert session.run("1 + 1") == "2"
    session.manager.restart_kernel()
    session.reconnect()
    assert session.run("1 + 1") == "2"
    session.close()


def connection(folder, name="kernel.json", **changes):
    """A connection file with free ports, as Jupyter writes it."""
    file, _ = write_connection_file(str(folder / name), key=b"a key")
    content = json.loads(Path(file).read_text()) | changes
    Path(file).write_text(json.dumps(content))
    return file


def proxy(cluster, file, *args, context=None, **how):
    """A proxy that no Jupyter program looks after."""
    context = context or cluster.data / "credentials/gateway.json"
    command = [CALLBOARD, "--context", context, "kernelspec", "run", "-f", file, *args]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how)


def noted(file):
    return eventually(lambda: json.loads(Path(file).read_text()).get("callboard"))["kernel"]


@pytest.mark.parametrize("on_exit", ["keep", "stop"])
def test_sigterm_leaves_the_kernel_as_it_was_told_to(cluster, tmp_path, on_exit):
    file = connection(tmp_path)
    process = proxy(cluster, file, "--on-exit", on_exit)
    kernel = noted(file)
    eventually(lambda: kernel in cluster.kernels())
    process.terminate()
    assert process.wait(PATIENCE_S) == 0, process.stderr.read()
    assert (kernel in cluster.kernels()) == (on_exit == "keep")
    assert ("callboard" in json.loads(Path(file).read_text())) == (on_exit == "keep")
    if on_exit == "keep":
        cluster.run("kernel", "stop", kernel, "--yes")


def test_a_proxy_ends_with_the_program_that_started_it(cluster, tmp_path):
    file = connection(tmp_path)
    context = cluster.data / "credentials/gateway.json"
    code = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen(sys.argv[1:], env=os.environ | {'JPY_PARENT_PID': str(os.getpid())})\n"
        "time.sleep(600)"
    )
    command = [CALLBOARD, "--context", context, "kernelspec", "run", "-f", file]
    parent = subprocess.Popen([sys.executable, "-c", code, *command])
    kernel = noted(file)
    eventually(lambda: kernel in cluster.kernels())
    parent.kill()
    parent.wait()
    eventually(lambda: kernel not in cluster.kernels())


def test_a_kernel_id_from_the_environment_starts_one_kernel(cluster, tmp_path):
    listed = cluster.run("kernel", "start").stdout.strip()
    file = connection(tmp_path)
    process = proxy(cluster, file, env=os.environ | {"KERNEL_ID": listed})
    assert noted(file) == listed
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert listed not in cluster.kernels()


def refusal(cluster, file, *args, **how):
    process = proxy(cluster, file, *args, **how)
    _, said = process.communicate(timeout=PATIENCE_S)
    # The broker's client may have logged something before.
    sentence = said.splitlines()[-1]
    assert sentence.startswith("callboard: "), said
    return process.returncode, sentence


def test_what_is_wrong_is_said_in_a_sentence_with_the_documented_exit_code(cluster, tmp_path):
    code, said = refusal(cluster, tmp_path / "missing.json")
    assert (code, "missing.json cannot be used" in said) == (2, True)
    file = connection(tmp_path, signature_scheme="hmac-md5")
    code, said = refusal(cluster, file)
    assert (code, "Session.signature_scheme" in said) == (2, True)
    file = connection(tmp_path, name="good.json")
    code, said = refusal(cluster, file, "--kernel", "nobody")
    assert (code, "nobody" in said) == (3, True)
    code, said = refusal(cluster, file, context=tmp_path / "none.json")
    assert (code, "callboard up" in said) == (4, True)
    credentials = json.loads((cluster.data / "credentials/gateway.json").read_text())
    for changes, expected in [({"url": "nats://127.0.0.1:1"}, 4), ({"password": "no"}, 2)]:
        other = tmp_path / "other.json"
        other.write_text(json.dumps(credentials | changes))
        assert refusal(cluster, file, context=other)[0] == expected


def test_a_port_in_use_is_named(cluster, session):
    code, said = refusal(cluster, session.manager.connection_file)
    assert code == 7
    assert "cannot listen on tcp://127.0.0.1:" in said
    assert session.run("1") == "1"


def test_the_kernelspec_is_listed_and_removed_and_no_other_is_touched(cluster, tmp_path):
    place = ["--prefix", tmp_path]
    named = ["--name", "mine", "--display-name", "Mine", "--on-exit", "keep"]
    cluster.run("kernelspec", "install", *place, *named, role="gateway")
    folder = tmp_path / "share/jupyter/kernels/mine"
    written = json.loads((folder / "kernel.json").read_text())
    assert written["display_name"] == "Mine"
    assert written["argv"][-4:] == ["--on-exit", "keep", "-f", "{connection_file}"]
    assert (folder / "logo-svg.svg").exists()
    names = {it["name"] for it in cluster.data_of("kernelspec", "list")}
    assert "callboard" in names and "mine" not in names
    foreign = tmp_path / "share/jupyter/kernels/python3"
    foreign.mkdir()
    (foreign / "kernel.json").write_text('{"argv": ["python"]}')
    for verb in ["install", "uninstall"]:
        name = ["--name", "python3"] if verb == "install" else ["python3"]
        ran = cluster.run("kernelspec", verb, *name, *place, code=6)
        assert "--name" in ran.stderr
    cluster.run("kernelspec", "uninstall", "mine", *place)
    assert not folder.exists() and foreign.exists()
    cluster.run("kernelspec", "uninstall", "mine", *place, code=3)

