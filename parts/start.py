"""How a script starts and ends: what Ctrl-C, SIGTERM and a closed terminal (SIGHUP) do.

    from parts.start import run_script  # first, before whatever takes long to import

    if __name__ == "__main__":
        run_script(main)

A signal ends a script at any moment with one line, exit code 130 and no traceback:

while it imports      at once
in main               by a KeyboardInterrupt, so that `with` and `finally` tidy up. If main has not
                      ended after PATIENCE, because it is in a long call of C code or something has
                      swallowed the exception, a thread ends the process
in a training's loop  after the step, with a checkpoint: StopSignal
after main            at once
"""

import contextlib
import errno
import gc
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if getattr(signal, "SIGHUP", None) and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
    SIGNALS.append(signal.SIGHUP)
PATIENCE = 1.5  # seconds in which a script must have tidied up
STOP = 2.0  # seconds after the signal in which a training that stops must have done all
SAME = 1.0  # seconds in which signals count as one: torchrun, systemd and shells repeat theirs

came = 0  # the signal that is ending this script
held = 0  # how many blocks of `hold_signals` are being run
children = []  # the processes that `spawn` has started
stopping = False  # whether a training has been told to stop
tidying = []  # functions to call where `with` and `finally` will not be reached
told = False  # whether the line of an interruption was printed
began = 0.0  # when the script did, by time.perf_counter; 0 where no script of ours was started


def say(message: str):
    """Print to standard error; under torchrun only once a machine, not once a process."""
    if speaks():
        print(message, file=sys.stderr)


def speaks() -> bool:
    """Whether this process is the one of its machine that tells the person."""
    return "RANK" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"


# --- the way out ----------------------------------------------------------------------------------


def run_script(main: Callable[[], None]):
    """Run a script's main. A signal or a closed pipe ends the script with exit code 130 and no
    traceback, too little memory or disk with exit code 2; a bug still gets its traceback.

    Code that cleans up may raise KeyboardInterrupt(message) to replace the line that is printed."""
    global told
    gc.freeze()  # what was imported stays; going over it again and again takes 0.1 s of a start
    unraisable, in_thread = sys.unraisablehook, threading.excepthook
    sys.unraisablehook = lambda error: None if interrupt_again(error) else unraisable(error)
    threading.excepthook = lambda error: None if came else in_thread(error)
    try:
        try:
            handle(interrupt)
            watch()
            main()
            print(end="", flush=True)  # a disk that is full is noticed now, not when Python ends
        finally:
            handle(leave)
    except BaseException as error:
        told, code = True, 130
        message = " ".join(str(error).split()) if isinstance(error, KeyboardInterrupt) else ""
        if stopping and isinstance(error, Exception):  # such as a compiler that got Ctrl-C too
            message = f"interrupted, and not saved: {type(error).__name__}: {str(error)[:200]!r}"
        elif not came and (lack := lacking(error)):
            code, message = 2, f"error: {lack}: {str(error)[:200]!r}"
        elif not came and not isinstance(error, (KeyboardInterrupt, BrokenPipeError)):
            raise
        handle(signal.SIG_IGN)  # Python restores other handlers when it ends, but not this one
        if not isinstance(error, BrokenPipeError):  # its reader, such as `head`, has seen enough
            end_children()
            with contextlib.suppress(OSError):
                say(message or "interrupted")
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            try:
                stream.flush()
            except (OSError, ValueError):  # Python would try again at exit, and complain
                drop_output(number)
        sys.exit(code)


