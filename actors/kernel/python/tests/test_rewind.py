"""The wish of a cell to go back: taken down, and given once."""

from callboard_kernel.rewind import RewindWish


def test_a_wish_is_taken_once():
    wish = RewindWish()
    assert wish.take() is None
    assert "after 7" in wish.ask(["7"])
    assert wish.take() == "7"
    assert wish.take() is None


def test_the_last_wish_of_a_cell_counts():
    wish = RewindWish()
    wish.ask(["7"])
    wish.ask(["clean"])
    assert wish.take() == "clean"


def test_no_state_or_two_are_refused_and_change_nothing():
    wish = RewindWish()
    for words in ([], ["1", "2"]):
        assert "Name one state" in wish.ask(words)
    assert wish.take() is None
