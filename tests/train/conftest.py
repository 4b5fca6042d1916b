"""Calls commands in the test's own process."""

import runpy

import pytest
from absl import app, flags
from helpers import Finished


@pytest.fixture(name="call")
def call_fixture(capsys, tmp_path, monkeypatch):
    """`call("train.main", "--flag", ...)` does what `python -m train.main` does, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(module, *arguments):
        before = set(flags.FLAGS)
        capsys.readouterr()
        error = ""
        try:
            command = runpy.run_module(module, run_name=module)
            status = command["main"](flags.FLAGS([module, *map(str, arguments)]))
        except (flags.Error, app.UsageError) as usage_error:
            status, error = 1, str(usage_error)
        finally:
            flags.FLAGS.unparse_flags()
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
        out, err = capsys.readouterr()
        return Finished(status, out, err + error)

    return call
