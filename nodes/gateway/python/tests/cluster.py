"""A Callboard cluster for tests: `callboard up` in a folder of its own, and the command line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[4]
CALLBOARD = os.environ.get("CALLBOARD", str(ROOT / "target/debug/callboard"))
START_S = 60
STOP_S = 20


class Cluster:
    """Three nodes, and the kernels on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "up.log"
        command = [CALLBOARD, "up", "--data", str(folder / "data"), "--python", sys.executable]
        environment = {**os.environ, "CALLBOARD_NATS_SERVER": str(Path(sys.executable).with_name("nats-server"))}
        with self.log.open("w") as log:
            self._up = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        self._wait(lambda: "ready:" in self.log.read_text(), "the cluster is ready", START_S)

    def credentials(self, role: str) -> Path:
        """The credentials file of a role."""
        return self.folder / "data/credentials" / f"{role}.json"

    def gateway(self) -> dict[str, str]:
        """What a Jupyter server has to know of the gateway, in the environment that it reads."""
        access = json.loads(self.credentials("jupyter").read_text())
        return {"JUPYTER_GATEWAY_URL": access["url"], "JUPYTER_GATEWAY_AUTH_TOKEN": access["token"]}

    def command(self, *arguments: str) -> list[str]:
        """The command line of a verb."""
        return [CALLBOARD, "--context", str(self.credentials("operator")), *arguments]

    def ask(self, *arguments: str) -> Any:
        """What a verb prints, as JSON."""
        done = subprocess.run(self.command("--output", "json", *arguments), capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}"
        return json.loads(done.stdout)

    def start_kernel(self) -> str:
        """A new kernel's id, once it is ready."""
        return self.ask("kernel", "start", "--wait")["kernel"]

    def status(self, kernel: str) -> dict[str, Any]:
        """What a kernel says of itself."""
        return self.ask("kernel", "show", kernel)["status"]

    def executor(self, kernel: str) -> str:
        """The node that runs a kernel's cells."""
        roles = {replica["role"]: replica["node"] for replica in self.status(kernel)["replicas"]}
        return roles["executor"]

    def lose_executor(self, kernel: str) -> str:
        """Kills the node that runs a kernel's cells, and says which one it was once it is gone."""
        lost = self.executor(kernel)
        (pid,) = (node["pid"] for node in self.ask("nodes")["nodes"] if node["node"] == lost)
        self.ask("kill", lost, "--yes")
        self._wait(lambda: not Path(f"/proc/{pid}").exists(), f"{lost} is gone", STOP_S)
        return lost

    def stop(self) -> None:
        """Ends it as Ctrl+C does."""
        self._up.terminate()
        try:
            self._up.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._up.kill()

    def _wait(self, is_done, what: str, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not is_done():
            assert self._up.poll() is None and time.monotonic() < end, f"not {what}: {self.log.read_text()}"
            time.sleep(0.1)
