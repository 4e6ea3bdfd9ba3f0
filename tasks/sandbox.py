"""Runs and tests programs that a model wrote, where they can do no harm and cannot fake success.
Linux with bubblewrap only.

A Python program is judged by two processes, each in a sandbox of its own. The candidate runs the
program and answers calls; arguments and results travel as literals. The checker holds the tests,
compares the results, and never runs a line of the program:

    checker   assert f(3) == 9   -- "f", (3,), {} -->   candidate   def f(x): return x * x
                                 <-- "return", 9 --

So the program cannot see the tests or their answers, cannot end, patch or print its way to a pass,
and an object that equals everything is not a literal. An answer that is no literal ends the tests
at once, so no `except` of theirs can take it for an exception that they wait for.

A Go program is compiled with its tests into one binary, as a package of its own, so that what it
calls `true` is nothing to the tests. It can import only GO_PACKAGES, none of which reaches the
system, and the compiler takes no directives from it. Its goroutines take turns and change only at
calls of functions, so that no data race can break the safety of the language.

What holds in the sandbox (`sandboxed`):

- It has its own user, process, network, mount, IPC and host name namespaces, no capabilities and no
  nested namespaces. The program is its only process, and can start no other.
- It sees the interpreter and the system's libraries. Nothing can be written anywhere: all file
  systems are read-only. There is no /proc.
- Memory that no limit on a process counts (System V and memfd memory, sockets, ...) cannot be had:
  the kernel refuses the system calls (REFUSED). What is left, LIMITS bounds: at most 600 MB for the
  candidate and the checker together, or for a Go program, or to compile it.
- It ends when its time is up, and when this process ends, however that happens.

What does not: the kernel is shared, and no sandbox of this kind holds against a flaw in the kernel.
Files that other users of the machine can read in /usr and /etc/ld.so.cache can be read. And tests
that say too little can be passed by a program that does too little.

What runs inside is in inside.py.
"""

import functools
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tasks.inside import literal

NOBODY = 65534  # root is exempt from the limit on processes, so root runs the sandbox as nobody
MOST = 100_000  # characters of a program
LIMITS = {  # by role: bytes of memory and of a file; numbers of processes with threads, open files
    "candidate": {"AS": 320 << 20, "FSIZE": 0, "NPROC": 1, "NOFILE": 32},
    "checker": {"AS": 256 << 20, "FSIZE": 0, "NPROC": 1, "NOFILE": 32},
    # These two are written in Go, and get as much more as Go reserves without using it.
    "binary": {"AS": 448 << 20, "FSIZE": 0, "NPROC": 64, "NOFILE": 32},
    "compiler": {"AS": 448 << 20, "FSIZE": 64 << 20, "NPROC": 256, "NOFILE": 256},
    "library": {"DATA": 2 << 30, "FSIZE": 1 << 30, "NPROC": 256, "NOFILE": 256},
}
COMPILER_SECONDS, LIBRARY_SECONDS = 28, 600
# System calls that nothing here needs: for memory that outlives its mapping or is the kernel's, and
# prctl, by which a process could choose to outlive its parent. Their numbers on x86_64, aarch64.
REFUSED = {
    "prctl": (157, 167),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "vmsplice": (278, 75),
    "io_setup": (206, 0),
    "io_uring_setup": (425, 425),
    "inotify_init": (253, 26),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    "landlock_create_ruleset": (444, 444),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
}
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, the kernel's number
GO_PACKAGES = tuple(
    "bytes crypto/md5 errors fmt math math/rand regexp sort strconv strings time unicode".split()
)
GO_LIBRARY = "/usr/share/gocode"  # where Debian puts Go's libraries
ISOLATION = f"""--unshare-all --unshare-user --disable-userns --die-with-parent --new-session
    --as-pid-1 --cap-drop ALL --uid {NOBODY} --gid {NOBODY} --hostname sandbox""".split()
NOTHING = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
halt = threading.Event()  # once set, all that runs in a sandbox is ended, and whatever would start


def sandboxed(role, command, seconds, binds=(), given=None, **popen) -> subprocess.Popen:
    """Start a role, or its command, in a sandbox, in a process group of its own. binds: arguments
    of bwrap for what else it may see. given: plain data for the role. popen: what Popen takes."""
    limits = {"CPU": int(seconds) + 1, "CORE": 0, **LIMITS[role]}
    if role in ("binary", "compiler"):
        limits["AS"] += go_reserves()
    python = interpreter()
    wanted = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", str(python.parent.parent)]
    seen = [part for path in dict.fromkeys(wanted) for part in ("--ro-bind-try", path, path)]
    places = ["--dev", "/dev", *binds, "--remount-ro", "/dev", "--remount-ro", "/"]
    harness = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
    nobody = dict(user=NOBODY, group=NOBODY, extra_groups=[]) if os.geteuid() == 0 else {}
    with tempfile.TemporaryFile() as rules, tempfile.TemporaryFile() as text:
        for file, content in ((rules, refusals()), (text, literal([limits, given]).encode())):
            file.write(content)
            file.seek(0)
        inside = [str(python), "-I", "-S", "-c", harness, role, str(text.fileno()), *command]
        places += ["--seccomp", str(rules.fileno()), "--chdir", "/"]
        ended, alive = os.pipe()  # at its end once no process of the sandbox is left
        process = subprocess.Popen(
            ["bwrap", *ISOLATION, *seen, *places, "--", *inside],
            env={
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "PYTHONHASHSEED": "0",
                "GOMAXPROCS": "1",
                "GODEBUG": "asyncpreemptoff=1",
            },
            cwd="/",
            start_new_session=True,
            pass_fds=(rules.fileno(), text.fileno(), alive),
            **nobody,
            **popen,
        )
        os.close(alive)
        process.ended = os.fdopen(ended, "rb")
        return process


