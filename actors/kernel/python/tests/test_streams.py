"""Our stream sends what ipykernel's sends."""

import threading

import pytest
import zmq
from callboard_kernel.streams import CellStream
from ipykernel.iostream import IOPubThread, OutStream
from jupyter_client.session import Session


@pytest.fixture
def sent_by():
    """Makes streams, each with the list of what it sends: the cell and its text."""
    context = zmq.Context()
    thread = IOPubThread(context.socket(zmq.PUB))
    thread.start()

    def make(kind):
        session, sent = Session(), []

        def send(_, message, **__):
            sent.append((message["parent_header"]["msg_id"], message["content"]["text"]))

        session.send = send
        stream = kind(session, thread, "stdout", watchfd=False)
        # Nothing is sent before it is told to.
        stream.flush_interval = 3600
        return stream, sent

    yield make
    thread.stop()
    thread.close()
    context.term()


def print_some(stream):
    """Two cells, the second of them twice, and a thread that prints in between."""
    for cell in ["a", "b", "a"]:
        stream.set_parent({"header": {"msg_id": cell}})
        stream.write(f"{cell} one\n")
        thread = threading.Thread(target=stream.write, args=["of a thread\n"])
        thread.start()
        thread.join()
        stream.writelines([f"{cell} two\n", f"{cell} three\n"])
        stream.flush()
    with pytest.raises(TypeError):
        stream.write(b"bytes")


def test_every_line_is_sent_once_in_the_name_of_its_cell(sent_by):
    (ours, sent), (plain, expected) = sent_by(CellStream), sent_by(OutStream)
    print_some(ours)
    print_some(plain)
    assert sent == expected and len(sent) >= 3


def test_a_flush_waits_until_all_is_sent_and_for_nothing_if_there_is_nothing(sent_by):
    stream, sent = sent_by(CellStream)
    stream.set_parent({"header": {"msg_id": "a"}})
    scheduled = []
    schedule = stream.pub_thread.schedule
    stream.pub_thread.schedule = lambda job: (scheduled.append(job), schedule(job))
    stream.flush()
    assert scheduled == []
    for number in range(100):
        stream.write(f"{number}\n")
        stream.flush()
        assert sent[-1] == ("a", f"{number}\n")
    stream.flush()
    assert len(sent) == 100
    stream.pub_thread.schedule = schedule


def test_a_stream_of_another_ipykernel_is_left_as_it_is(sent_by):
    stream, sent = sent_by(CellStream)
    stream.set_parent({"header": {"msg_id": "a"}})
    stream._is_known = False
    stream.write("text")
    stream.flush()
    assert sent == [("a", "text")]
