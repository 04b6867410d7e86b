"""The checker acquits an honest history and catches each planted lie."""

import hashlib
import json
import pathlib
import subprocess
import sys

import pytest

CHECKER = pathlib.Path(__file__).resolve().parents[1] / "check.py"
sys.path.insert(0, str(CHECKER.parent))

from client import frame, unframe  # noqa: E402


class Trial:
    """A history, a witness and a state that tell the same honest story until they are changed."""

    def __init__(self):
        self.lines, self.witness, self.log, self.rotten = [], [], [], []
        for token in ("a", "b"):
            self.cell(token, {"kind": "completed", "status": "ok"}, kept=True, ran=1)
        self.cell("c", {"kind": "interrupted", "cause": "killed by signal 9"}, kept=False, ran=1)
        self.cell("d", {"kind": "completed", "status": "ok"}, kept=True, ran=1)

    def cell(self, token, outcome, kept, ran, level="durable"):
        msg_id = f"id-{token}"
        invoke = {"msg_id": msg_id, "token": token, "level": level, "code": "…"}
        self.lines.append({"event": "invoke", **invoke})
        self.lines.append({"event": "accepted", "msg_id": msg_id, "seq": len(self.lines)})
        if outcome:
            self.lines.append({"event": "ended", "msg_id": msg_id, "outcome": outcome})
        self.witness += [token] * ran
        self.log += [token] if kept else []

    def judge(self, folder):
        history, witness, state = (folder / name for name in ("h.jsonl", "w.txt", "s.json"))
        final = {"event": "final", "log": self.log, "n": len(self.log)}
        lines = [json.dumps({"at_ms": n, **line}) for n, line in enumerate([*self.lines, final])]
        history.write_text("".join(line + "\n" for line in lines))
        witness.write_text("".join(f"{token}\n" for token in self.witness))
        held = {"log": self.log, "n": len(self.log), "rotten": self.rotten}
        state.write_text(json.dumps(held))
        command = [sys.executable, str(CHECKER), "--history", str(history)]
        command += ["--witness", str(witness), "--state", str(state)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def trial():
    return Trial()


def findings(verdict):
    kinds = ("lost", "run_twice", "unanswered", "inconsistent")
    return {kind: verdict[kind] for kind in kinds if verdict[kind]}


def test_an_honest_history_is_acquitted(trial, tmp_path):
    verdict = trial.judge(tmp_path)
    assert verdict["ok"] and findings(verdict) == {}
    assert (verdict["cells"], verdict["acknowledged_durable"], verdict["interrupted"]) == (4, 3, 1)


def test_a_lost_durable_cell_is_caught(trial, tmp_path):
    trial.log.remove("b")
    verdict = trial.judge(tmp_path)
    assert not verdict["ok"] and list(findings(verdict)) == ["lost"]
    assert "cell b" in verdict["lost"][0]


def test_a_tail_of_acknowledged_cells_that_a_disk_forgot_is_caught(trial, tmp_path):
    del trial.log[1:]
    verdict = trial.judge(tmp_path)
    assert list(findings(verdict)) == ["lost"] and len(verdict["lost"]) == 2


def test_a_hole_under_later_cells_is_caught(trial, tmp_path):
    completed = {"kind": "completed", "status": "ok"}
    for token in ("e", "f"):
        trial.cell(token, completed, kept=True, ran=1)
    trial.log.remove("d")
    verdict = trial.judge(tmp_path)
    assert list(findings(verdict)) == ["lost"] and "cell d" in verdict["lost"][0]


def test_a_session_that_began_again_is_caught(trial, tmp_path):
    trial.log.clear()
    verdict = trial.judge(tmp_path)
    assert list(findings(verdict)) == ["lost"] and len(verdict["lost"]) == 3


def test_a_variable_that_rotted_is_caught_although_every_token_is_there(trial, tmp_path):
    trial.rotten.append("base")
    verdict = trial.judge(tmp_path)
    assert not verdict["ok"] and list(findings(verdict)) == ["lost"]
    assert "variable base" in verdict["lost"][0]


def test_the_read_tells_a_rotten_or_missing_variable_from_a_sound_one(capsys):
    import check

    session = {"log": ["a"], "n": 1, "sums": {}}
    for name, value in (("sound", b"x"), ("rotten", b"x"), ("gone", b"x")):
        session["sums"][name] = hashlib.blake2b(value).hexdigest()
    session.update(sound=b"x", rotten=b"y")
    exec(check.READ, session)
    held = json.loads(capsys.readouterr().out)
    assert held == {"log": ["a"], "n": 1, "rotten": ["rotten", "gone"]}


def test_a_token_twice_in_the_witness_is_caught(trial, tmp_path):
    trial.witness.append("c")
    verdict = trial.judge(tmp_path)
    assert not verdict["ok"] and list(findings(verdict)) == ["run_twice"]
    assert "cell c" in verdict["run_twice"][0]


@pytest.mark.parametrize("outcome", [None, {"kind": "unanswered"}])
def test_a_cell_that_was_never_answered_is_caught(trial, tmp_path, outcome):
    trial.cell("e", outcome, kept=False, ran=1)
    verdict = trial.judge(tmp_path)
    assert not verdict["ok"] and list(findings(verdict)) == ["unanswered"]
    assert "cell e" in verdict["unanswered"][0]


def test_state_of_an_interrupted_cell_is_caught(trial, tmp_path):
    trial.log.insert(2, "c")
    verdict = trial.judge(tmp_path)
    assert "interrupted, yet left state" in findings(verdict)["inconsistent"][0]


def test_another_order_than_the_clients_is_caught(trial, tmp_path):
    trial.log[0], trial.log[1] = trial.log[1], trial.log[0]
    assert "the client sent" in findings(trial.judge(tmp_path))["inconsistent"][0]


def test_an_answer_that_changes_when_asked_again_is_caught(trial, tmp_path):
    again = {"kind": "interrupted", "cause": "x"}
    trial.lines.append({"event": "asked_again", "msg_id": "id-a", "outcome": again})
    assert "asked again" in findings(trial.judge(tmp_path))["inconsistent"][0]


def test_a_completed_cell_without_a_witness_is_caught(trial, tmp_path):
    trial.witness.remove("d")
    assert "left no witness" in findings(trial.judge(tmp_path))["inconsistent"][0]


def test_a_received_cell_may_be_lost(trial, tmp_path):
    completed = {"kind": "completed", "status": "ok"}
    trial.cell("e", completed, kept=False, ran=1, level="received")
    assert trial.judge(tmp_path)["ok"]


def test_a_refused_cell_that_may_have_run_is_answered(trial, tmp_path):
    refused = {"kind": "refused", "code": "stale", "certainty": "maybe_executed", "message": "…"}
    trial.cell("e", refused, kept=False, ran=1)
    assert trial.judge(tmp_path)["ok"]


def test_a_cell_refused_as_not_executed_that_ran_is_caught(trial, tmp_path):
    refused = {"kind": "refused", "code": "stale", "certainty": "not_executed", "message": "…"}
    trial.cell("e", refused, kept=False, ran=1)
    assert "yet it ran" in findings(trial.judge(tmp_path))["inconsistent"][0]


def test_a_damaged_history_is_not_judged(tmp_path):
    history = tmp_path / "h.jsonl"
    history.write_text("{not json\n")
    (tmp_path / "s.json").write_text('{"log": [], "n": 0}')
    command = [sys.executable, str(CHECKER), "--history", str(history), "--witness"]
    command += [str(tmp_path / "none"), "--state", str(tmp_path / "s.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "h.jsonl:1 is not JSON" in done.stderr


def test_a_frame_reads_back_and_has_the_documented_layout():
    data = frame("shell", {"msg_id": "m"}, {"code": "x = 1"})
    assert data[:8] == (6).to_bytes(8, "little") and data[8:16] == (56).to_bytes(8, "little")
    assert int.from_bytes(data[48:56], "little") == len(data)
    channel, header, parent, metadata, content = unframe(data)
    assert (channel, header["msg_id"], content["code"]) == ("shell", "m", "x = 1")
    assert parent == {} and metadata == {}
