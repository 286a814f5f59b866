"""Makes Triton's interpreter quicker: at every call it looks through all of its language for what it replaces."""

import inspect
import os

import pytest


class _Inspect:
    """The module `inspect`, but the members of what was looked through before are only those that were found then."""

    def __init__(self, found):
        self.found = found  # by the id of a module or class, which live as long as Triton does

    def __getattr__(self, name):
        return getattr(inspect, name)

    def getmembers(self, of, *rest):
        names = None if rest else self.found.get(id(of))
        return inspect.getmembers(of, *rest) if names is None else [(name, getattr(of, name)) for name in names]


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    core = interpreter.tl.core
    parts = (interpreter.tl, core, core.tensor, interpreter.tl.math, core.tensor_descriptor_base)
    found = {id(of): [name for name, member in inspect.getmembers(of) if core.is_builtin(member)] for of in parts}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "inspect", _Inspect(found))
        yield
