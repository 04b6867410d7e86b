"""Widgets and comms: a front-end that goes on with its comm ids finds them in the next process."""

from __future__ import annotations

import pytest
from harness import Kernel

IMPORTS = "import ipywidgets as widgets\nfrom IPython.display import display"


@pytest.fixture
def pair():
    with Kernel() as first, Kernel() as second:
        yield first, second


def value_of(kernel, expression):
    return kernel.run(f"print({expression}, end='')")["stdout"]


def moved(first, second):
    """Moves the session; returns what the next kernel published of its own accord."""
    failed = second.node.restore_from(first.node)
    assert failed == []
    message = second.client.kernel_info()
    published = second.published_until_idle(message)
    second.client.get_shell_msg(timeout=60)
    return [one["msg_type"] for one in published if one["msg_type"] != "status"]


def update(kernel, comm_id, state, **parts):
    """What a front-end sends when its user moves a slider; returns what the kernel published."""
    data = {"method": "update", "state": state, "buffer_paths": parts.pop("buffer_paths", [])}
    return kernel.tell_comm("comm_msg", {"comm_id": comm_id, "data": data}, **parts)


def comm_messages(published, kind="comm_msg"):
    return [
        (one["content"]["comm_id"], one["content"]["data"]) for one in published if one["msg_type"] == kind
    ]


def sent_by(kernel, code):
    """The comm messages that a cell sends."""
    msg_id = kernel.client.execute(code)
    published = kernel.published_until_idle(msg_id)
    kernel.node.wait_for("captured", msg_id)
    assert kernel.client.get_shell_msg(timeout=60)["content"]["status"] == "ok"
    return [message for message in published if message["msg_type"].startswith("comm_")]


def refused(reply):
    return {entry["name"]: entry["reason"] for entry in reply["captured"]["refused"]}


def test_a_widget_goes_on_under_its_comm_id_in_both_directions(pair):
    first, second = pair
    first.run(f"{IMPORTS}\nseen = []\ns = widgets.IntSlider(description='n')\ndisplay(s)")
    first.run("s.observe(lambda change: seen.append((change.old, change.new)), 'value')")
    comm_id = value_of(first, "s.model_id")
    update(first, comm_id, {"value": 5})
    assert moved(first, second) == []
    assert value_of(second, "(s.value, seen, s.description, s.model_id)") == f"(5, [(0, 5)], 'n', '{comm_id}')"

    echoes = comm_messages(update(second, comm_id, {"value": 8}))
    assert echoes == [(comm_id, {"method": "echo_update", "state": {"value": 8}, "buffer_paths": []})]
    assert value_of(second, "(s.value, seen)") == "(8, [(0, 5), (5, 8)])"

    sent = sent_by(second, "s.value = 7")
    assert [message["msg_type"] for message in sent] == ["comm_msg"]
    assert comm_messages(sent) == [(comm_id, {"method": "update", "state": {"value": 7}, "buffer_paths": []})]
    assert sent_by(second, "s.value = 7") == []


def test_a_second_move_keeps_what_a_front_end_changed_after_the_first(pair):
    first, second = pair
    first.run(f"{IMPORTS}\ns = widgets.IntSlider()")
    comm_id = value_of(first, "s.model_id")
    assert moved(first, second) == []
    update(second, comm_id, {"value": 42})
    with Kernel() as third:
        assert moved(second, third) == []
        assert value_of(third, "s.value") == "42"
        reply = third.run("1")
        assert not [one for one in reply["captured"]["upsert"] if one["group"] == "variables:s"]


def test_widgets_that_no_variable_leads_to_are_there_again(pair):
    first, second = pair
    first.run(f"{IMPORTS}\nfrom traitlets import Int\ndisplay(widgets.HBox([widgets.IntSlider(), widgets.Button()]))")
    first.run("a, b = widgets.IntSlider(), widgets.IntText(); ids = [a.model_id, b.model_id]")
    first.run("_ = widgets.jslink((a, 'value'), (b, 'value')); del a, b, _")
    before = first.ask("comm_info_request", {})["comms"]
    assert len(before) == 8 + 3 + 3 + 1 and {one["target_name"] for one in before.values()} == {"jupyter.widget"}
    kinds = "sorted((key, type(w).__name__) for key, w in widgets.widget._instances.items())"
    known = value_of(first, kinds)
    assert moved(first, second) == []
    assert second.ask("comm_info_request", {})["comms"] == before
    assert second.ask("comm_info_request", {"target_name": "other"})["comms"] == {}
    assert value_of(second, kinds) == known and "'Link'" in known
    update(second, value_of(second, "ids[0]"), {"value": 3})
    assert value_of(second, "widgets.widget._instances[ids[0]].value") == "3"


