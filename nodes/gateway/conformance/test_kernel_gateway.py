"""Kernel Gateway's own tests against a running Callboard gateway: its source distribution ships them,
`kernel_gateway_fixtures` points them here and names those that do not apply."""

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from kernel_gateway_fixtures import EXCLUDED
from live import ROOT

NAME = "jupyter_kernel_gateway-3.0.1"
SHA256 = "900690c4c0e796867355468d685f7fa1cf3c7775d08e871c157f77d65fbd6d7f"
FOLDER = ROOT / "out/kernel-gateway"


@pytest.fixture(scope="session")
def sources() -> Path:
    """The unpacked source distribution, downloaded once."""
    archive = FOLDER / f"{NAME}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-build-isolation", "--no-binary", ":all:", "--dest", str(FOLDER), NAME.replace("-", "==")]
        subprocess.run(command, check=True)
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256, f"{archive} is not what was published: remove it"
    with tarfile.open(archive) as tar:
        tar.extractall(FOLDER, filter="data")
    return FOLDER / NAME


def test_kernel_gateways_own_tests_pass(cluster, gateway, sources):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent),
        "CALLBOARD_TEST_URL": gateway.url,
        "CALLBOARD_TEST_TOKEN": gateway.token("kernel-gateway"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "--noconftest", "-p", "kernel_gateway_fixtures"]
    command += ["-p", "no:cacheprovider", "-W", "ignore", "-c", os.devnull, "--rootdir", str(sources), "tests"]
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    print(done.stdout.splitlines()[-1])


def test_the_documentation_names_the_tests_that_are_not_run():
    documented = (ROOT / "docs/gateway-conformance.md").read_text()
    for name, reason in EXCLUDED.items():
        assert f"| `{name}` | {reason} |" in documented, f"docs/gateway-conformance.md does not name {name}"
