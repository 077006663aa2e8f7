"Several processes share the cores while tests run, so each computes with one thread."
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "What a test printed travels between processes as UTF-8, and some tests print names that are not."
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message, when, nodeid, location):
    "So does what was warned of."
    text = str(warning_message.message).encode(errors="replace").decode()
    warning_message.message = type(warning_message.message)(text)
