"""`%callboard`: what the user leaves out stays out, also on the next machine."""

from __future__ import annotations

import pytest
from harness import Kernel


@pytest.fixture(scope="module")
def kernel():
    with Kernel() as one:
        yield one


def refused(reply):
    return {entry["name"]: entry["reason"] for entry in reply["captured"]["refused"]}


def test_an_excluded_name_stays_here_and_explains_itself_elsewhere(kernel):
    kernel.run("secret = 'hunter2' * 1000; kept = [1]")
    reply = kernel.run("%callboard exclude secret later")
    assert "secret, later" in reply["stdout"] and "still carries" in reply["stdout"]
    assert refused(reply) == {"secret": "excluded by you"}
    assert "left out of what is carried" in reply["stderr"]
    _, parts = kernel.node.groups["variables:secret"]
    assert b"hunter2" not in b"".join(parts)
    assert kernel.run("assert secret.startswith('hunter')")["status"] == "ok"
    with Kernel() as other:
        assert other.node.restore_from(kernel.node) == []
        reply = other.run("print(repr(secret)); later = [2]")
        assert "'secret' (str) is not available" in reply["stdout"] and "excluded by you" in reply["stdout"]
        assert refused(reply) == {"secret": "excluded by you", "later": "excluded by you"}
        reply = other.run("%callboard include secret later")
        assert refused(reply) == {} and "Carried again: secret, later" in reply["stdout"]


def test_status_names_what_is_carried_and_what_is_not(kernel):
    kernel.run("gone = (n for n in [1])")
    text = kernel.run("%callboard status")["stdout"]
    assert "names are carried" in text and "gone (generator) stays here" in text and "excluded by you" in text


def test_a_wrong_word_gets_a_sentence_and_changes_nothing(kernel):
    before = kernel.run("%callboard status")["stdout"].splitlines()[1:]
    assert "Nothing was changed" in kernel.run("%callboard exclude a-b kept")["stdout"]
    assert "exclude NAME" in kernel.run("%callboard")["stdout"]
    assert "no verb 'obliterate'" in kernel.run("%callboard obliterate everything")["stdout"]
    assert "cannot read" in kernel.run("%callboard exclude 'unclosed")["stdout"]
    assert "Was not left out: kept" in kernel.run("%callboard include kept")["stdout"]
    assert kernel.run("%callboard status")["stdout"].splitlines()[1:] == before


def test_other_modules_add_verbs(kernel):
    kernel.run("get_ipython().kernel.magics.add_verb('shout', lambda words: ' '.join(words).upper(), 'shout WORD…')")
    assert "HELLO THERE" in kernel.run("%callboard shout hello there")["stdout"]
    assert "shout WORD" in kernel.run("%callboard")["stdout"]
