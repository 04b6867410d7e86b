"""What a session imports is recorded; what it installs is installed again where it moves. All offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import PACKAGE_PARENT, Kernel

from callboard_kernel.packages import sources_of, version_in


def make_wheel(directory: Path, name: str, version: str, needs: str = "", body: str = "") -> Path:
    """A wheel of one module, without any build tool."""
    info = f"{name}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}.py": body or f"version = {version!r}\nclass Thing:\n    def __init__(self, x): self.x = x\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    target = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
    return target


@pytest.fixture
def wheels(tmp_path):
    directory = tmp_path / "wheels"
    directory.mkdir()
    make_wheel(directory, "callboard_tiny", "1.0")
    make_wheel(directory, "callboard_tiny", "2.0")
    make_wheel(directory, "callboard_user", "0.1", needs="callboard_tiny<2")
    return directory


def start(tmp_path: Path, name: str, policy: str = "replay") -> Kernel:
    packages = {"policy": policy, "overlay": str(tmp_path / name / ".packages")}
    kernel = Kernel(root=tmp_path / name / "root", packages=packages)
    kernel.node.send({"type": "restore", "groups": [], "execution_count": 1}, [])
    kernel.node.wait_for("restored")
    return kernel


def move(tmp_path: Path, old: Kernel, name: str, **options) -> Kernel:
    node = old.node
    old.close()
    packages = {"policy": "replay", "overlay": str(tmp_path / name / ".packages")}
    new = Kernel(root=tmp_path / name / "root", packages=packages, **options)
    new.failed = new.node.restore_from(node)
    return new


def group(kernel: Kernel, key: str):
    return json.loads(kernel.node.groups[key][1][0])


def test_the_program_prints_the_environment_of_its_interpreter():
    program = PACKAGE_PARENT / "callboard_kernel/environment.py"
    said = json.loads(subprocess.run([sys.executable, program], capture_output=True, check=True).stdout)
    assert said["environment"]["distributions"]["numpy"] and len(said["environment"]["id"]) == 16
    assert any("site-packages" in path for path in said["directories"])


def test_the_program_names_kernelspecs_of_other_languages_as_jupyter_finds_them(tmp_path):
    def install(name, place="first", **spec):
        folder = tmp_path / place / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(spec))
        return str(folder)

    tool = {"argv": ["tool", "-f", "{connection_file}", "{resource_dir}"], "display_name": "Tool", "language": "tool"}
    folder = install("Tool", **tool, env={"PLACE": "${HOME}/x", "OTHER": "$NOT_SET"}, interrupt_mode="message")
    install("tool", "second", **{**tool, "display_name": "hidden by the first"})
    install("snake", argv=["python3", "-m", "snake"], language="snake")
    for number, unfit in enumerate([
        {**tool, "language": "python"},
        {**tool, "metadata": {"callboard": {}}},
        {**tool, "metadata": {"kernel_provisioner": {}}},
        {**tool, "argv": []},
        {**tool, "argv": "tool"},
    ]):
        install(f"unfit{number}", **unfit)
    (tmp_path / "first/kernels/torn").mkdir()
    (tmp_path / "first/kernels/torn/kernel.json").write_text("{")
    (tmp_path / "first/kernels/Bad name").mkdir()

    program = PACKAGE_PARENT / "callboard_kernel/environment.py"
    places = f"{tmp_path / 'first'}:{tmp_path / 'second'}"
    environment = {**os.environ, "JUPYTER_PATH": places, "HOME": "/home/me"}
    ran = subprocess.run([sys.executable, program], capture_output=True, check=True, env=environment)
    said = json.loads(ran.stdout)
    shown = said["environment"]["kernelspecs"]
    assert set(shown) == set(said["programs"]) >= {"tool", "snake", "bash"}
    assert not any(name.startswith(("unfit", "torn", "bad", "python")) for name in shown)
    assert shown["tool"] == {"display_name": "Tool", "language": "tool"}
    assert shown["snake"] == {"display_name": "snake", "language": "snake"}
    assert said["programs"]["tool"] == {
        "argv": ["tool", "-f", "{connection_file}", folder],
        "env": {"PLACE": "/home/me/x", "OTHER": "$NOT_SET"},
        "interrupt_mode": "message",
    }
    assert said["programs"]["snake"]["argv"][0] == sys.executable
    assert said["programs"]["snake"]["interrupt_mode"] == "signal"
    assert str(tmp_path / "first/kernels") in said["directories"]


def test_what_is_imported_is_recorded_with_its_distribution_and_version(tmp_path):
    with start(tmp_path, "one") as one:
        one.run("import json, os")
        assert "environment:imported" not in one.node.groups
        one.run("import numpy as np")
        assert set(group(one, "environment:imported")["distributions"]) == {"numpy"}
        one.run("import sklearn.linear_model as m")
        import numpy
        import sklearn

        found = group(one, "environment:imported")
        assert found["distributions"]["scikit-learn"] == sklearn.__version__
        assert found["distributions"]["numpy"] == numpy.__version__
        assert "ipython" not in found["distributions"] and found["implementation"] == "CPython"
        assert "environment:imported" not in {entry["group"] for entry in one.run("x = 1")["captured"]["upsert"]}


def test_another_version_here_is_said_with_the_first_cell(tmp_path):
    one = start(tmp_path, "one")
    one.run("import numpy")
    entry, _parts = one.node.groups["environment:imported"]
    text = json.dumps({"distributions": {"numpy": "1.0", "no-such-thing": "3.1"}}).encode()
    one.node.groups["environment:imported"] = (entry, [text])
    with move(tmp_path, one, "two") as two:
        said = two.run("numpy.arange(2)")["stderr"]
        assert "instead of 1.0" in said and "no no-such-thing (it was 3.1)" in said
        assert "instead of" not in two.run("1")["stderr"]


@pytest.mark.parametrize("how", ["%pip", "!pip", "!python -m pip"])
def test_an_installed_package_is_pinned_and_installed_again_elsewhere(tmp_path, wheels, how):
    one = start(tmp_path, "one")
    reply = one.run(f"{how} install --no-index --find-links {wheels} callboard-user")
    assert "callboard_user==0.1" in reply["stdout"]
    pins = {item["pin"] for item in group(one, "environment:packages").values()}
    assert pins == {"callboard_user==0.1", "callboard_tiny==1.0"}
    one.run("import callboard_tiny; t = callboard_tiny.Thing([1]); import sys")
    assert "callboard-tiny" not in str(one.node.groups.get("environment:imported"))
    with move(tmp_path, one, "two") as two:
        assert two.failed == []
        reply = two.run("assert t.x == [1] and callboard_tiny.version == '1.0'; sys.path.count(callboard_tiny.__file__.rsplit('/', 1)[0])")
        assert "was installed again on this machine" in reply["stderr"]
        assert two.run("print(callboard_tiny.__file__)")["stdout"].strip() == str(tmp_path / "two/.packages/callboard_tiny.py")
        assert not any(str(names).count("tiny.py") for names in two.node.groups)
        two.run(f"{how} install --no-index --find-links {wheels} callboard-user")
        two.run(f"%pip install --no-index --find-links {wheels} -U callboard-tiny==2.0")
        two.run("%pip uninstall -y callboard-user")
    assert group(two, "environment:packages")["callboard-tiny"]["pin"] == "callboard_tiny==2.0"
    assert "callboard-user" not in group(two, "environment:packages")
    assert not (tmp_path / "two/.packages/callboard_user.py").exists()


def test_a_replay_that_fails_is_named_and_the_rest_of_the_session_is_there(tmp_path, wheels):
    one = start(tmp_path, "one")
    one.run(f"%pip install --no-index --find-links {wheels} callboard-tiny==1.0")
    one.run("import callboard_tiny; t = callboard_tiny.Thing(1); other = [2]")
    for wheel in wheels.iterdir():
        wheel.unlink()
    with move(tmp_path, one, "two") as two:
        reply = two.run("assert other == [2]")
        assert "callboard_tiny==1.0 could not be installed on this machine (ERROR: No matching" in reply["stderr"]
        reply = two.run("t.x", allow_error=True)
        assert "callboard_tiny" in reply["evalue"]
        make_wheel(wheels, "callboard_tiny", "1.0")
        two.run(f"%pip install --no-index --find-links {wheels} callboard-tiny==1.0\nimport importlib, callboard_tiny")


def test_the_policy_refuse_says_why_and_allow_leaves_pip_alone(tmp_path, wheels):
    with start(tmp_path, "one", "refuse") as one:
        for line in ("%pip install x", "!pip install x", "!python3 -m pip install x"):
            reply = one.run(line, allow_error=True)
            assert "have them installed on every node" in reply["stderr"] + str(reply.get("evalue")), reply
        assert "pip" in one.run("%pip --version")["stdout"]
    with start(tmp_path, "two", "allow") as two:
        two.run("assert get_ipython().system.__qualname__.endswith('system_piped')")


def test_what_cannot_be_replayed_is_refused_with_a_sentence(tmp_path):
    with start(tmp_path, "one") as one:
        for line, why in [("install -e .", "editable"), ("install --target=x y", "--target=x is not possible"), ("uninstall numpy", "machine's environment"), ("install --no-index nothing-at-all", "nothing was installed")]:
            reply = one.run(f"%pip {line}", allow_error=True)
            assert why in reply["stderr"] + str(reply.get("evalue")), reply
        assert "environment:packages" not in one.node.groups


def test_sources_are_kept_and_other_options_are_not(tmp_path):
    words = ["-U", "-q", "--no-index", "-f", str(tmp_path), "--index-url=https://x/y", "thing>1"]
    assert sources_of(words) == ["--no-index", "-f", str(tmp_path), "--index-url", "https://x/y"]
    assert version_in("a==1.0") == "1.0" and version_in("a @ file:///x") is None
