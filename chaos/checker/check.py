"""Judges one chaos trial from what its client saw and what its cells wrote outside the kernel.

Knows nothing of the cluster's code, logs or disks. Reads the client's history (JSON lines), the
witness file (one token a line, appended by the cells with O_APPEND), and the session's final
state, which it reads itself over NATS (client.py) or is given with --state.

Prints one JSON object: the findings, each a list of sentences.
  lost          a cell acknowledged at `durable` as completed whose token the session lacks; a
                variable whose content is not the one whose hash its cell left beside it
  run_twice     a token twice in the witness or in the session
  unanswered    a cell that has no end: neither completed, nor interrupted, nor refused
  inconsistent  any other contradiction: a token of a cell that was said to have left no state, a
                completed cell that left no witness, an order that is not the client's, an answer
                that changed when the cell was asked for again, two readers that disagree
Exit code 0: judged, whatever the judgement. 2: could not be judged.
"""

import argparse
import asyncio
import collections
import json
import pathlib
import sys

# Cells that make large variables leave their hashes in `sums`.
READ = """
import hashlib as _hash, json as _json
_rotten = [k for k, v in sums.items() if _hash.blake2b(globals().get(k, b"")).hexdigest() != v]
print(_json.dumps({"log": log, "n": n, "rotten": _rotten}))
"""


def load_history(path):
    """Cells in the order they were sent, and the client's own final read."""
    cells, final = {}, None
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error}") from error
        event = entry["event"]
        if event == "invoke":
            cells[entry["msg_id"]] = {**entry, "end": None, "again": None, "accepted": None}
        elif event == "accepted":
            cells[entry["msg_id"]]["accepted"] = entry["seq"]
        elif event == "ended":
            cells[entry["msg_id"]]["end"] = entry["outcome"]
        elif event == "asked_again":
            cells[entry["msg_id"]]["again"] = entry["outcome"]
        elif event == "final":
            final = {"log": entry["log"], "n": entry["n"]}
    return list(cells.values()), final


def has_end(cell):
    return cell["end"] is not None and cell["end"]["kind"] != "unanswered"


def left_no_state(cell):
    """Whether the kernel said that the cell left no state."""
    end = cell["end"] or {}
    not_executed = end.get("kind") == "refused" and end["certainty"] == "not_executed"
    return end.get("kind") == "interrupted" or not_executed


def judge(cells, witness, state, client_final=None):
    """The findings. `witness` is a list of tokens, `state` is {"log": [...], "n": n, "rotten": [...]}."""
    findings = {"lost": [], "run_twice": [], "unanswered": [], "inconsistent": []}
    log, seen = collections.Counter(state["log"]), collections.Counter(witness)
    known = {cell["token"] for cell in cells if cell["token"]}
    for cell in cells:
        token, end = cell["token"], cell["end"]
        label = f"cell {token or cell['msg_id']}"
        if not has_end(cell):
            findings["unanswered"].append(f"{label} was sent and never answered")
        if not token:
            continue
        for place, count in (("witness", seen[token]), ("session", log[token])):
            if count > 1:
                findings["run_twice"].append(f"{label} is {count} times in the {place}")
        if has_end(cell) and end["kind"] == "completed":
            judge_completed(cell, label, seen, log, findings)
        if left_no_state(cell) and log[token]:
            findings["inconsistent"].append(f"{label} ended {end['kind']}, yet left state")
        if end and end["kind"] == "refused" and end["certainty"] == "not_executed" and seen[token]:
            findings["inconsistent"].append(f"{label} was refused as not executed, yet it ran")
        if has_end(cell) and cell["again"] and cell["again"]["kind"] != "unanswered":
            judge_again(cell, label, findings)
    for token in sorted((set(log) | set(seen)) - known):
        findings["inconsistent"].append(f"token {token} was never sent")
    order = [cell["token"] for cell in cells if cell["token"] in log]
    kept = list(dict.fromkeys(state["log"]))
    if kept != order and set(kept) == set(order):
        findings["inconsistent"].append(f"the session holds {kept}, the client sent {order}")
    if state["n"] != len(state["log"]):
        findings["inconsistent"].append(f"n is {state['n']}, but {len(state['log'])} tokens are held")
    for name in state.get("rotten", []):
        findings["lost"].append(f"variable {name} does not hold what its cell left in it")
    held = {"log": state["log"], "n": state["n"]}
    if client_final is not None and client_final != held:
        findings["inconsistent"].append(f"the client read {client_final}, the checker {state}")
    return findings


def judge_completed(cell, label, seen, log, findings):
    status = cell["end"].get("status")
    if status != "ok":
        findings["inconsistent"].append(f"{label} completed with status {status} instead of ok")
        return
    if not seen[cell["token"]]:
        findings["inconsistent"].append(f"{label} completed, but left no witness")
    if cell["level"] == "durable" and not log[cell["token"]]:
        findings["lost"].append(f"{label} was acknowledged as durable and is not in the session")


def judge_again(cell, label, findings):
    first, again = cell["end"], cell["again"]
    # At `received` the end may still turn into an interruption: that is what the level means.
    if first["kind"] != again["kind"] and cell["level"] == "durable":
        text = f"{label} ended {first['kind']}; asked again, it ended {again['kind']}"
        findings["inconsistent"].append(text)


def verdict(cells, findings, state):
    durable = [
        cell
        for cell in cells
        if cell["level"] == "durable" and (cell["end"] or {}).get("kind") == "completed"
    ]
    return {
        "ok": not any(findings.values()),
        "cells": len(cells),
        "acknowledged_durable": len(durable),
        "interrupted": sum((cell["end"] or {}).get("kind") == "interrupted" for cell in cells),
        "tokens_held": len(state["log"]),
        **findings,
    }


def read_state(arguments):
    if arguments.state:
        return json.loads(pathlib.Path(arguments.state).read_text())
    from client import run_cell

    credentials = json.loads(pathlib.Path(arguments.credentials).read_text())
    text = asyncio.run(run_cell(credentials, arguments.kernel, READ))
    return json.loads(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--history", required=True, help="the client's history, JSON lines")
    parser.add_argument("--witness", required=True, help="the file the cells appended to")
    parser.add_argument("--credentials", help="of a role that may run cells")
    parser.add_argument("--kernel", help="the kernel's id")
    parser.add_argument("--state", help="the final state as JSON instead of reading it over NATS")
    arguments = parser.parse_args()
    if not arguments.state and not (arguments.credentials and arguments.kernel):
        parser.error("give --state, or --credentials and --kernel")
    try:
        cells, final = load_history(arguments.history)
        witness = pathlib.Path(arguments.witness)
        tokens = witness.read_text().split() if witness.exists() else []
        state = read_state(arguments)
    except Exception as error:
        print(f"check.py: cannot judge: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(verdict(cells, judge(cells, tokens, state, final), state)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
