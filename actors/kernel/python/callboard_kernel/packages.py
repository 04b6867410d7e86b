"""`%pip install` in a session: into a directory of the kernel's own, and again wherever it moves.

With the policy `replay`, pip first says what it would install beside what is there (a dry run), then
puts just that into the overlay, with no further dependencies: what the node has installed is neither
shadowed nor removed. The requirements with their resolved versions travel with the session; a restore
installs them before variables load. `refuse` answers with a sentence, `allow` leaves pip alone.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import invalidate_caches
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError

from . import live
from .directory import DIRECTORY
from .environment import installed, normal

REPLAY_TIMEOUT_S = 300.0
# Options of a line that decide where pip finds packages; they are needed again for a replay.
_SOURCES_WITH_VALUE = frozenset(
    "-i --index-url --extra-index-url -f --find-links --trusted-host --no-binary --only-binary --proxy --cert --client-cert".split()
)
_SOURCES_ALONE = frozenset("--no-index --pre --prefer-binary --no-build-isolation --require-hashes".split())
_PLACES = ("-t", "--target", "--prefix", "--root", "--user", "--src")
_PIP_LINE = re.compile(r"\s*(?:\S*python[\d.]*\s+-m\s+)?(?:\S*/)?pip[\d.]*\s+(?P<rest>(?:install|uninstall)\b.*)$", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SHELL_SYNTAX = re.compile(r"[|&;<>`$()]")


class Packages:
    """The packages that this session has installed for itself."""

    def __init__(self) -> None:
        self.policy = "allow"
        self.overlay: str | None = None
        # normal name -> {"pin": requirement, "options": sources}
        self.requirements: dict[str, dict[str, Any]] = {}

    def configure(self, told: dict[str, Any]) -> None:
        """Takes the node's word and puts the policy in force."""
        self.policy, self.overlay = told["policy"], told.get("overlay")
        if self.policy == "replay" and self.overlay:
            self.overlay = os.path.realpath(self.overlay)
            if self.overlay not in sys.path:
                sys.path.insert(0, self.overlay)
        if self.policy != "allow" and live.LIVE.shell is not None:
            self._take_over(live.LIVE.shell)

    def _take_over(self, shell: Any) -> None:
        shell.register_magic_function(lambda line: self.pip(line), "line", "pip")
        system = shell.system

        def watched(command: str) -> Any:
            match = _PIP_LINE.match(command)
            if match and not _SHELL_SYNTAX.search(command):
                return self.pip(match["rest"])
            return system(command)

        shell.system = watched

    def pip(self, line: str) -> None:
        """What `%pip` and `!pip` do in this session."""
        words = shlex.split(line)
        verb = words[0] if words else ""
        if verb == "install":
            if self.policy == "refuse":
                raise UsageError(
                    "packages cannot be installed from a session here (pip_policy = \"refuse\"), since the machines "
                    "it may move to would lack them: have them installed on every node"
                )
            self._install(words[1:])
        elif verb == "uninstall" and self.policy == "replay":
            self._uninstall([word for word in words[1:] if not word.startswith("-")])
        else:
            self._show(["-m", "pip", *words])

    def _install(self, words: list[str]) -> None:
        place = next((word for word in words if word.split("=")[0] in _PLACES), None)
        if place is not None:
            raise UsageError(f"{place} is not possible here: packages go to {self.overlay}, and with the session wherever it moves")
        if any(word in ("-e", "--editable") or word.startswith("--editable=") for word in words):
            raise UsageError("an editable install refers to this machine's files: install without -e, or put the folder on sys.path")
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.json"
            # What was installed by the session before counts as installed.
            if self._show(["-m", "pip", "install", "--dry-run", "--report", str(report), *words]) != 0:
                raise UsageError("pip could not find what was asked for; nothing was installed")
            items = json.loads(report.read_text())["install"]
        sources = sources_of(words)
        found = {normal(item["metadata"]["name"]): pin_of(item) for item in items}
        if not found:
            return
        code = self._show(["-m", "pip", *self._put(sources, list(found.values()))])
        if code != 0:
            raise UsageError("pip could not install what it had found; see its words above")
        self.requirements.update({name: {"pin": pin, "options": sources} for name, pin in found.items()})
        self._refresh(found)
        print(f"callboard: {', '.join(found.values())}: installed again wherever this session moves")

    def _put(self, sources: list[str], pins: list[str]) -> list[str]:
        here = [DIRECTORY.from_carried(word) for word in sources]
        return ["install", "--no-deps", "--upgrade", "--target", str(self.overlay), "--disable-pip-version-check", *here, *pins]

    def _uninstall(self, names: list[str]) -> None:
        for name in names:
            if self.requirements.pop(normal(name), None) is None:
                raise UsageError(f"{name} was not installed by this session; it belongs to the machine's environment")
            self._remove(normal(name))
            print(f"callboard: {name} is removed from this session")

    def _remove(self, name: str) -> None:
        for found in Path(str(self.overlay)).glob("*.dist-info"):
            if normal(found.name.partition("-")[0]) == name:
                distribution: Distribution = PathDistribution(found)
                for file in distribution.files or ():
                    path = Path(os.path.normpath(str(distribution.locate_file(file))))
                    if path.is_relative_to(str(self.overlay)):
                        path.unlink(missing_ok=True)
                shutil.rmtree(found, ignore_errors=True)

    def _refresh(self, names: Any) -> None:
        invalidate_caches()
        if str(self.overlay) not in sys.path:
            sys.path.insert(0, str(self.overlay))
        loaded = [name for name in names if name.replace("-", "_") in sys.modules]
        if loaded:
            print(f"callboard: {', '.join(loaded)} was imported before; the session uses the former version until it is imported anew")

    def _environment(self) -> dict[str, str]:
        path = [str(self.overlay), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PIP_NO_INPUT": "1", "NO_COLOR": "1"}

    def _show(self, arguments: list[str]) -> int:
        """Runs the interpreter and shows what it prints as it comes."""
        with subprocess.Popen(
            [sys.executable, *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            try:
                for line in process.stdout or ():
                    print(line, end="")
            except BaseException:
                process.kill()
                raise
        return process.returncode

    def replay(self, requirements: dict[str, dict[str, Any]]) -> list[str]:
        """Installs what the session had elsewhere and lacks here; returns what to tell its user."""
        self.requirements = requirements
        if not self.overlay:
            return [f"callboard: {name} is not installed here, as this node does not replay pip" for name in requirements]
        here = installed([self.overlay])
        for name in set(here) - set(requirements):
            self._remove(name)
        notices, groups = [], {}
        for name, item in requirements.items():
            if here.get(name) != version_in(item["pin"]):
                groups.setdefault(tuple(item["options"]), []).append(item["pin"])
        for options, pins in groups.items():
            began = time.monotonic()
            os.write(2, f"callboard: installing {', '.join(pins)} again\n".encode())
            problem = self._quietly(self._put(list(options), pins))
            took = f"{time.monotonic() - began:.1f} s"
            notices.append(
                f"callboard: {', '.join(pins)} could not be installed on this machine ({problem}): repair that, then run %pip install again"
                if problem
                else f"callboard: {', '.join(pins)} was installed again on this machine ({took})"
            )
        invalidate_caches()
        return notices

    def _quietly(self, arguments: list[str]) -> str | None:
        """Runs pip; returns the last line of what it said if it failed."""
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", *arguments],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=REPLAY_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return f"pip took longer than {REPLAY_TIMEOUT_S:.0f} s"
        except OSError as error:
            return f"pip could not be started: {error.strerror}"
        said = _COLOUR.sub("", (done.stderr or done.stdout).decode(errors="replace"))
        lines = [line for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        return None if done.returncode == 0 else (errors[-1] if errors else f"exit code {done.returncode}")


def pin_of(item: dict[str, Any]) -> str:
    """The requirement that gives just this item of pip's report again."""
    metadata = item["metadata"]
    if item.get("is_direct"):
        return f"{metadata['name']} @ {item['download_info']['url']}"
    return f"{metadata['name']}=={metadata['version']}"


def version_in(pin: str) -> str | None:
    return pin.partition("==")[2] or None


def sources_of(words: list[str]) -> list[str]:
    """Those options of a line that say where packages come from; local paths as they are carried."""
    kept, wanted = [], False
    for word in words:
        option, equals, value = word.partition("=")
        if wanted:
            kept.append(_carried(word))
            wanted = False
        elif option in _SOURCES_WITH_VALUE:
            kept += [option, _carried(value)] if equals else [option]
            wanted = not equals
        elif option in _SOURCES_ALONE:
            kept.append(word)
    return kept


def _carried(value: str) -> str:
    return DIRECTORY.to_carried(os.path.abspath(value)) if os.path.exists(value) else value


PACKAGES = Packages()
