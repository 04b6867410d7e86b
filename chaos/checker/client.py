"""A client of the bus in a few lines, written from docs/protocol.md alone."""

import asyncio
import base64
import json
import struct
import uuid

import nats


def frame(channel, header, content, metadata=None):
    """A Jupyter message in the v1.kernel.websocket.jupyter.org framing."""
    parts = [channel.encode()]
    parts += [json.dumps(part).encode() for part in (header, {}, metadata or {}, content)]
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


def unframe(data):
    """Its channel, header, parent header, metadata and content."""
    (count,) = struct.unpack_from("<Q", data)
    offsets = struct.unpack_from(f"<{count}Q", data, 8)
    parts = [data[a:b] for a, b in zip(offsets, offsets[1:])]
    return [parts[0].decode()] + [json.loads(part) for part in parts[1:5]]


async def run_cell(credentials, kernel, code, timeout_s=60.0):
    """Runs `code`, resending it under one id until its end is known; returns what it printed."""
    connection = await nats.connect(
        credentials["url"],
        user=credentials["user"],
        password=credentials["password"],
        inbox_prefix=credentials["inbox_prefix"].encode(),
    )
    try:
        return await asyncio.wait_for(_run(connection, credentials, kernel, code), timeout_s)
    finally:
        await connection.close()


async def _run(connection, credentials, kernel, code):
    root = f"cb.v1.{credentials['cluster']}"
    msg_id, end = str(uuid.uuid4()), asyncio.get_running_loop().create_future()

    async def on_ended(message):
        body = json.loads(message.data)
        if body["msg_id"] == msg_id and not end.done():
            end.set_result(body)

    await connection.subscribe(f"{root}.evt.kernel.{kernel}.ended", cb=on_ended)
    await connection.flush()
    header = {
        "msg_id": msg_id,
        "msg_type": "execute_request",
        "session": "checker",
        "username": "checker",
        "date": "1970-01-01T00:00:00Z",
        "version": "5.4",
    }
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    request = frame("shell", header, content)
    while not end.done():
        try:
            reply = await connection.request(f"{root}.kernel.{kernel}.shell", request, timeout=1)
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
            await asyncio.sleep(0.2)
            continue
        answer = json.loads(reply.data)
        if "err" in answer:
            if answer["err"]["code"] not in ("unavailable", "timed_out", "stale"):
                raise RuntimeError(f"the kernel refused the final read: {answer['err']['message']}")
            await asyncio.sleep(0.2)
            continue
        state = answer["ok"]["state"]
        if state != "pending" and not end.done():
            end.set_result(state["ended"])
        await asyncio.wait([end], timeout=1)
    body = end.result()
    if body["outcome"]["kind"] != "completed":
        raise RuntimeError(f"the final read ended {body['outcome']}")
    return await _printed(connection, root, kernel, msg_id, body["last_output"])


async def _printed(connection, root, kernel, msg_id, last):
    """The stdout of a cell, read from the kernel's log."""
    text, since, last = "", {"term": last["term"], "number": 0}, (last["term"], last["number"])
    while (since["term"], since["number"]) < last:
        reply = await connection.request(
            f"{root}.kernel.{kernel}.outputs", json.dumps({"since": since}).encode(), timeout=5
        )
        answer = json.loads(reply.data)["ok"]
        for output in answer["outputs"]:
            since = output["place"]["cursor"]
            _, header, parent, _, content = unframe(base64.b64decode(output["message"]))
            if parent.get("msg_id") != msg_id:
                continue
            if header["msg_type"] == "stream" and content["name"] == "stdout":
                text += content["text"]
            if header["msg_type"] == "error":
                raise RuntimeError(f"the final read raised {content['ename']}: {content['evalue']}")
        if not answer["outputs"]:
            await asyncio.sleep(0.1)
    return text
