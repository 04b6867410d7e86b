"""What a name is bound to when its value could not be carried: an object that explains itself."""

from __future__ import annotations

from typing import Any, NoReturn


class Unavailable:
    """Stands for a value that stayed behind; every use but `repr`, `str` and `type` raises.

    `__getattr__` rather than `__getattribute__`, so that `isinstance` and pickling still work.
    """

    __slots__ = ("_cb_name", "_cb_type", "_cb_reason")

    def __init__(self, name: str, type_name: str, reason: str) -> None:
        self._cb_name = name
        self._cb_type = type_name
        self._cb_reason = reason

    def _cb_explain(self) -> str:
        return (
            f"{self._cb_name!r} ({self._cb_type}) is not available on this machine: "
            f"{self._cb_reason}. Assign it again to go on."
        )

    def _cb_raise(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise RuntimeError(self._cb_explain())

    def __repr__(self) -> str:
        return f"<{self._cb_explain()}>"

    __str__ = __repr__

    def __getattr__(self, attribute: str) -> NoReturn:
        raise RuntimeError(self._cb_explain())

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute not in Unavailable.__slots__:
            self._cb_raise()
        object.__setattr__(self, attribute, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Unavailable, (self._cb_name, self._cb_type, self._cb_reason)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return self.__reduce__()

    __hash__ = object.__hash__


_USES = """
    call delattr iter next len bool contains getitem setitem delitem enter exit aenter aexit aiter
    anext await int float complex index round trunc floor ceil bytes reversed lt le gt ge
    add sub mul matmul truediv floordiv mod divmod pow lshift rshift and or xor
    radd rsub rmul rmatmul rtruediv rfloordiv rmod rdivmod rpow rlshift rrshift rand ror rxor
    iadd isub imul imatmul itruediv ifloordiv imod ipow ilshift irshift iand ior ixor
    neg pos abs invert array buffer format
"""
for _use in _USES.split():
    setattr(Unavailable, f"__{_use}__", Unavailable._cb_raise)


def missing_class(module: str, name: str, reason: str) -> Any:
    """A stand-in for a class or function that this machine cannot import: makes placeholders."""

    class Missing(Unavailable):
        __slots__ = ()

        def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
            return object.__new__(cls)

        def __init__(self, *_args: Any, **_kwargs: Any) -> None:
            super().__init__(name, f"{module}.{name}", reason)

        def __setstate__(self, _state: Any) -> None:
            self.__init__()

        def __repr__(self) -> str:
            if not hasattr_slot(self, "_cb_name"):
                self.__init__()
            return super().__repr__()

        def __reduce__(self) -> tuple[Any, ...]:
            return Unavailable, (name, f"{module}.{name}", reason)

    return Missing


def hasattr_slot(obj: object, slot: str) -> bool:
    """Whether a slot is filled, without the explanation that plain `hasattr` would raise."""
    try:
        object.__getattribute__(obj, slot)
    except AttributeError:
        return False
    return True