def refusals() -> bytes:
    """The filter of system calls, as the kernel's seccomp(2) takes it: instructions of (code, jump
    if true, jump if false, value)."""
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050001, 0x7FFF0000  # refuse: with EPERM
    column, machine = MACHINES[os.uname().machine]
    program = [(load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, kill)]  # no 32-bit calls
    program += [(load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (end, 0, 0, kill)]  # nor x32's
    for numbers in REFUSED.values():
        program += [(equal, 0, 1, numbers[column]), (end, 0, 0, refuse)]
    return b"".join(struct.pack("HBBI", *step) for step in [*program, (end, 0, 0, allow)])


@functools.cache
def go_reserves() -> int:
    """How many bytes of addresses a Go program reserves at its start: the least with which the
    compiler's command starts. That is 0.7 GB for Go 1.19."""
    size = 256 << 20
    while size < 8 << 30:
        size += 32 << 20
        command = ["sh", "-c", f"ulimit -v {size >> 10}; exec go version"]
        if not subprocess.run(command, **NOTHING, stderr=subprocess.DEVNULL).returncode:
            break
    return size


def interpreter() -> Path:
    """The interpreter itself, not a virtual environment's link to it, since the sandbox does not
    show the environment; the system's if root keeps its own where nobody else may read it."""
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    readable = all(folder.stat().st_mode & 0o005 == 0o005 for folder in own.parents)
    hidden = os.geteuid() == 0 and not readable
    return Path("/usr/bin/python3").resolve() if hidden else own


def finish(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit code, or None if it took longer. Either way nothing of the process is left: bwrap's
    end is the end of the sandbox's first process, and so of all the others."""
    try:
        # Short waits, so that while the machine stands still, this clock does too.
        for _ in range(int(10 * seconds)):
            if halt.is_set():
                break
            try:
                return process.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
        return process.poll()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not process.ended.closed:
            with process.ended:
                process.ended.read()


def missing(language: str = "python") -> str:
    """Why programs cannot be run here, in a sentence; empty if they can."""
    if not sys.platform.startswith("linux"):
        return (
            "running generated code needs Linux and its namespaces; "
            "leave --allow_code_execution out"
        )
    if os.uname().machine not in MACHINES:
        return (
            f"running generated code needs one of {', '.join(MACHINES)}, not {os.uname().machine}"
        )
    if not shutil.which("bwrap"):
        return "running generated code needs bubblewrap: apt-get install bubblewrap"
    process = sandboxed("checker", ["true"], 10, **NOTHING, stderr=subprocess.PIPE)
    said = process.stderr.read().decode(errors="replace").strip()
    if finish(process, 30) != 0:
        return (
            "bubblewrap 0.8 or newer does not work here (unprivileged user namespaces may be "
            f"forbidden): {said[-300:]}"
        )
    if language == "go" and not shutil.which("go"):
        return "Go programs need its compiler: apt-get install golang-go"
    return ""


def run_python(
    program: str, name: str, setup: str, test: str, seconds: float = 10.0
) -> tuple[bool, str]:
    """Whether a program's function `name` passes the tests: (True, "") or (False, why).

    program: the source that defines it. setup, test: trusted source, which the checker executes:
    definitions that the tests use, then either HumanEval's `check(candidate)`, which is called, or
    assertions, which call the function by its name. Arguments and results can be None, bool, int,
    float but NaN, complex, str, bytes, and lists, tuples, sets and dicts of them. The tests get at
    most `seconds` of CPU time, and as many of wall-clock time."""
    if len(program) > MOST:
        return False, "too long"
    calls, answers = os.pipe(), os.pipe()  # from the checker to the candidate, and back
    processes = []
    try:
        for role, given, stdin, stdout in (
            ("checker", [name, setup, test], answers[0], calls[1]),
            ("candidate", program, calls[0], answers[1]),
        ):
            streams = dict(stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL)
            processes.append(sandboxed(role, [], seconds, given=given, **streams))
        for end in calls + answers:
            os.close(end)
        code = finish(processes[0], seconds + 1)
    finally:
        for process in processes:
            finish(process, 0)
    return code == 0, {0: "", 3: "failed", None: "time"}.get(code, "crashed")


def run_go(
    program: str, test: str, test_setup: str, folder: str, seconds: float = 10.0
) -> tuple[bool, str]:
    """Whether a Go program passes its tests: (True, "") or (False, why).

    program: declarations without package and imports. test_setup: package, imports and whatever
    else the tests need, which call what the program exports. folder: for the compiler's cache, the
    same at every call; the first one with a setup fills it (see `warm_up`)."""
    if len(program) > MOST:
        return False, "too long"
    if re.search(r"//go:|//line|/\*line", program):
        return False, "has directives for the compiler"
    warm_up(folder, test_setup)
    # An unused import is an error. HumanEval-X lists those of the program and the tests together.
    known = "|".join(GO_PACKAGES)
    test = re.sub(rf'(?m)^\s*(?:import\s+)?"(?:{known})"\s*$', "", test_setup) + "\n" + test
    imports = f'import . "./candidate"\n{go_imports(test)}'
    sources = {
        # The variable comes first because no import can follow a declaration.
        "candidate/program.go": f"package candidate\n{go_imports(program)}var _ = 0\n{program}",
        "program_test.go": re.sub(r"(?m)^package .*$", rf"\g<0>\n{imports}", test, count=1),
    }
    with tempfile.TemporaryDirectory(dir=folder) as work:
        if trouble := compile_go(sources, work, folder, "compiler", COMPILER_SECONDS):
            return False, f"does not compile: {trouble}"
        command = ["/build/test.binary", "-test.run", "^Test"]
        seen = ["--ro-bind", work, "/build"]
        process = sandboxed("binary", command, seconds, seen, **NOTHING, stderr=subprocess.DEVNULL)
        code = finish(process, seconds + 1)
    return code == 0, {0: "", None: "time"}.get(code, "failed")


def go_imports(source: str) -> str:
    """The import lines for those of GO_PACKAGES that the source uses."""
    code = re.sub(r"//[^\n]*", "", source)
    names = {package: package.split("/")[-1] for package in GO_PACKAGES}
    wanted = [package for package, name in names.items() if re.search(rf"\b{name}\.", code)]
    return "".join(f'import "{package}"\n' for package in wanted)


def warm_up(folder: str, test_setup: str):
    """Compile Go's library into the folder's cache, as far as programs and tests with this setup
    can use it, if that was not done yet. It may take a minute. ValueError if it fails."""
    done = Path(folder) / "packages"
    packages = set(re.findall(r'(?m)^\s*(?:import\s+)?"([\w./-]+)"\s*$', test_setup))
    packages |= {*GO_PACKAGES, "testing"}
    if done.is_file() and packages <= set(done.read_text().split()):
        return
    imports = "".join(f'import _ "{package}"\n' for package in sorted(packages))
    test = f'package main\n{imports}import "testing"\nfunc TestNothing(*testing.T) {{}}\n'
    with tempfile.TemporaryDirectory(dir=folder) as work:
        sources = {"program_test.go": test}
        if trouble := compile_go(sources, work, folder, "library", LIBRARY_SECONDS):
            raise ValueError(f"Go's library does not compile: {trouble}")
    with done.open("a") as file:
        print(*packages, file=file)


def compile_go(sources: dict, work: str, folder: str, role: str, seconds: float) -> str:
    """Compile Go files and their tests to test.binary in `work`. Returns what the compiler said if
    that failed, else nothing."""
    cache = Path(folder) / "cache"
    for place in (cache, Path(work) / "candidate"):
        place.mkdir(exist_ok=True)
    for name, source in sources.items():
        # A lone surrogate becomes bytes that are not UTF-8, which the compiler refuses.
        (Path(work) / name).write_text(source, encoding="utf-8", errors="surrogatepass")
    if os.geteuid() == 0:
        for path in (work, cache):
            os.chown(path, NOBODY, NOBODY)
        os.chmod(folder, 0o755)
    settings = ["GO111MODULE=off", f"GOPATH={GO_LIBRARY}", "GOCACHE=/cache", "GOTMPDIR=/build"]
    settings += ["HOME=/build", "CGO_ENABLED=0", "GOFLAGS=", "GOMAXPROCS=2"]
    go = str(Path(shutil.which("go")).resolve())
    build = [go, "test", "-c", "-vet=off", "-ldflags=-s -w", "-o", "/build/test.binary"]
    command = ["env", "-C", "/build", *settings, *build]
    seen = ["--proc", "/proc", "--bind", work, "/build", "--bind", str(cache), "/cache"]
    seen += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    with tempfile.TemporaryFile() as said:
        streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": subprocess.STDOUT}
        process = sandboxed(role, command, seconds, seen, **streams)
        if finish(process, seconds) == 0 and (Path(work) / "test.binary").is_file():
            return ""
        said.seek(0)
        return said.read(2000).decode(errors="replace") or "no reason given"