@pytest.mark.parametrize("count", [2, 150])
def test_after_a_restore_no_widget_is_sent_again(pair, count):
    """Also where the pickle of one variable leads to all of them, and is large."""
    first, second = pair
    first.run(f"{IMPORTS}\nfor _ in range({count}): display(widgets.HBox([widgets.IntSlider(), widgets.Button()]))")
    first.run(f"panels = [widgets.HBox([widgets.IntSlider(), widgets.Button()]) for _ in range({count})]")
    groups = {key: held[0]["names"] for key, held in first.node.groups.items() if held[0]["kind"] == "variables"}
    assert len([key for key in groups if "Comm[" in key]) == count and groups["variables:panels"] == ["panels"]
    assert moved(first, second) == []
    # What holds others is still the newer one, as after their making: captures look for it first.
    second.run(
        "order = list(get_ipython().kernel.comm_manager.comms)\nfor panel in panels:\n    for child in panel.children:\n"
        "        assert order.index(child.model_id) < order.index(panel.model_id)\ndel order, panel, child"
    )
    for code in ("pass", "1"):
        captured = second.run(code)["captured"]
        assert not [one for one in captured["upsert"] if one["group"] in groups] and not captured["removed"]
    reply = second.run("panels[0].children[0].value = 1")
    assert "variables:panels" in {one["group"] for one in reply["captured"]["upsert"]}


def test_nested_widgets_stay_the_same_objects(pair):
    first, second = pair
    first.run(f"{IMPORTS}\ninner = widgets.IntSlider(layout=widgets.Layout(width='7em'))\ninner.style.handle_color = 'red'")
    first.run("box = widgets.VBox([widgets.HBox([inner]), widgets.Tab([widgets.Text('t')], titles=['T'])])")
    assert moved(first, second) == []
    second.run("assert box.children[0].children[0] is inner and box.children[1].titles == ('T',)")
    second.run("assert inner.layout.width == '7em' and inner.style.handle_color == 'red'")
    layout = value_of(second, "inner.layout.model_id")
    update(second, layout, {"width": "9em"})
    assert value_of(second, "inner.layout.width") == "9em"
    model = value_of(second, "inner.model_id")
    update(second, value_of(second, "box.children[0].model_id"), {"children": [f"IPY_MODEL_{model}"] * 2})
    second.run("assert box.children[0].children == (inner, inner)")


def test_a_comm_that_another_one_leads_to_has_no_name_of_its_own(pair):
    first, second = pair
    first.run(f"{IMPORTS}\nbox = widgets.HBox(); box_id = box.model_id\nbox.children = [widgets.IntSlider()]\ndel box")
    names = [name for entry, _ in first.node.groups.values() for name in entry["names"] if name.startswith("Comm[")]
    assert names == [f"Comm[{value_of(first, 'box_id')}]"]
    assert moved(first, second) == []
    assert value_of(second, "type(widgets.widget._instances[box_id].children[0]).__name__") == "IntSlider"


def test_progress_bars_of_tqdm_are_carried_without_a_word(pair):
    first, second = pair
    reply = first.run("from tqdm.notebook import tqdm\nfor _ in range(3):\n    for n in tqdm(range(5)): pass")
    assert reply["stderr"] == "" and refused(reply) == {}
    before = first.ask("comm_info_request", {})["comms"]
    assert moved(first, second) == []
    assert second.ask("comm_info_request", {})["comms"] == before and len(before) > 20
    second.run("import ipywidgets\nbar = [w for w in ipywidgets.widget._instances.values() if hasattr(w, 'max')][-1]")
    assert value_of(second, "(bar.value, bar.max, bar.bar_style)") == "(5.0, 5.0, 'success')"


