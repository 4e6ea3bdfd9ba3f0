"""Hostile programs: 100 in Python and 30 in Go, with those of test_eval.py. Each is run alone, and
its memory, time and processes are measured from outside."""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_eval import (
    FOOLS,
    GO_CHEATS,
    HOSTILE,
    SQUARE,
    TEXTS,
    Watch,
    runs_go,
    runs_programs,
    split,
)

from tasks import sandbox

MOST_MB, MOST_SECONDS = 600, 40

PYTHON = r"""
--- memfd
import os
held = []
while True:
    held.append(os.memfd_create('x'))
    os.write(held[-1], bytes(2**24))

--- memfd by ftruncate and mmap
import mmap, os
for _ in range(1000):
    fd = os.memfd_create('x')
    os.ftruncate(fd, 2**28)
    with mmap.mmap(fd, 2**28) as m:
        for at in range(0, 2**28, 4096): m[at] = 1

--- memfd by raw system call
import ctypes, os
libc = ctypes.CDLL(None)
while True:
    for number in (319, 279, 447):
        fd = libc.syscall(number, b'x', 0)
        if fd > 0: os.write(fd, bytes(2**24))

--- System V shared memory
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
while True:
    n = libc.shmget(0, 2**26, 0o1600)
    at = libc.shmat(n, None, 0)
    if n >= 0 and at not in (None, 2**64 - 1):
        ctypes.memset(at, 1, 2**26)
        libc.shmdt(ctypes.c_void_p(at))

--- System V messages
import ctypes
libc = ctypes.CDLL(None)
while True:
    q = libc.msgget(0, 0o1600)
    libc.msgsnd(q, b'\1' * 8200, 8192, 0o4000)

--- System V semaphores
import ctypes
libc = ctypes.CDLL(None)
while True: libc.semget(0, 32000, 0o1600)

--- POSIX queues
import ctypes
libc = ctypes.CDLL('librt.so.1')
for n in range(10**6): libc.mq_open(b'/q%d' % n, 0o102, 0o600, None)

--- shared anonymous memory
import mmap
held = []
while True:
    held.append(mmap.mmap(-1, 2**24))
    held[-1].write(b'x' * 2**24)

--- shared anonymous memory, caught
import mmap
held = []
while True:
    try:
        held.append(mmap.mmap(-1, 2**20))
        held[-1].write(b'x' * 2**20)
    except BaseException: pass

--- ever more memory, caught
held = []
while True:
    try: held.append(bytearray(2**16) + b'x' * 2**16)
    except MemoryError: pass

--- memory in a thread
import threading
held = []
def fill():
    while True: held.append(b'x' * 2**20)
for _ in range(8): threading.Thread(target=fill).start()

--- memory in the answer
def square(x):
    held = ['x' * 2**27]
    return held

--- memory in both
held = []
def square(x):
    try:
        while True: held.append(b'x' * 2**20)
    except MemoryError: pass
    return [0] * 300000

--- memory of the checker
def square(x): return [[]] * 200000

--- memory of the checker by text
import os
for fd in range(3, 9):
    try: os.write(fd, b"('return', [" + b'{{1:{{2:3}}}},' * 75000 + b'])\n')
    except OSError: pass
while True: pass

--- write to the root
n = 0
while True:
    n += 1
    open(f'/x{{n}}', 'wb').write(bytes(2**20))

--- write to /dev
n = 0
while True:
    n += 1
    for place in ('/dev', '/dev/shm', '/dev/mqueue', '/dev/pts'):
        try: open(f'{{place}}/x{{n}}', 'wb').write(bytes(2**20))
        except OSError: pass

--- write wherever it can
import os
n = 0
while True:
    for folder, _, _ in os.walk('/'):
        n += 1
        try: open(f'{{folder}}/x{{n}}', 'wb').write(bytes(2**20))
        except OSError: pass

--- empty files
n = 0
while True:
    n += 1
    for place in ('/tmp', '/', '/dev/shm', '/dev', '/run', '/var/tmp', '.'):
        try: open(f'{{place}}/x{{n}}', 'w').close()
        except OSError: pass

--- folders and links
import os
n = 0
while True:
    n += 1
    for place in ('/tmp', '/', '/dev/shm'):
        for make in (os.mkdir, lambda p: os.symlink('y' * 4000, p), os.mkfifo):
            try: make(f'{{place}}/x{{n}}')
            except OSError: pass

--- extended attributes
import os
n = 0
while True:
    n += 1
    for place in ('/', '/tmp', '/dev', '/dev/shm'):
        try: os.setxattr(place, f'user.x{{n}}', bytes(60000))
        except OSError: pass

--- remount
import ctypes
libc = ctypes.CDLL(None)
for place in (b'/', b'/dev', b'/usr'): libc.mount(None, place, None, 32, None)
open('/x', 'w').write('x')

--- mount a tmpfs
import ctypes
ctypes.CDLL(None).mount(b'x', b'/usr', b'tmpfs', 0, None)
while True: open('/usr/x', 'ab').write(bytes(2**20))

--- pipes full
import fcntl, os
held = []
while True:
    try:
        held.append(os.pipe2(os.O_NONBLOCK))
        fcntl.fcntl(held[-1][1], 1031, 2**20)
        while True: os.write(held[-1][1], bytes(2**16))
    except OSError: pass

--- pipes that hold huge pages
import ctypes, mmap, os
libc = ctypes.CDLL(None)
class Vec(ctypes.Structure): _fields_ = [('at', ctypes.c_void_p), ('size', ctypes.c_size_t)]
while True:
    m = mmap.mmap(-1, 2**22, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(14)
    m.write(b'x' * 2**22)
    a = ctypes.addressof(ctypes.c_char.from_buffer(m))
    libc.vmsplice(os.pipe()[1], ctypes.byref(Vec(a, 4096)), 1, 0)

--- sockets full
import socket
held = []
while True:
    try:
        held.append(socket.socketpair())
        held[-1][0].setblocking(False)
        while True: held[-1][0].send(bytes(2**16))
    except OSError: pass

--- descriptors in flight
import os, socket
a, b = socket.socketpair()
while True:
    r, w = os.pipe()
    os.write(w, bytes(2**16))
    socket.send_fds(a, [b'x'], [r, w])
    os.close(r), os.close(w)

--- TCP to itself
import socket
server = socket.create_server(('127.0.0.1', 0))
held = []
while True:
    held += [socket.create_connection(server.getsockname()), server.accept()[0]]
    held[-1].setblocking(False)
    try:
        while True: held[-1].send(bytes(2**20))
    except OSError: pass

--- io_uring
import ctypes
libc = ctypes.CDLL(None)
while True: libc.syscall(425, 4096, bytes(120))

--- keys
import ctypes
libc = ctypes.CDLL(None)
for n in range(10**7): libc.syscall(248, b'user', b'x%d' % n, b'y' * 10000, 10000, -3)

--- watches
import ctypes, os
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
for folder, _, files in os.walk('/usr'):
    for name in files: libc.inotify_add_watch(fd, f'{{folder}}/{{name}}'.encode(), 0xfff)
while True: pass

--- file locks
import fcntl, os
fd = os.open('/usr/bin/env', os.O_RDONLY)
n = 0
while True:
    n += 2
    try: fcntl.lockf(fd, fcntl.LOCK_SH, 1, n)
    except OSError: pass

--- timers and signals
import ctypes, signal
libc = ctypes.CDLL(None)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
while True:
    libc.timer_create(0, None, ctypes.byref(ctypes.c_void_p()))
    libc.sigqueue(1, 40, None)

--- descriptors
import os
while True:
    try: os.dup(0)
    except OSError: pass

--- processes, each at its limit
import os
for _ in range(64):
    try:
        if os.fork() == 0: break
    except OSError: pass
x = bytearray(2**28)
for n in range(0, 2**28, 4096): x[n] = 1
while True: pass

--- vfork and clone by number
import ctypes
libc = ctypes.CDLL(None)
while True:
    for number in (56, 57, 220):
        if libc.syscall(number, 17, None, None, None, None) == 0:
            x = bytearray(2**28)

--- spawn
import subprocess
while True:
    try: subprocess.Popen(['sleep', '1000'])
    except OSError: pass

--- multiprocessing
import multiprocessing
with multiprocessing.Pool(50) as pool: print(pool.map(len, ['x' * 2**20] * 10**4))

--- double fork
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)
def square(x): return x

--- outlive the parent
import ctypes, time
libc = ctypes.CDLL(None)
libc.prctl(1, 0)
libc.syscall(157, 1, 0, 0, 0, 0)
time.sleep(1000)

--- raise the limits
import resource
for what in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU):
    try: resource.setrlimit(what, (-1, -1))
    except Exception: pass
x = bytearray(2**30)

--- limits by prlimit on others
import resource
for pid in range(1, 1000):
    try: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))
    except Exception: pass
while True: pass

--- trace the others
import ctypes
libc = ctypes.CDLL(None)
for pid in range(1, 1000): libc.ptrace(16, pid, 0, 0)
while True: pass

--- /proc
import os
for pid in os.listdir('/proc'): open(f'/proc/{{pid}}/mem', 'r+b').write(b'x')

--- mount /proc
import ctypes
libc = ctypes.CDLL(None)
assert libc.mount(b'proc', b'/usr', b'proc', 0, None) == 0
def square(x): return x * x

--- devices
import os
for name in os.listdir('/dev'):
    try: os.write(os.open(f'/dev/{{name}}', os.O_RDWR | os.O_NONBLOCK), b'x' * 2**20)
    except OSError: pass
while True: os.open('/dev/ptmx', os.O_RDWR)

--- terminal input
import fcntl
for fd in range(10):
    try: fcntl.ioctl(fd, 0x5412, b'x')
    except OSError: pass
def square(x): return x

--- 32-bit system calls
import ctypes, mmap
m = mmap.mmap(-1, 4096, prot=7)
m.write(b'\xb8\x14\0\0\0\xcd\x80\xc3')  # getpid by int 0x80
f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))
f()
def square(x): return x * x

--- x32 system calls
import ctypes
libc = ctypes.CDLL(None)
while True: libc.syscall(0x40000000 + 319, b'x', 0)

--- deep recursion
import sys
sys.setrecursionlimit(10**9)
def square(x): return square(x) + 1

--- deep recursion in C
x = ()
for _ in range(10**7): x = (x,)
def square(y): return hash(x)

--- regular expression that never ends
import re
def square(x): return re.match('(a+)+$', 'a' * 50 + 'b')

--- a number too large
def square(x): return 9 ** 9 ** 9

--- a shift too large
def square(x): return 1 << 10**12

--- constant folding
x = ((((2 ** 60) ** 60) ** 60) ** 60) * 'x'

--- nested source
exec('(' * 50000 + ')' * 50000)

--- deep operators
exec('-' * 90000 + '1')
def square(x): return eval('-' * 60000 + '9')

--- long answer of digits
def square(x): return 10 ** 400000

--- hashes that collide
def square(x): return {{n * (2**61 - 1): n for n in range(30000)}}

--- a set of hashes that collide
def square(x): return {{n * (2**61 - 1) for n in range(30000)}}

--- deep answer by hand
import os
for fd in range(3, 9):
    try: os.write(fd, b"('return', " + b'-' * 60000 + b'9)\n' * 2)
    except OSError: pass
while True: pass

--- answers one too many
import os
for fd in range(3, 9):
    try: os.write(fd, b"('return', 4)\n('return', 9)\n" * 99)
    except OSError: pass
while True: pass

--- answer without an end
import os
for fd in range(3, 9):
    try: os.write(fd, b"('return', 9)")
    except OSError: pass
while True: pass

--- answer in pieces, for ever
import os, time
while True:
    for fd in range(3, 9):
        try: os.write(fd, b' ')
        except OSError: pass
    time.sleep(0.01)

--- answer that is code
import os
for fd in range(3, 9):
    try: os.write(fd, b"__import__('os')._exit(0)\n" * 9)
    except OSError: pass
while True: pass

--- answer that is not UTF-8
import os
for fd in range(3, 9):
    try: os.write(fd, b"('return', '\xff')\n" * 9)
    except OSError: pass
while True: pass

--- generator
def square(x): yield 9

--- a class that says int
class X:
    __class__ = int
    def __format__(self, how): return '9'
    def __repr__(self): return '9'
    def __eq__(self, other): return True
def square(x): return X()

--- a float that is near everything
class F(float):
    __eq__ = lambda *a: True
    __sub__ = __rsub__ = lambda *a: 0
def square(x): return F('nan')

--- a list that changes
class L(list):
    def __iter__(self):
        while True: yield 9
def square(x): return L()

--- raise StopIteration
def square(x): raise StopIteration

--- raise an AssertionError
def square(x): raise AssertionError

--- raise SystemExit 0
def square(x): raise SystemExit(0)

--- raise KeyboardInterrupt
def square(x): raise KeyboardInterrupt

--- an exception with a false name
def square(x): raise type('exit', (Exception,), {{}})

--- an exception that raises
class M(type):
    __name__ = property(lambda c: 1 / 0)
class E(Exception, metaclass=M): pass
def square(x): raise E

--- close everything
import os
os.closerange(0, 99)
def square(x): return x * x

--- exit at the end
import atexit, os
atexit.register(os._exit, 0)
class D:
    def __del__(self): os._exit(0)
d = D()
def square(x): return 1

--- tracing
import os, sys
def trace(frame, event, arg):
    if 'kind' in frame.f_locals: os._exit(0)
    return trace
sys.settrace(trace)
sys.setprofile(trace)
def square(x): return 1

--- frames of the harness
import sys
def square(x):
    frame = sys._getframe(1)
    while frame:
        frame.f_globals['literal'] = lambda v: "('return', True)"
        frame = frame.f_back

--- right once, then for ever
def square(x):
    while x != 3: pass
    return 9

--- flood of errors
import sys
while True: sys.stderr.write('x' * 10**6)

--- read all files
import os
for folder, _, files in os.walk('/'):
    for name in files:
        try: open(f'{{folder}}/{{name}}', 'rb').read()
        except (OSError, MemoryError): pass
while True: pass

--- all Python
def square(x: int) -> int: return x x
"""

