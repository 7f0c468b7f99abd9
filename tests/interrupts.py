"""Interrupts: raises KeyboardInterrupt at the nth place where the interpreter looks for signals.

CPython does so when a function begins, after a call, and at the end of a round of a loop. Entering an `__exit__`
counts not: no context manager of Python's could be safe there, and the place lasts less than a microsecond.
"""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

_CALLS = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "CALL_KW") if name in dis.opmap}
_ROUNDS = {dis.opmap[name] for name in ("JUMP_BACKWARD",) if name in dis.opmap}
_HANDLERS = {dis.opmap["PUSH_EXC_INFO"]}


def interrupted(files: Collection[str], nth: int, call: Callable[[], object]) -> bool:
    """Run the call with an interrupt at the nth place within these files; False where it ended before that.

    The interrupt leaves the call, which may turn it into no other exception.
    """
    places = 0
    before: dict[FrameType, int] = {}

    def reached() -> None:
        nonlocal places
        places += 1
        if places == nth:
            raise KeyboardInterrupt

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "call":
            if frame.f_code.co_name != "__exit__":
                reached()
        elif event == "opcode":
            opcode = frame.f_code.co_code[frame.f_lasti]
            last = before.get(frame)
            before[frame] = opcode
            if opcode in _ROUNDS or (last in _CALLS and opcode not in _HANDLERS):
                reached()
        return trace

    was_enabled = gc.isenabled()
    gc.disable()  # it could run finalizers of other tests here, in which Python swallows an interrupt
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
        if was_enabled:
            gc.enable()
    assert places < nth, "the interrupt was swallowed"
    return False