def test_interact_calls_its_function_again(pair):
    first, second = pair
    first.run(f"{IMPORTS}\ncalls = []\n@widgets.interact(x=(0, 10))\ndef f(x=1):\n    calls.append(x); return x")
    first.run("w = widgets.interactive(lambda y: calls.append(('y', y)), y=2)\nslider = w.children[0]")
    assert moved(first, second) == []
    published = update(second, value_of(second, "f.widget.children[0].model_id"), {"value": 6})
    assert value_of(second, "calls[-1]") == "6"
    out = value_of(second, "f.widget.out.model_id")
    # What the function shows is sent with its output widget named before and taken back after.
    ids = [data["state"]["msg_id"] for comm_id, data in comm_messages(published) if comm_id == out and "msg_id" in data["state"]]
    assert len(ids) == 2 and ids[0] and not ids[1]
    update(second, value_of(second, "slider.model_id"), {"value": 3})
    assert value_of(second, "calls[-1]") == "('y', 3)"


def test_buttons_outputs_and_links_work_on(pair):
    first, second = pair
    first.run(f"{IMPORTS}\nclicks = []\nbutton = widgets.Button()\nbutton.on_click(lambda b: clicks.append(b is button))")
    first.run("import traitlets\na, b, c = widgets.IntText(), widgets.IntText(), widgets.IntText()")
    first.run("both = widgets.link((a, 'value'), (b, 'value')); traitlets.dlink((b, 'value'), (c, 'value'), lambda n: -n)")
    first.run("out = widgets.Output()\nwith out: print('before')\nout.append_stdout('kept')")
    assert moved(first, second) == []
    clicked = {"method": "custom", "content": {"event": "click"}}
    second.tell_comm("comm_msg", {"comm_id": value_of(second, "button.model_id"), "data": clicked})
    assert value_of(second, "clicks") == "[True]"
    update(second, value_of(second, "a.model_id"), {"value": 4})
    assert value_of(second, "(a.value, b.value, c.value)") == "(4, 4, -4)"
    second.run("both.unlink(); a.value = 1")
    assert value_of(second, "(a.value, b.value)") == "(1, 4)"
    sent = comm_messages(sent_by(second, "with out: print('after')"))
    assert [(comm_id, bool(data["state"]["msg_id"])) for comm_id, data in sent] == [
        (value_of(second, "out.model_id"), True),
        (value_of(second, "out.model_id"), False),
    ]
    assert value_of(second, "out.outputs[0]['text']") == "kept"


def test_binary_values_and_widget_classes_of_the_session_are_carried(pair):
    first, second = pair
    first.run(f"{IMPORTS}\nimport traitlets\npicture = widgets.Image(value=b'abc')\nupload = widgets.FileUpload()")
    first.run(
        "class Mine(widgets.DOMWidget):\n    n = traitlets.Int(0).tag(sync=True)\n    log = traitlets.List()\n"
        "    @traitlets.observe('n')\n    def _changed(self, change): self.log = [*self.log, change.new]\n"
        "mine = Mine(); mine.add_traits(more=traitlets.Int(1).tag(sync=True)); mine.n = 1"
    )
    file = {"name": "f", "type": "", "size": 2, "last_modified": 0, "content": None}
    buffers = {"buffer_paths": [["value", 0, "content"]], "buffers": [b"\x01\x02"]}
    update(first, value_of(first, "upload.model_id"), {"value": [file]}, **buffers)
    assert refused(first.run("1")) == {}
    assert moved(first, second) == []
    assert value_of(second, "(bytes(picture.value), bytes(upload.value[0].content))") == r"(b'abc', b'\x01\x02')"
    update(second, value_of(second, "mine.model_id"), {"n": 5, "more": 6})
    assert value_of(second, "(mine.n, mine.more, mine.log)") == "(5, 6, [1, 5])"
    second.run("assert isinstance(mine, Mine) and Mine().log == []")


def test_a_widget_that_pickles_itself_keeps_its_comm_id_and_opens_no_other(pair):
    first, second = pair
    first.run(
        f"{IMPORTS}\nimport traitlets\nclass Figure(widgets.DOMWidget):\n    n = traitlets.Int(0).tag(sync=True)\n"
        "    def __init__(self, n=0): super().__init__(n=n)\n    def __reduce__(self): return Figure, (self.n,)\n"
        "figure = Figure(2)"
    )
    comm_id = value_of(first, "figure.model_id")
    assert moved(first, second) == []
    assert value_of(second, "(figure.model_id, figure.n)") == f"('{comm_id}', 2)"
    update(second, comm_id, {"n": 9})
    assert value_of(second, "figure.n") == "9"
    assert [comm for comm, _ in comm_messages(sent_by(second, "figure.n = 1"))] == [comm_id]