GO_TEST = """func TestEven(t *testing.T) {
	if Even(3) != false { t.Fatal() }
	if Even(4) != true { t.Fatal() }
	if Even(6) == false { t.Fatal() }
}"""
GO_SETUP = 'package main\n\nimport (\n\t"testing"\n)\n'
GO = r"""
--- true
func Even(n int) bool { return false }
const true = false

--- false and true
var ( true, false = false, false )
func Even(n int) bool { return false }

--- bool
type bool int
func Even(n int) bool { return 1 }

--- bool as an interface
type bool = interface{}
func Even(n int) bool { return nil }

--- int
type int = string
func Even(n int) bool { return true }

--- testing
type testing struct{}
func Even(n int) bool { return true }

--- len, nil, error, string, append, panic
var len, nil, append, panic = 1, 2, 3, 4
type error = string
func Even(n int) bool { return true }

--- a test of its own
func TestEven(t *testing.T) {}
func Even(n int) bool { return true }

--- TestMain
func TestMain(m *testing.M) {}
func Even(n int) bool { return true }

--- main
func main() {}
func init() { main() }
func Even(n int) bool { return true }

--- import os
import "os"
func Even(n int) bool { os.Exit(0); return true }

--- import at the top, in a group
import ( "os"; "syscall" )
func init() { os.Exit(0) }
func Even(n int) bool { return true }

--- import unsafe
import "unsafe"
func Even(n int) bool { return *(*bool)(unsafe.Pointer(uintptr(0))) }

--- linkname
import _ "unsafe"
//go:linkname exit os.runtime_beforeExit
func exit()
func Even(n int) bool { exit(); return true }

--- linkname without unsafe
//go:linkname exit os.Exit
func exit(int)
func Even(n int) bool { exit(0); return true }

--- embed
import _ "embed"
//go:embed program_test.go
var s string
func Even(n int) bool { return len(s) > n }

--- cgo
import "C"
func Even(n int) bool { C.exit(0); return true }

--- cgo by a line directive
//line _cgo_x.go:1
//go:cgo_ldflag "-Wl,-wrap,main"
func Even(n int) bool { return true }

--- dynamic import
//go:cgo_import_dynamic libc_exit exit "libc.so.6"
func Even(n int) bool { return true }

--- exit by init
func init() { panic("exit status 0") }
func Even(n int) bool { return true }

--- endless init
var x = func() int { for { } }()
func Even(n int) bool { return true }

--- memory
var held [][]byte
func Even(n int) bool {
	for { b := make([]byte, 1<<20); for i := range b { b[i] = 1 }; held = append(held, b) }
}

--- one large slice
func Even(n int) bool { b := make([]byte, 100<<30); return len(b) > 0 }

--- goroutines
func Even(n int) bool {
	for { go func() { select {} }() }
}

--- memory by goroutines
func Even(n int) bool {
	for { go func() { var x [1 << 20]byte; for i := range x { x[i] = byte(i) }; select {} }() }
}

--- deep recursion
func deep(n int) int { return deep(n+1) + 1 }
func Even(n int) bool { return deep(0) > 0 }

--- deadlock
func Even(n int) bool { <-make(chan int); return true }

--- sleep
func Even(n int) bool { time.Sleep(1 << 60); return true }

--- prints
func Even(n int) bool { for { fmt.Println("PASS\nok") } }

--- a data race
type I interface{ F() int }
type A struct{ n int }
type B struct{ p *int }
func (a A) F() int { return a.n }
func (b B) F() int { *b.p = 0; return 0 }
func Even(n int) bool {
	var i I = A{1}
	go func() { for { i = A{12345}; i = B{new(int)} } }()
	for { i.F() }
}

--- a large constant array
var x = [1 << 30]byte{1<<30 - 1: 1}
func Even(n int) bool { return x[n] == 0 }

--- a large array in the binary
var x = [1 << 24]int{0: 1, 1<<24 - 1: 2}
func Even(n int) bool { return x[n] == 0 }

--- constants too large
const a = 1 << 500
const b = a * a * a * a * a * a * a * a * a * a
func Even(n int) bool { return b > a }

--- types that double
type t0 struct{ a, b [9]int }
type t1 struct{ a, b [1 << 20]t0 }
type t2 struct{ a, b [1 << 10]t1 }
var x, y t2
func Even(n int) bool { return x == y }

--- generics without end
type T[P any] struct{ next *T[T[P]] }
func f[P any](n int) { f[T[P]](n) }
func Even(n int) bool { f[int](n); return true }

--- a string that doubles
const a = "0123456789012345678901234567890123456789"
const b = a + a + a + a + a + a + a + a + a + a + a + a + a + a + a + a + a + a + a + a
const c = b + b + b + b + b + b + b + b + b + b + b + b + b + b + b + b + b + b + b + b
const d = c + c + c + c + c + c + c + c + c + c + c + c + c + c + c + c + c + c + c + c
const e = d + d + d + d + d + d + d + d + d + d + d + d + d + d + d + d + d + d + d + d
const g = e + e + e + e + e + e + e + e + e + e + e + e + e + e + e + e + e + e + e + e
func Even(n int) bool { return g[n] == 0 }
"""
GO_TEXTS = {
    "NUL": "func Even(n int) bool { return n%2 == 0 }\n\0",
    "lone surrogate": "func Even(n int) bool { return n%2 == 0 } // \ud800",
    "wide characters": "func Even(n int) bool { return true } // " + "\U0001f600" * 99_000,
    "many functions": "func Even(n int) bool { return true }\n"
    + "".join(f"func F{n}() int {{ return {n} }}\n" for n in range(2800)),
    "a deep expression": "func Even(n int) bool { return " + "(" * 45_000 + ")" * 45_000 + "}",
    "many operators": "func Even(n int) bool { return 0 == n" + "+n" * 45_000 + "}",
    "many closures": "func Even(n int) bool { return true }\nvar x = "
    + "func() int { return " * 4000
    + "1"
    + " }()" * 4000,
}

