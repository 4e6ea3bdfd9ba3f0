"""Signals at awkward moments: one line, exit code 130, no traceback, nothing left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

AWKWARD = {
    "in a long call of C code": """
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)""",
    "in a destructor, where Python drops exceptions": """
        class Slow:
            def __del__(self):
                time.sleep(60)
        Slow()
        time.sleep(60)""",
    "where something catches everything": """
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass""",
    "in a `with` that tidies up, and again while it does": """
        with tempfile.TemporaryDirectory(dir=folder):
            try:
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)""",
    "while another process works": """
        with child([sys.executable, "-c", "import time; time.sleep(60)"]):
            time.sleep(60)""",
}


def listening(process):
    """Wait until the process handles SIGTERM, which Python by itself does not."""
    while True:
        with open(f"/proc/{process.pid}/status") as status:
            caught = next(line.split()[1] for line in status if line.startswith("SigCgt:"))
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def start(*command):
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    return subprocess.Popen([sys.executable, *map(str, command)], **how)


@pytest.mark.parametrize("where", AWKWARD)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_script_with_one_line(where, number, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(f"""\
import hashlib, os, signal, sys, tempfile, time
sys.path.insert(0, {str(ROOT)!r})
from parts.start import child, run_script
def main():
        folder = {str(folder)!r}
        print("ready", flush=True)
        {AWKWARD[where].strip()}
run_script(main)
""")
    process = start(script)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    os.killpg(process.pid, number)
    assert process.communicate(timeout=30) == ("", "interrupted\n")
    assert process.returncode == 130
    assert not list(folder.iterdir())
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("script", ["train.py", "tools/plan.py", "prepare/python.py"])
def test_ctrl_c_amid_the_imports_is_one_line(script):
    process = start(ROOT / script)
    listening(process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "interrupted\n")
    assert process.returncode == 130


def test_a_closed_terminal_stops_a_script_that_prints(tmp_path):
    """As a terminal that is closed does: its other end is gone, and SIGHUP comes."""
    done = tmp_path / "done"
    code = f"""\
import pathlib, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
from parts.start import StopSignal, run_script
def main():
    stop = StopSignal()
    stop.begin()
    print("ready", flush=True)
    while not stop.number:
        time.sleep(0.01)
    print("saving", flush=True)
    pathlib.Path({str(done)!r}).write_text(str(stop.number))
run_script(main)
"""
    (tmp_path / "script.py").write_text(code)
    ours, theirs = os.openpty()
    command = ["setsid", "--ctty", "--wait", sys.executable, str(tmp_path / "script.py")]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = os.read(ours, 100)
    while not said.endswith(b"\n"):  # a terminal may give a line in parts
        said += os.read(ours, 100)
    assert said == b"ready\r\n"
    os.close(ours)
    assert process.wait(30) == 0 and done.read_text() == "1"