def test_a_widget_that_is_made_as_its_owner_is_loaded_is_announced_with_the_next_request(pair):
    first, second = pair
    first.run(
        f"{IMPORTS}\ns = widgets.IntSlider()\nclass Panel:\n    def __getstate__(self): return {{'old': s}}\n"
        "    def __setstate__(self, state):\n        self.new = widgets.Label('new')\n        state['old'].value = 5\n"
        "panel = Panel()"
    )
    assert moved(first, second) == []
    sent = sent_by(second, "1")
    opened = [message["content"]["comm_id"] for message in sent if message["msg_type"] == "comm_open"]
    made = value_of(second, "[panel.new.model_id, panel.new.layout.model_id, panel.new.style.model_id]")
    assert sorted(opened) == sorted(eval(made))
    assert sent_by(second, "1") == []


def test_a_front_end_that_reloads_gets_the_state_of_all_widgets(pair):
    first, second = pair
    first.run(f"{IMPORTS}\ns = widgets.IntSlider(value=4)\ndel widgets")
    comm_id = value_of(first, "s.model_id")
    opened = {"comm_id": "front", "target_name": "jupyter.widget.control", "data": {}}
    first.tell_comm("comm_open", opened, metadata={"version": "1.0.0"})
    assert moved(first, second) == []
    for control in ("front", "again"):
        if control == "again":
            second.tell_comm("comm_open", {**opened, "comm_id": control}, metadata={"version": "1.0.0"})
        asked = {"comm_id": control, "data": {"method": "request_states"}}
        (sender, data), = comm_messages(second.tell_comm("comm_msg", asked))
        assert sender == control and data["states"][comm_id]["state"]["value"] == 4


def test_plain_comms_and_their_targets_survive(pair):
    first, second = pair
    first.run("got = []\nmanager = get_ipython().kernel.comm_manager\n")
    first.run(
        "def opened(comm, message):\n    def on_message(message):\n        got.append(message['content']['data'])\n"
        "        comm.send({'echo': message['content']['data']})\n    comm.on_msg(on_message)\n"
        "    comm.on_close(lambda message: got.append('closed'))\nmanager.register_target('mine', opened)"
    )
    first.run(
        "from ipykernel.comm.comm import BaseComm\nclass Counted(BaseComm):\n"
        "    def __init__(self): self._count = [1]; super().__init__('counted')\ncounted = Counted()"
    )
    first.run("from comm import create_comm\nown = create_comm('front', data={'a': 1})\nown.on_msg(lambda message: got.append('own'))")
    first.tell_comm("comm_open", {"comm_id": "c1", "target_name": "mine", "data": {}})
    own = value_of(first, "own.comm_id")
    assert moved(first, second) == []
    counted = value_of(second, "counted.comm_id")
    assert value_of(second, "(counted._count, type(counted) is Counted)") == "([1], True)"
    comms = {"c1": {"target_name": "mine"}, own: {"target_name": "front"}, counted: {"target_name": "counted"}}
    assert second.ask("comm_info_request", {})["comms"] == comms
    assert comm_messages(second.tell_comm("comm_msg", {"comm_id": "c1", "data": 1})) == [("c1", {"echo": 1})]
    second.tell_comm("comm_msg", {"comm_id": own, "data": {}})
    assert comm_messages(sent_by(second, "own.send({'b': 2})")) == [(own, {"b": 2})]
    second.tell_comm("comm_open", {"comm_id": "c2", "target_name": "mine", "data": {}})
    assert comm_messages(second.tell_comm("comm_msg", {"comm_id": "c2", "data": 2})) == [("c2", {"echo": 2})]
    second.tell_comm("comm_close", {"comm_id": "c1", "data": {}})
    assert value_of(second, "got") == "[1, 'own', 2, 'closed']"
    assert set(second.ask("comm_info_request", {})["comms"]) == {own, "c2", counted}
    sent = sent_by(second, "own.close()")
    assert [(message["msg_type"], message["content"]["comm_id"]) for message in sent] == [("comm_close", own)]


