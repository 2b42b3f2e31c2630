"""The worker's side of `_pool.py`: `python -m echelon.language._world_child MODULE:FUNCTION`.

One line of JSON in, one line out. A call that takes longer than its limit ends this process, with a trace of where it
hung on standard error; so does the end of standard input.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from importlib import import_module
from typing import Any, TextIO

from echelon.language._worlds import Fault, Make, Shelf, WorldCall, arguments_from_plain, checked, raised, to_plain


def find(path: str) -> Make:
    """The function that "module:function" names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def work(shelf: Shelf, requests: TextIO, answers: TextIO) -> None:
    """Answer calls until there are no more."""
    for line in requests:
        request = json.loads(line)
        for uid, broken in request["release"]:
            shelf.release(uid, broken)
        plain = arguments_from_plain(request["method"], request["arguments"])
        call = WorldCall(request["uid"], request["world"], request["method"], plain)
        faulthandler.dump_traceback_later(request["limit_s"], exit=True)
        answer = _answer(shelf, call)
        faulthandler.cancel_dump_traceback_later()
        print(answer, file=answers, flush=True)


def _answer(shelf: Shelf, call: WorldCall) -> str:
    try:
        answer = checked(call, shelf.perform(call))
        if isinstance(answer, Fault):
            return _error(answer.message)
        return json.dumps({"value": to_plain(answer)})
    except Exception as error:  # a world may raise anything, or put into `info` what is not plain data
        return _error(raised(call, error))


def _error(message: str) -> str:
    return json.dumps({"error": message})


def main() -> None:
    """Serve the calls on standard input. What a world prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options: dict[str, dict[str, Any]] = json.loads(sys.stdin.readline())
    shelf = Shelf(find(sys.argv[1]), options)
    print(json.dumps({"value": "ready"}), file=answers, flush=True)
    work(shelf, sys.stdin, answers)


if __name__ == "__main__":
    main()
