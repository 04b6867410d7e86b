"""The two halves of scripts/fsync-trace: runs durable cells, and judges the traces of the nodes.

    fsync_trace.py run KERNEL DIR     run cells; note for each when its code ended and its end arrived
    fsync_trace.py judge DIR          count the nodes that synced their log between the two

The last thing a cell's code does is to take the time. What it printed was put in the log well
before. So a sync of a node's log that began after that time and was done before the client heard of
the end is the sync of the cell's completion.
"""

import asyncio
import json
import pathlib
import re
import sys
import time
import uuid

import nats
from demo_check import Kernel, parts

CELLS = 20
NODES_NEEDED = 2
CODE = """
import time
print(repr(globals().get("code_ended")))
x = {number}
time.sleep(0.1)
code_ended = time.time()
"""
# With strace -T a call ends with its duration; one that was cut in two ends at its second line.
WHOLE = re.compile(r"^\d+\s+(\d+\.\d+) f(?:data)?sync\(\d+<([^>]*)>\)\s+= 0 <(\d+\.\d+)>$")
BEGUN = re.compile(r"^(\d+)\s+(\d+\.\d+) f(?:data)?sync\(\d+<([^>]*)> <unfinished \.\.\.>$")
RESUMED = re.compile(r"^(\d+)\s+(\d+\.\d+) <\.\.\. f(?:data)?sync resumed>\)\s+= 0 <\d+\.\d+>$")


async def run(kernel_id, folder):
    credentials = json.loads((folder / "data/credentials/operator.json").read_text())
    connection = await nats.connect(
        credentials["url"], user=credentials["user"], password=credentials["password"],
        inbox_prefix=credentials["inbox_prefix"].encode(),
    )
    kernel = Kernel(connection, credentials["cluster"], kernel_id)
    events = await connection.subscribe(f"{kernel.root}.evt.kernel.{kernel_id}.*")
    cells = []
    # One more: each cell prints when the code of the one before ended.
    for number in range(CELLS + 1):
        msg_id, cell = str(uuid.uuid4()), {"number": number + 1}
        await kernel.ask("shell", kernel.execute_request(msg_id, CODE.format(number=number)))
        while "ended" not in cell:
            event = await events.next_msg(timeout=60)
            if event.subject.endswith(".ended") and json.loads(event.data)["msg_id"] == msg_id:
                cell["ended"] = time.time()
            elif event.subject.endswith(".emitted"):
                _, head, parent, _, body = parts(event.data)[:5]
                is_text = json.loads(head)["msg_type"] == "stream" and json.loads(body)["text"].strip()
                if cells and is_text and json.loads(parent).get("msg_id") == msg_id:
                    cells[-1]["code_ended"] = float(json.loads(body)["text"])
        cells.append(cell)
    await connection.close()
    (folder / "cells.json").write_text(json.dumps(cells[:CELLS], indent=1))


def syncs(trace):
    """Begin and end of each successful sync of the write-ahead log, in seconds since the epoch."""
    begun, found = {}, []
    for line in trace.read_text(errors="replace").splitlines():
        if whole := WHOLE.match(line):
            begin, path, took = float(whole[1]), whole[2], float(whole[3])
            if "/wal/wal-" in path:
                found.append((begin, begin + took))
        elif (part := BEGUN.match(line)) and "/wal/wal-" in part[3]:
            begun[part[1]] = float(part[2])
        elif (part := RESUMED.match(line)) and part[1] in begun:
            found.append((begun.pop(part[1]), float(part[2])))
    return found


def judge(folder):
    cells = json.loads((folder / "cells.json").read_text())
    nodes = {trace.stem: syncs(trace) for trace in sorted(folder.glob("node-*.trace"))}
    print("cell  code ended to reply  log synced in between on")
    bad = 0
    for cell in cells:
        begin, end = cell["code_ended"], cell["ended"]
        synced = [node for node, times in nodes.items() if any(begin < a and b < end for a, b in times)]
        bad += len(synced) < NODES_NEEDED
        print(f"{cell['number']:>4}  {(end - begin) * 1000:15.1f} ms  {len(synced)}: {' '.join(synced) or '-'}")
    total = sum(map(len, nodes.values()))
    print(f"{len(cells) - bad} of {len(cells)} durable cells were answered after a sync on at least "
          f"{NODES_NEEDED} nodes ({total} syncs of logs in the traces)")
    return bad == 0 and len(cells) == CELLS


if __name__ == "__main__":
    if sys.argv[1] == "run":
        asyncio.run(run(sys.argv[2], pathlib.Path(sys.argv[3])))
    else:
        sys.exit(0 if judge(pathlib.Path(sys.argv[2])) else 1)
