"""Comms and their targets: how a front-end's models stay tied to the objects of a session that moves.

A front-end knows a comm by its id and does not hear that the kernel's process is another one. An open
comm travels with whatever leads to it, and is open again there. One that no variable leads to, as that
of a widget which was only displayed, has a pseudo-name, `Comm[<id>]`; so has every target that the
session registered, `Target[<name>]`. Restoring opens nothing at the front-end: it has the models.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any, Iterator

from comm.base_comm import BaseComm
from ipykernel.comm.comm import BaseComm as KernelComm
from traitlets import HasTraits

from . import live
from .placeholder import Unavailable

# Widgets are pickled at every capture, some thirty in a millisecond.
COMMS_MAX = 4096
_COMM = re.compile(r"Comm\[(.*)\]$", re.DOTALL)
_TARGET = re.compile(r"Target\[(.*)\]$", re.DOTALL)
_WIDGETS = "jupyter.widget"
# What makes a comm that keeps it in traits; others have it in attributes.
_IN_TRAITS = ("comm_id", "primary", "target_name", "target_module", "topic")
# Attributes that are another process's business, or traits' own.
_NOT_CARRIED = frozenset(
    """kernel _closed _reply_subshell_lock _reply_subshell_ids _reply_subshell_id
    _trait_values _trait_notifiers _trait_validators _cross_validation_lock""".split()
)

# The comms that were open, of the pickle that is being loaded.
_revived: list[Any] = []
# What comms sent while a session was restored: the arguments of `publish_msg`.
_held: list[tuple[tuple[Any, ...], dict[str, Any]]] = []


def targets() -> dict[str, Any]:
    """The registered targets by name: what a front-end's `comm_open` is handed to."""
    return live.LIVE.kernel.comm_manager.targets if live.LIVE.kernel is not None else {}


def own_targets(baseline: dict[str, Any]) -> dict[str, Any]:
    """The targets that are not in `baseline`, by pseudo-name."""
    return {f"Target[{name}]": target for name, target in targets().items() if baseline.get(name) is not target}


def newest_first() -> tuple[list[Any], str | None]:
    """The open comms that can be carried, and a sentence if there are more.

    What holds others was made after them, so it comes before them.
    """
    if live.LIVE.kernel is None:
        return [], None
    comms = list(live.LIVE.kernel.comm_manager.comms.values())
    left = len(comms) - COMMS_MAX
    if left <= 0:
        return comms[::-1], None
    return comms[: left - 1 : -1], (
        f"the {left:,} oldest are over the limit of {COMMS_MAX:,} comms for a session, of which a widget has "
        "one to three: close those that are not shown any more (widget.close())"
    )


def named(comm: Any) -> tuple[str, Any]:
    """The pseudo-name of a comm and what it is bound to: the widget whose comm it is, else the comm."""
    owner = _owner(comm)
    return f"Comm[{comm.comm_id}]", comm if owner is None else owner


def is_comm(name: str) -> bool:
    return _COMM.match(name) is not None


def bind(name: str, value: Any) -> bool:
    """Puts a restored target in force, or a widget's comm; false if the name is none of theirs."""
    target, comm = _TARGET.match(name), _COMM.match(name)
    if target is None and comm is None:
        return False
    if isinstance(value, Unavailable):
        return True
    manager = live.LIVE.kernel.comm_manager
    if target is not None:
        manager.register_target(target.group(1), value)
    elif comm.group(1) not in manager.comms:
        # The widget was made anew by its own pickling code, and opened a comm that nobody heard of.
        if value.comm is not None:
            _forget(value.comm)
        value.comm = KernelComm(_WIDGETS, comm_id=comm.group(1), primary=False)
        _open(value.comm)
    return True


def clear(baseline: dict[str, Any]) -> None:
    """Takes all comms and targets away, but those targets, without telling the front-end."""
    if live.LIVE.kernel is not None:
        for comm in list(live.LIVE.kernel.comm_manager.comms.values()):
            _forget(comm)
        live.LIVE.kernel.comm_manager.targets = dict(baseline)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """What comms send meanwhile waits for the next request: a front-end hears no message without one."""
    publish = KernelComm.publish_msg
    _held.clear()
    KernelComm.publish_msg = lambda *arguments, **named: _held.append((arguments, named))
    try:
        yield
    finally:
        KernelComm.publish_msg = publish


def say_held() -> None:
    """Sends what was held back, of the comms that are open: objects may make widgets as they are loaded."""
    for arguments, named in _held:
        comm = arguments[0]
        if live.LIVE.kernel.comm_manager.comms.get(comm.comm_id) is comm:
            comm.publish_msg(*arguments[1:], **named)
    _held.clear()


@contextlib.contextmanager
def reviving() -> Iterator[None]:
    """Opens the comms of a pickle that was loaded meanwhile, if all of it could be."""
    global _revived
    outer, _revived = _revived, []
    try:
        yield
        # What holds others is made before them here.
        for comm in reversed(_revived):
            _open(comm)
    finally:
        _revived = outer


def _open(comm: Any) -> None:
    """Does what opening does in this process, for a comm that the front-end has open."""
    comm.kernel = live.LIVE.kernel
    comm._closed = False
    live.LIVE.kernel.comm_manager.register_comm(comm)
    owner = _owner(comm)
    if owner is not None:
        _widgets()[comm.comm_id] = owner
    control = getattr(comm._msg_callback, "__self__", None)
    if isinstance(control, type) and hasattr(control, "_control_comm"):
        # By this comm a front-end asks ipywidgets' base class for all widgets.
        control._control_comm = comm


def _owner(comm: Any) -> Any:
    """The widget whose comm this is, if it is a widget's."""
    owner = getattr(getattr(comm, "_msg_callback", None), "__self__", None)
    # Not by attribute, which may be a property of the user's.
    return owner if isinstance(owner, HasTraits) and owner._trait_values.get("comm") is comm else None


def _forget(comm: Any) -> None:
    # A comm that is not closed would say `comm_close` when it is collected.
    comm._closed = True
    live.LIVE.kernel.comm_manager.comms.pop(comm.comm_id, None)
    _widgets().pop(comm.comm_id, None)


def _widgets() -> dict[str, Any]:
    """The widgets that ipywidgets keeps by id; a dict of no use if the session did not import it."""
    return getattr(sys.modules.get("ipywidgets.widgets.widget"), "_instances", {})


def reduce_comm(comm: Any) -> tuple[Any, ...]:
    """Reduces a comm to its id, data and callbacks, without its kernel and its locks."""
    state = {name: value for name, value in vars(comm).items() if name not in _NOT_CARRIED}
    if isinstance(comm, HasTraits):
        state |= {name: getattr(comm, name) for name in _IN_TRAITS}
    is_open = live.LIVE.kernel is not None and live.LIVE.kernel.comm_manager.comms.get(comm.comm_id) is comm
    return make_comm, (type(comm),), state, None, None, revive_comm if is_open else set_comm


def make_comm(kind: type) -> Any:
    """A comm that is closed: it says nothing, not even when it is collected."""
    comm = kind.__new__(kind)
    (KernelComm if issubclass(kind, KernelComm) else BaseComm).__init__(comm, primary=False)
    comm._closed = True
    return comm


def set_comm(comm: Any, state: dict[str, Any]) -> None:
    for name, value in state.items():
        setattr(comm, name, value)


def revive_comm(comm: Any, state: dict[str, Any]) -> None:
    """Second phase of a comm that was open; it is once the whole pickle is loaded."""
    set_comm(comm, state)
    _revived.append(comm)