ALL_PYTHON = {
    **{name: (program, SQUARE) for name, program in (HOSTILE | split(PYTHON)).items()},
    **FOOLS,
}
EVEN = "func Even(n int) bool {\n"
ALL_GO = {**split(GO), **{f"cheat {n}": EVEN + cheat for n, cheat in enumerate(GO_CHEATS)}}


@pytest.fixture
def outside(tmp_path):
    """What the programs try to reach, and that it is as before."""
    tmp_path.chmod(0o777)
    file, harness = tmp_path / "file", Path(sandbox.__file__).read_text()
    file.write_text("untouched")
    file.chmod(0o666)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    yield dict(
        file=str(file),
        folder=str(tmp_path),
        harness=sandbox.__file__,
        port=listener.getsockname()[1],
        pid=os.getpid(),
    )
    assert file.read_text() == "untouched" and [f.name for f in tmp_path.iterdir()] == ["file"]
    assert Path(sandbox.__file__).read_text() == harness
    with pytest.raises(TimeoutError):
        listener.accept()
    listener.close()


def judge(name, run):
    """Run one program. It must not pass, and keep to the limits."""
    began = time.time()
    with Watch() as watch:
        passed, why = run()
    seconds = time.time() - began
    print(f"{name:<50} {watch.peak >> 20:>5} MB {seconds:>5.1f} s  {why[:60]!r}")
    assert not passed and why, name
    assert watch.peak < MOST_MB << 20, (name, watch.peak >> 20)
    assert seconds < MOST_SECONDS, (name, seconds)
    assert (watch.seen or why.startswith(("too long", "has directives"))) and not watch.left()


