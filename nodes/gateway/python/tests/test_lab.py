"""What a user does in JupyterLab, in a real one and a real browser."""

import re

from backends import PlainJupyter
from lab import Lab, Notebook
from playwright.sync_api import expect

# The extension saves a second after a cell has started or ended.
SAVED_AFTER_MS = 2_000


def test_a_notebook_opens_with_an_idle_kernel(open_notebook):
    notebook = open_notebook("1 + 1")
    expect(notebook.page.locator(".jp-Notebook-ExecutionIndicator")).to_have_attribute("data-status", "idle")


def test_cells_run_once_each_and_in_order(open_notebook, witness):
    notebook = open_notebook(*(witness.cell(f"c{n}", f"x = {n}\nprint('value', x)") for n in range(5)))
    assert [notebook.run(n) for n in range(5)] == [f"value {n}" for n in range(5)]
    assert witness.executions == ["c0", "c1", "c2", "c3", "c4"]


def test_run_all_runs_every_cell_once(open_notebook, witness):
    notebook = open_notebook(*(witness.cell(f"c{n}", f"print({n})") for n in range(5)))
    notebook.page.get_by_role("menuitem", name="Run", exact=True).click()
    notebook.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for n in range(5):
        notebook.wait_for_end(n)
    assert witness.executions == ["c0", "c1", "c2", "c3", "c4"]


def test_a_plot_is_seen(open_notebook):
    notebook = open_notebook("import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);")
    notebook.run(0)
    image = notebook.outputs(0).locator("img")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.naturalWidth") > 200


def test_an_interrupt_ends_a_cell_and_keeps_the_session(open_notebook, witness):
    notebook = open_notebook(
        witness.cell("sleep", "x = 7\nprint('asleep', flush=True)\nimport time; time.sleep(100)"), "print(x)"
    )
    notebook.start(0)
    expect(notebook.outputs(0).first).to_contain_text("asleep")
    notebook.press("i", "i")
    notebook.wait_for_end(0)
    assert "KeyboardInterrupt" in notebook.output(0)
    assert notebook.run(1) == "7"
    assert witness.executions == ["sleep"]


def test_a_restart_forgets_variables_and_keeps_the_kernel(open_notebook):
    notebook = open_notebook("x = 7", "print('x' in globals())")
    notebook.run(0)
    kernel = notebook.kernel()
    assert notebook.run(1) == "True"
    notebook.press("0", "0")
    notebook.page.locator(".jp-Dialog .jp-mod-accept").click()
    expect(notebook.prompt(1)).to_have_text("[2]:")
    notebook.page.wait_for_timeout(500)
    notebook.wait_until_ready()
    notebook.start(1)
    expect(notebook.prompt(1)).to_have_text("[1]:")
    assert notebook.output(1) == "False" and notebook.kernel() == kernel


def test_tab_completes_a_name(open_notebook):
    notebook = open_notebook("treasure_chest = 1", "")
    notebook.run(0)
    notebook.cell(1).locator(".cm-content").click()
    notebook.page.keyboard.type("treasure_ch")
    notebook.page.keyboard.press("Tab")
    expect(notebook.page.locator(".jp-Completer-item")).to_have_text(re.compile("treasure_chest"))
    notebook.page.keyboard.press("Enter")
    expect(notebook.cell(1).locator(".cm-content")).to_have_text("treasure_chest")


SLIDER = """\
import ipywidgets
slider = ipywidgets.IntSlider(value=3, description='many')
slider"""


def move_slider(notebook, index: int) -> None:
    """Moves a slider one step to the right."""
    handle = notebook.outputs(index).locator(".noUi-handle")
    expect(handle).to_be_visible()
    handle.focus()
    notebook.page.keyboard.press("ArrowRight")


def test_a_slider_moves_a_value_in_the_kernel(open_notebook):
    notebook = open_notebook(SLIDER, "print(slider.value)")
    notebook.run(0)
    move_slider(notebook, 0)
    expect(notebook.outputs(0).locator(".widget-readout")).to_have_text("4")
    assert notebook.run(1) == "4"


IMAGE = """\
import io, ipywidgets, PIL.Image
png = io.BytesIO()
PIL.Image.new('RGB', (64, 48), 'red').save(png, 'png')
ipywidgets.Image(value=png.getvalue())"""


def test_a_widget_with_binary_data_is_seen_and_the_session_goes_on(open_notebook):
    notebook = open_notebook(IMAGE, "print('after')")
    notebook.run(0)
    image = notebook.outputs(0).locator("img")
    expect(image).to_be_visible()
    assert image.evaluate("image => image.naturalWidth") == 64
    assert notebook.run(1) == "after"