def test_a_closed_comm_stays_closed(pair):
    first, second = pair
    first.run(f"{IMPORTS}\ns = widgets.IntSlider(); t = widgets.IntText(); t_id = t.model_id; s.close()")
    first.tell_comm("comm_close", {"comm_id": value_of(first, "t_id"), "data": {}})
    before = first.ask("comm_info_request", {})["comms"]
    assert moved(first, second) == []
    assert second.ask("comm_info_request", {})["comms"] == before and value_of(second, "t_id") not in before
    assert value_of(second, "(s.comm, t.value)") == "(None, 0)"


def test_a_widget_that_cannot_be_carried_is_named_once_and_its_comm_is_answered_as_closed(pair):
    first, second = pair
    first.run(f"{IMPORTS}\nimport threading\ns, fine = widgets.IntSlider(), widgets.IntText()")
    reply = first.run("lock = threading.Lock()\ns.observe(lambda change, lock=lock: None, 'value')\ndel lock")
    assert reply["stderr"].count("cannot be carried") == 1 and "'s' (" in reply["stderr"]
    assert set(refused(reply)) == {"s"}
    lost = value_of(first, "s.model_id")
    assert moved(first, second) == []
    assert lost not in second.ask("comm_info_request", {})["comms"]
    assert comm_messages(update(second, lost, {"value": 1}), "comm_close") == [(lost, {})]
    assert "'s' (ipywidgets" in value_of(second, "s")
    update(second, value_of(second, "fine.model_id"), {"value": 3})
    assert value_of(second, "fine.value") == "3"
    # One that no variable leads to is named by its comm.
    reply = first.run("hidden = s; del s\nhidden = hidden.model_id")
    assert set(refused(reply)) == {f"Comm[{lost}]"} and reply["stderr"].count("cannot be carried") == 1
    assert first.run("1")["stderr"] == ""
    reply = first.run("for _ in range(3): widgets.IntSlider().observe(lambda change, lock=threading.Lock(): None)")
    assert len(refused(reply)) == 4 and reply["stderr"] == ""


def test_comms_over_the_limit_are_named_and_the_newest_carried(pair):
    first, second = pair
    reply = first.run("from comm import create_comm\nmany = [create_comm('t', comm_id=f'c{n}').comm_id for n in range(4100)]; del many")
    assert value_of(first, "len(get_ipython().kernel.comm_manager.comms)") == "4100"
    assert refused(reply).keys() == {"*"} and "the 4 oldest are over the limit of 4,096 comms" in refused(reply)["*"]
    assert moved(first, second) == []
    comms = second.ask("comm_info_request", {})["comms"]
    assert len(comms) == 4096 and "c3" not in comms and {"c4", "c4099"} <= set(comms)


def test_a_group_that_is_loaded_twice_opens_its_comms_once(pair):
    """A global that is missing is loaded first: what the first attempt made must not take the comm away."""
    first, second = pair
    first.run(
        f"{IMPORTS}\nlater = ['there']\nclass Needs:\n    def __getstate__(self): return 1\n"
        "    def __setstate__(self, state): self.got = later[0]\n"
        "s = widgets.IntSlider(); an_early_name = [s, Needs()]"
    )
    comm_id = value_of(first, "s.model_id")
    assert moved(first, second) == []
    second.run("import gc; gc.collect()")
    assert value_of(second, "(an_early_name[1].got, widgets.widget._instances[s.model_id] is s)") == "('there', True)"
    assert [comm for comm, _ in comm_messages(sent_by(second, "s.value = 2"))] == [comm_id]


def test_another_restore_in_the_same_process_replaces_comms_without_a_word(pair):
    first, second = pair
    second.run(f"{IMPORTS}\ns = widgets.IntSlider()\nget_ipython().kernel.comm_manager.register_target('old', print)")
    first.run("x = 1")
    assert moved(first, second) == []
    assert second.ask("comm_info_request", {})["comms"] == {}
    assert value_of(second, "'old' in get_ipython().kernel.comm_manager.targets") == "False"
    assert sent_by(second, "import gc; gc.collect()") == []


def test_ipywidgets_is_imported_by_nobody_but_the_session(pair):
    first, second = pair
    first.run("import sys\nfrom comm import create_comm\nc = create_comm('t')\nhad = 'ipywidgets' in sys.modules")
    assert moved(first, second) == []
    assert value_of(second, "(had, 'ipywidgets' in sys.modules)") == "(False, False)"
