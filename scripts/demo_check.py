"""The independent check of `callboard demo`: asks the cluster itself, with a client of its own.

    demo_check.py before RECORD.json    take digests of the variables and note them beside the record
    demo_check.py after RECORD.json     compare variables, outputs and replicas with what was noted

It shares no code with Callboard: docs/protocol.md and nats-py are all it uses. It prints one
sentence, and exits 0 only if nothing is missing.
"""

import ast
import asyncio
import base64
import hashlib
import json
import pathlib
import struct
import sys
import uuid

import nats

# Runs in the kernel, in a namespace of its own.
DIGESTS = """
import hashlib, types

def parts(value):
    if hasattr(value, "tobytes"):
        return [value.dtype.str, value.shape, value.tobytes()]
    if isinstance(value, types.FunctionType):
        return [value.__code__.co_code, value.__code__.co_names]
    if hasattr(value, "coefs_"):
        return [digest(layer) for layer in value.coefs_ + value.intercepts_]
    if isinstance(value, dict):
        return [(key, digest(value[key])) for key in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [digest(item) for item in value]
    return value if isinstance(value, (int, float, str, bytes, type(None))) else type(value).__qualname__

def digest(value):
    return hashlib.sha256(repr(parts(value)).encode()).hexdigest()

def digests(names):
    skipped = ("In", "Out", "exit", "quit", "open", "get_ipython")
    return {name: digest(value) for name, value in names.items()
            if not name.startswith("_") and name not in skipped and not isinstance(value, types.ModuleType)}
"""
CELL = f"(lambda own: (exec({DIGESTS!r}, own), own['digests'](globals()))[1])(dict())"


class Lost(Exception):
    """Something that was acknowledged is not there."""


class Kernel:
    """The few verbs of docs/protocol.md that the check needs."""

    def __init__(self, connection, cluster, kernel):
        self.connection = connection
        self.root = f"cb.v1.{cluster}"
        self.kernel = kernel

    async def ask(self, verb, body):
        for _ in range(20):
            try:
                subject = f"{self.root}.kernel.{self.kernel}.{verb}"
                reply = await self.connection.request(subject, body, timeout=2)
            except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
                await asyncio.sleep(0.2)
                continue
            answer = json.loads(reply.data)
            if "ok" in answer:
                return answer["ok"]
            if answer["err"]["code"] not in ("unavailable", "timed_out", "stale"):
                raise Lost(answer["err"]["message"])
            await asyncio.sleep(0.2)
        raise Lost(f"the kernel does not answer '{verb}'")

    async def outputs(self):
        """Every kept output, from the start: {place: bytes of the message}."""
        kept, since, more = {}, {"term": 0, "number": 0}, True
        while more:
            page = await self.ask("outputs", json.dumps({"since": since}).encode())
            for output in page["outputs"]:
                since = output["place"]["cursor"]
                kept[f"{since['term']}.{since['number']}"] = base64.b64decode(output["message"])
            more = page["more"] and page["outputs"]
        return kept

    def execute_request(self, msg_id, code):
        header = {"msg_id": msg_id, "msg_type": "execute_request", "session": "check", "username": "check",
                  "version": "5.4", "date": "2000-01-01T00:00:00Z"}
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {},
                   "allow_stdin": False, "stop_on_error": True}
        return frame(b"shell", *(json.dumps(part).encode() for part in (header, {}, {}, content)))

    async def evaluate(self, code):
        """Runs a cell and returns the text of its result."""
        msg_id = str(uuid.uuid4())
        request = self.execute_request(msg_id, code)
        for _ in range(300):
            state = (await self.ask("shell", request))["state"]
            if state != "pending":
                break
            await asyncio.sleep(0.1)
        else:
            raise Lost("the check's own cell does not end")
        for message in (await self.outputs()).values():
            _, head, parent, _, body = parts(message)[:5]
            if json.loads(parent).get("msg_id") == msg_id and json.loads(head)["msg_type"] == "execute_result":
                return json.loads(body)["data"]["text/plain"]
        raise Lost(f"the check's own cell has no result; it ended as {state}")


def frame(*parts_of_message):
    """v1.kernel.websocket.jupyter.org: a count of offsets, the offsets, the parts."""
    offset = 8 * (len(parts_of_message) + 2)
    offsets = [offset := offset + len(part) for part in (b"", *parts_of_message)]
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts_of_message)


def parts(message):
    """The inverse of `frame`."""
    (count,) = struct.unpack_from("<Q", message)
    offsets = struct.unpack_from(f"<{count}Q", message, 8)
    return [message[a:b] for a, b in zip(offsets, offsets[1:])]


async def look(when, path):
    record = json.loads(path.read_text())
    credentials = json.loads(pathlib.Path(record["credentials"]).read_text())
    connection = await nats.connect(
        credentials["url"], user=credentials["user"], password=credentials["password"],
        inbox_prefix=credentials["inbox_prefix"].encode(),
    )
    try:
        kernel = Kernel(connection, credentials["cluster"], record["kernel"])
        digests = ast.literal_eval(await kernel.evaluate(CELL))
        noted = path.with_name("digests.json")
        if when == "before":
            noted.write_text(json.dumps(digests, indent=1))
            return f"{len(digests)} variables noted"
        return await compare(kernel, record, json.loads(noted.read_text()), digests, path)
    finally:
        await connection.close()


async def compare(kernel, record, before, after, path):
    for name in before:
        if after.get(name) != before[name]:
            raise Lost(f"the variable '{name}' is {'changed' if name in after else 'gone'}")
    if record["never_bound"] in after:
        raise Lost("the cell that was cut off left a variable behind")
    kept = await kernel.outputs()
    wanted = [output for cell in record["cells"] if cell["completed"] for output in cell["outputs"]]
    for place, digest in wanted:
        if hashlib.sha256(kept.get(place, b"")).hexdigest() != digest:
            raise Lost(f"the output at {place} is {'changed' if place in kept else 'gone'}")
    pictures = [json.loads(parts(message)[4]).get("data", {}).get("image/png") for message in kept.values()]
    plot = path.with_name("plot.png").read_bytes()
    if plot not in [base64.b64decode(picture) for picture in pictures if picture]:
        raise Lost("the plot is not among the outputs")
    replicas = (await kernel.ask("show", b""))["replicas"]
    whole = sum(replica["role"] in ("executor", "standby") for replica in replicas)
    if whole != 3:
        raise Lost(f"only {whole} of 3 replicas are there")
    cells = [cell["completed"] for cell in record["cells"]]
    return (f"{len(before)} variables, {len(wanted)} outputs of {sum(cells)} acknowledged cells and 3 replicas "
            "are there, byte for byte")


if __name__ == "__main__":
    try:
        print(asyncio.run(look(sys.argv[1], pathlib.Path(sys.argv[2]))))
    except (Lost, OSError, nats.errors.Error) as error:
        sys.exit(str(error) or type(error).__name__)