def test_a_slider_goes_on_after_the_loss_of_the_executor(open_notebook, callboard):
    notebook = open_notebook(SLIDER, "print(slider.value)", "slider.value = 9")
    notebook.run(0)
    move_slider(notebook, 0)
    assert notebook.run(1) == "4"
    callboard.lose_executor(notebook.kernel())
    assert notebook.run(1) == "4"
    move_slider(notebook, 0)
    assert notebook.run(1) == "5"
    notebook.run(2)
    expect(notebook.outputs(0).locator(".widget-readout")).to_have_text("9")


def test_a_session_outlives_the_node_that_executed_it(open_notebook, callboard, witness):
    notebook = open_notebook(witness.cell("set", "x = 41"), witness.cell("use", "print(x + 1)"))
    notebook.run(0)
    lost = callboard.lose_executor(notebook.kernel())
    assert notebook.run(1) == "42"
    assert witness.executions == ["set", "use"]
    assert callboard.executor(notebook.kernel()) != lost


def all_lines(text: str) -> bool:
    """Whether a long cell's lines are all there, once and in order."""
    (printed,) = re.findall(r"printed (\d+)", text)
    return re.findall(r"line (\d+)", text) == [str(n) for n in range(int(printed))]


def start_and_leave(notebook) -> None:
    """Runs a long cell, and leaves the page once some of its output is there and the mark is saved."""
    notebook.start(0)
    expect(notebook.outputs(0).first).to_contain_text("line 5")
    notebook.page.wait_for_timeout(SAVED_AFTER_MS)
    notebook.leave()


def test_a_page_that_is_closed_in_a_cell_shows_all_of_it_when_it_is_opened_again(open_notebook, callboard, witness):
    notebook = open_notebook(witness.long_cell("long"), "print('after')")
    start_and_leave(notebook)
    notebook.page.wait_for_timeout(1000)
    notebook.come_back()
    expect(notebook.outputs(0).first).to_contain_text("line 50")
    expect(notebook.prompt(0)).to_have_text("[*]:")
    notebook.shoot("reopened")
    witness.let_end()
    notebook.wait_for_end(0)
    assert all_lines(notebook.output(0))
    assert notebook.run(1) == "after"
    assert witness.executions == ["long", "long-ended"]


def test_a_cell_that_ended_while_the_page_was_closed_shows_all_of_it(open_notebook, callboard, witness, lab):
    notebook = open_notebook(witness.long_cell("long"))
    start_and_leave(notebook)
    witness.let_end()
    witness.wait_for("long-ended")
    notebook.come_back()
    notebook.wait_for_end(0)
    assert all_lines(notebook.output(0))
    notebook.page.wait_for_timeout(SAVED_AFTER_MS)
    saved = lab.saved(notebook.name).cells[0]
    assert "callboard" not in saved.metadata
    assert all_lines("".join(output.text for output in saved.outputs))
    assert witness.executions == ["long", "long-ended"]


def test_a_cell_whose_executor_is_lost_says_so(open_notebook, callboard, witness):
    notebook = open_notebook("x = 7", witness.long_cell("long"), "print(x)")
    notebook.run(0)
    notebook.start(1)
    expect(notebook.outputs(1).first).to_contain_text("line 5")
    callboard.lose_executor(notebook.kernel())
    expect(notebook.prompt(1)).to_have_text("[ ]:")
    expect(notebook.outputs(1).last).to_contain_text("executor lost")
    notebook.shoot("interrupted")
    assert notebook.run(2) == "7"
    assert witness.executions == ["long"]


def test_the_status_bar_says_what_a_kernel_survives(open_notebook, callboard):
    notebook = open_notebook("1")
    notebook.run(0)
    item = notebook.page.locator(".cb-StatusItem")
    expect(item).to_have_text(re.compile(r"survives 1 more loss · node-\d"))
    item.click()
    panel = notebook.page.locator(".cb-StatusPanel")
    expect(panel).to_contain_text(notebook.kernel())
    expect(panel).to_contain_text("executor")
    notebook.shoot("panel")


def test_kernels_that_are_not_callboards_are_left_alone(page, tmp_path):
    lab = Lab(tmp_path, PlainJupyter.command, PlainJupyter.environment)
    try:
        notebook = Notebook(page, lab, lab.create("plain", ["import time; time.sleep(3)"]), tmp_path)
        notebook.start(0)
        page.wait_for_timeout(SAVED_AFTER_MS)
        assert "callboard" not in lab.saved("plain.ipynb").cells[0].metadata
        notebook.wait_for_end(0)
        expect(page.locator(".cb-StatusItem")).to_be_hidden()
    finally:
        lab.stop()
    assert "callboard_" not in lab.log.read_text()
