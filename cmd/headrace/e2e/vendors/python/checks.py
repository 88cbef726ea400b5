"""What the scripts beside this one share: how they name, run and report their checks.

Each prints one JSON line for every check, {"check": NAME, "ok": true} or with "error"; the Go test turns the lines into
subtests.
"""

import asyncio
import inspect
import json
import sys
import time
import traceback

with open(sys.argv[1], encoding="utf-8") as f:
    plan = json.load(f)

_checks = []


def check(f):
    """Adds f, a function without arguments or a coroutine function, to the checks."""
    _checks.append(f)
    return f


def equal(got, want, what):
    if got != want or type(got) is not type(want):
        raise AssertionError(f"{what}: got {clip(got)}, want {clip(want)}")


def holds(condition, what):
    if not condition:
        raise AssertionError(what)


def clip(value):
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]} ({len(text)} characters)"


def raises(kind, f):
    """Returns the exception that f must end with, which is exactly a kind."""
    try:
        got = f()
    except Exception as e:
        equal(type(e).__name__, kind.__name__, f"exception ({e})")
        return e
    raise AssertionError(f"no {kind.__name__}, but {clip(got)}")


def until(f, what, seconds=20):
    """Asks f again until it returns something true, which it returns."""
    end = time.monotonic() + seconds
    while not (got := f()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return got


def main():
    for f in _checks:
        line, began = {"check": f.__name__, "ok": True}, time.monotonic()
        try:
            if inspect.iscoroutinefunction(f):
                asyncio.run(f())
            else:
                f()
        except Exception as e:
            line |= {"ok": False, "error": f"{type(e).__name__}: {e}", "trace": traceback.format_exc(limit=-4)}
        print(json.dumps(line | {"ms": round((time.monotonic() - began) * 1000)}), flush=True)
