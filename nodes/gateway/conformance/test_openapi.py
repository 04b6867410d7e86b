"""The gateway answers what its OpenAPI document says: requests that follow from the document, good and
bad ones, get no 5xx, no status that is not documented and no body of another shape."""

import subprocess
import sys
from pathlib import Path

SEED = 20261126
# Each request that starts a kernel takes a process of its own.
EXAMPLES_MAX = 8


def test_requests_that_follow_from_the_document_are_answered_as_documented(cluster, gateway):
    token = gateway.token("schemathesis")
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file",
        str(Path(__file__).with_name("schemathesis.toml")),
        "run",
        f"{gateway.url}/api/openapi.json",
        "--header",
        f"Authorization: token {token}",
        "--max-examples",
        str(EXAMPLES_MAX),
        "--seed",
        str(SEED),
        "--generation-database",
        "none",
        "--request-timeout",
        "50",
        "--no-color",
    ]
    try:
        done = subprocess.run(command, cwd=cluster.folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-20000:]}{done.stderr}"
    finally:
        for kernel in gateway.ask("GET", "/api/kernels", token).json:
            gateway.ask("DELETE", f"/api/kernels/{kernel['id']}", token)