def lacking(error: BaseException) -> str:
    """What to do if memory or a disk, on which the output may lie too, was too small; else ""."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room, and start again"
    # Python's error, and torch's for a GPU and for a CPU.
    torchs = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    memory = torchs or isinstance(error, MemoryError)
    return "memory ran out; lower the batch or the model" if memory else ""


def leave(number: int = 0, frame=None):
    """End this process and its children at once."""
    end_children()
    for tidy in tidying:
        tidy()
    if not told and speaks():
        with contextlib.suppress(OSError):
            os.write(2, b"interrupted\n")  # print fails in the middle of another print
    os._exit(130)


def handle(handler):
    for number in SIGNALS:
        signal.signal(number, handler)


def interrupt(number: int, frame):
    """Raise KeyboardInterrupt, unless one is on its way already."""
    global came
    if not came:
        came = number
        let_go_of_terminal(number)
        if not held:
            raise KeyboardInterrupt


def interrupt_again(error) -> bool:
    """Python can only report an exception in a destructor. If that is our KeyboardInterrupt, raise
    it once more, a moment later. Whether there is nothing to report."""
    global came
    if came and issubclass(error.exc_type, KeyboardInterrupt):
        number, came = came, 0
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        return True
    return bool(came)


def watch():
    """Start a thread that learns of signals even while the main thread is in C code."""
    read, write = os.pipe()
    if os.name == "posix":
        os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def follow():
        while True:
            number = os.read(read, 1)[0]
            handler = signal.getsignal(number) if number in SIGNALS else None
            if handler == interrupt:
                time.sleep(PATIENCE)
                while held:
                    time.sleep(0.1)
                leave()
            elif isinstance(getattr(handler, "__self__", None), StopSignal):
                handler.__self__.count(number)

    threading.Thread(target=follow, daemon=True).start()


def let_go_of_terminal(number: int):
    """After SIGHUP whatever is printed to the terminal, which is gone, would be an error."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if number == getattr(signal, "SIGHUP", None) and stat.S_ISCHR(os.fstat(stream).st_mode):
                drop_output(stream)


def drop_output(stream: int):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


# --- for what a script does -----------------------------------------------------------------------


@contextlib.contextmanager
def hold_signals() -> Iterator[None]:
    """Signals wait until the block is done."""
    global held
    before, held = came, held + 1
    try:
        yield
    finally:
        held -= 1
    if came and not before and not held:
        raise KeyboardInterrupt


def spawn(command: list, **how):
    """subprocess.Popen(command, **how), whose process ends when a signal ends this one."""
    try:
        with hold_signals():
            children.append(subprocess.Popen(command, **how))
    except KeyboardInterrupt:
        end_children()
        raise
    return children[-1]


@contextlib.contextmanager
def child(command: list, **how) -> Iterator:
    """A process that ends with the block, at the latest. What it prints is dropped, and its errors
    can be read, as text, unless `how` says otherwise."""
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True} | how
    process = spawn(command, **how)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def end_children():
    for process in children:
        process.terminate()  # those that run a script of ours tidy up


class StopSignal:
    """`number` is that of the first signal, so that a training can finish its step, save and leave.

    Signals that come together count as one, and only Ctrl-C ends it at once, before or after
    another signal: systemd and SLURM send SIGTERM to torchrun and to all its processes, to which
    torchrun then sends one more. What never ends is ended by them, after 30 s or so."""

    def __init__(self, announce: bool = True):
        self.number, self.announce, self.first = 0, announce, None
        self.at = 0.0  # when it came
        self.before = []  # what signals did until `begin`

    def begin(self):
        """From now on there is something to save. Until then a signal ends the script at once."""
        if not self.before:
            self.before = [(number, signal.signal(number, self.receive)) for number in SIGNALS]

    def receive(self, number: int, frame):
        global stopping
        stopping = True
        first = not self.number  # the next one may come while this one is being handled
        self.at, self.number = self.at or time.monotonic(), self.number or number
        let_go_of_terminal(number)
        if self.announce and first:
            line = "\nstopping after this step, with a checkpoint; Ctrl-C once more stops at once\n"
            with contextlib.suppress(OSError):
                os.write(2, line.encode())

    def count(self, number: int):
        """Told of each signal by the thread of `watch`, since the main thread may hang."""
        now = time.monotonic()
        self.first = self.first or (number, now)
        if signal.SIGINT in (number, self.first[0]) and now > self.first[1] + SAME:
            leave()

    def seconds_left(self, most: float) -> float:
        """How long something that may be late, such as a tracker, may still take: `most` seconds
        unless a signal has come."""
        left = STOP - (time.monotonic() - self.at)
        return max(min(left, most), 0.2) if self.number else most

    def end(self):
        """The loop is left: unless it was stopped, a signal does again what it did before."""
        if not self.number:
            for number, handler in self.before:
                signal.signal(number, handler)


# A script of this repository is starting: not a test, nor a notebook that imports one.
main_file = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.dirname(main_file) in (ROOT, os.path.join(ROOT, "prepare"), os.path.join(ROOT, "tools")):
    handle(leave)
    began = time.perf_counter()