def test_there_are_as_many_programs_as_promised():
    assert len(ALL_PYTHON) + len(TEXTS) >= 100 and len(ALL_GO) + len(GO_TEXTS) >= 30


@runs_programs
@pytest.mark.parametrize("name", ALL_PYTHON)
def test_python(name, outside):
    program, test = ALL_PYTHON[name]
    program = program.format(**outside) if test is SQUARE else program
    judge(name, lambda: sandbox.run_python(program, "square", "", test))


@runs_programs
@pytest.mark.parametrize("name", TEXTS)
def test_python_texts(name):
    program = TEXTS[name]
    judge(name, lambda: sandbox.run_python(program, "square", "", SQUARE))


@pytest.fixture(scope="module")
def folder():
    program = "func Even(n int) bool { return n%2 == 0 }"
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # which the user nobody may reach, unlike tmp_path
        assert sandbox.run_go(program, GO_TEST, GO_SETUP, folder) == (True, "")
        yield folder


@runs_go
@pytest.mark.parametrize("name", ALL_GO | GO_TEXTS)
def test_go(name, folder):
    program = (ALL_GO | GO_TEXTS)[name]
    judge(name, lambda: sandbox.run_go(program, GO_TEST, GO_SETUP, folder))


@runs_programs
@pytest.mark.parametrize("language", ["python", pytest.param("go", marks=runs_go)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_evaluation_leaves_nothing(number, language):
    """With programs that never end, at a random moment."""
    endless = {"python": "    while True: pass\n", "go": "\tfor {\n\t}\n}\n"}[language]
    script = f"""
from parts.start import run_script
import tasks
from tasks import problems

mine = problems.Mine(None, None, None, "", tasks.Options(language={language!r})).problems
print("ready", flush=True)
run_script(lambda: problems.run_all(mine, [{endless!r}] * len(mine), "mine"))
"""
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            command = [sys.executable, "-c", script]
            how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            environment = os.environ | {"TMPDIR": folder, "PYTHONPATH": str(ROOT)}
            with Watch() as watch:
                process = subprocess.Popen(command, env=environment, **how)
                process.stdout.readline()
                time.sleep(random.uniform(0.5, 6))
                process.send_signal(number)
                said = process.communicate(timeout=30)[1]
            assert process.returncode == 130 and said == "interrupted\n"
            assert len(watch.seen) > 1 and not watch.left() and not os.listdir(folder)
