"""Runs and tests programs that a model wrote, where they can do no harm and cannot fake success.
Linux with bubblewrap only.

A Python program is judged by two processes, each in a sandbox of its own. The candidate runs the
program and answers calls; arguments and results travel as literals. The checker holds the tests,
compares the results, and never runs a line of the program:

    checker   assert f(3) == 9   -- "f", (3,), {} -->   candidate   def f(x): return x * x
                                 <-- "return", 9 --

So the program cannot see the tests or their answers, cannot end, patch or print its way to a pass,
and an object that equals everything is not a literal. A Go program is compiled with its tests into
one binary. To fake anything it would need a package that reaches the system, and it can import only
GO_PACKAGES, none of which does.

The sandbox (`sandboxed`) has its own user, process, network, mount, IPC and host name namespaces; a
file system of the interpreter, read-only, and an empty /tmp; no capabilities and no nested
namespaces; an environment of four variables; limits on CPU time, memory, file size, processes and
open files; and a time limit after which all of it is killed. The kernel is shared: no sandbox of
this kind holds against a flaw in the kernel. A deliberate data race in Go could break the safety of
the language: the sandbox still holds, but the verdict is only as good as the language.

This file also runs inside the sandbox, as text given to `python -c`. So it imports nothing of ours.
"""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

NOBODY = 65534  # root is exempt from the limit on processes, so root runs the sandbox as nobody
FOLDER = 64 << 20  # bytes that /tmp in the sandbox holds
LIMITS = {  # by role: bytes of memory of each process and of a file, processes and threads together
    "candidate": (512 << 20, 16 << 20, 8),
    "checker": (512 << 20, 16 << 20, 8),
    "binary": (4 << 30, 16 << 20, 64),  # Go reserves far more addresses than it uses
    "compiler": (16 << 30, 1 << 30, 256),
}
GO_PACKAGES = tuple(
    "bytes crypto/md5 errors fmt math math/rand regexp sort strconv strings time unicode".split()
)
GO_LIBRARY = "/usr/share/gocode"  # where Debian puts Go's libraries
ISOLATION = f"""--unshare-all --unshare-user --disable-userns --die-with-parent --new-session
    --cap-drop ALL --uid {NOBODY} --gid {NOBODY} --hostname sandbox""".split()
NOTHING = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}


def sandboxed(role, command, seconds, binds=(), **popen) -> subprocess.Popen:
    """Start a command in a sandbox, in a process group of its own. binds: arguments of bwrap for
    what else it may see. popen: what Popen takes."""
    python = interpreter()
    wanted = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", str(python.parent.parent)]
    seen = [part for path in dict.fromkeys(wanted) for part in ("--ro-bind-try", path, path)]
    places = ["--proc", "/proc", "--dev", "/dev", "--size", str(FOLDER), "--tmpfs", "/tmp"]
    harness = Path(__file__).read_text(encoding="utf-8")
    inside = [str(python), "-I", "-S", "-c", harness, "limited", role, str(seconds), *command]
    nobody = dict(user=NOBODY, group=NOBODY, extra_groups=[]) if os.geteuid() == 0 else {}
    return subprocess.Popen(
        ["bwrap", *ISOLATION, *seen, *places, *binds, "--chdir", "/tmp", "--", *inside],
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
        cwd="/",
        start_new_session=True,
        **nobody,
        **popen,
    )


def interpreter() -> Path:
    """The interpreter itself, not a virtual environment's link to it, since the sandbox does not
    show the environment; the system's if root keeps its own where nobody else may read it."""
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    readable = all(folder.stat().st_mode & 0o005 == 0o005 for folder in own.parents)
    hidden = os.geteuid() == 0 and not readable
    return Path("/usr/bin/python3").resolve() if hidden else own


def finish(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit code, or None if it took longer. Either way nothing of the process is left: bwrap's
    end is the end of the first process of its namespace, and so of all the others."""
    try:
        # Short waits, so that while the machine stands still, this clock does too.
        for _ in range(int(10 * seconds)):
            try:
                return process.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
        return process.poll()
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def missing(language: str = "python") -> str:
    """Why programs cannot be run here, in a sentence; empty if they can."""
    if not sys.platform.startswith("linux"):
        return (
            "running generated code needs Linux and its namespaces; "
            "leave --allow_code_execution out"
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
    if len(program) > 100_000:
        return False, "too long"
    calls, answers = os.pipe(), os.pipe()  # from the checker to the candidate, and back
    task, quiet = json.dumps([name, setup, test]), {"stderr": subprocess.DEVNULL}
    processes = [
        sandboxed("checker", [task], seconds, stdin=answers[0], stdout=calls[1], **quiet),
        sandboxed("candidate", [program], seconds, stdin=calls[0], stdout=answers[1], **quiet),
    ]
    for end in calls + answers:
        os.close(end)
    code = finish(processes[0], seconds + 1)
    finish(processes[1], 0)
    return code == 0, {0: "", 3: "failed", None: "time"}.get(code, "crashed")


def run_go(
    program: str, test: str, test_setup: str, folder: str, seconds: float = 10.0
) -> tuple[bool, str]:
    """Whether a Go program passes its tests: (True, "") or (False, why).

    program: declarations without package and imports. test_setup: package, imports and whatever
    else the tests need. folder: for the compiler's cache, the same at every call."""
    # Each file has its own imports, and an unused one is an error. HumanEval-X lists those of both
    # files together.
    test_setup = re.sub(rf'(?m)^\s*"({"|".join(GO_PACKAGES)})"\n', "", test_setup)
    sources = {
        "program.go": f"package main\n\n{go_imports(program)}\n{program}",
        "program_test.go": f"{test_setup}\n{go_imports(test)}\n{test}",
    }
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for name, source in sources.items():
            (Path(work) / name).write_text(source, encoding="utf-8")
        if trouble := compile_go(work, folder):
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


def compile_go(work: str, folder: str) -> str:
    """Compile the Go files in `work` and their tests to test.binary. Returns what the compiler said
    if that failed, else nothing."""
    cache = Path(folder) / "cache"
    cache.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        for path in (work, cache):
            os.chown(path, NOBODY, NOBODY)
        os.chmod(folder, 0o755)
    settings = ["GO111MODULE=off", f"GOPATH={GO_LIBRARY}", "GOCACHE=/cache"]
    settings += ["CGO_ENABLED=0", "GOFLAGS=", "GOMAXPROCS=2"]
    go = str(Path(shutil.which("go")).resolve())
    build = [go, "test", "-c", "-vet=off", "-o", "/build/test.binary"]
    command = ["env", "-C", "/build", *settings, *build]
    seen = ["--bind", work, "/build", "--bind", str(cache), "/cache"]
    seen += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    with tempfile.TemporaryFile() as said:
        streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": subprocess.STDOUT}
        # The first compilation compiles the library too, so it may take long.
        process = sandboxed("compiler", command, 300, seen, **streams)
        if finish(process, 300) == 0 and (Path(work) / "test.binary").is_file():
            return ""
        said.seek(0)
        return said.read(2000).decode(errors="replace") or "no reason given"


# --- what runs in the sandbox ---------------------------------------------------------------------


def limit(role, seconds):
    """Set this process's limits, for good and for whatever it starts."""
    import resource

    memory, file, processes = LIMITS[role]
    for what, most in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def literal(value):
    """A plain value as Python source; of a subclass only what its base class holds. TypeError for
    anything else."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "1e999" if value > 0 else "-1e999"
    for kind in (int, float, complex, str, bytes):
        if isinstance(value, kind):
            return kind.__repr__(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    brackets = (list, "[]"), (tuple, "()"), (set, "{}"), (frozenset, "{}")
    for kind, (begin, end) in brackets:
        if isinstance(value, kind):
            inside = "".join(f"{literal(v)}, " for v in value)
            return begin + inside + end if inside or kind in (list, tuple) else "set()"
    raise TypeError(f"a {type(value).__name__} is not plain data")


def candidate(program):
    """Define what the program defines, then answer calls until there are no more."""
    calls = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    namespace = {"__name__": "candidate"}
    try:
        exec(compile(program, "candidate", "exec"), namespace)
    except SyntaxError:
        return 1
    for line in calls:
        name, args, kwargs = ast.literal_eval(line)
        try:
            answer = literal(("return", namespace[name](*args, **kwargs)))
        except Exception as error:
            answer = literal(("raise", type(error).__name__))
        answers.write(answer.replace("\n", " ") + "\n")
        answers.flush()
    return 0


def checker(task):
    """Execute the tests with a function that asks the candidate. Exit code 0: they passed; 3: they
    did not."""
    import builtins

    name, setup, test = json.loads(task)
    answers = os.fdopen(os.dup(0), encoding="utf-8")
    calls = os.fdopen(os.dup(1), "w", encoding="utf-8")
    answered = 0

    def ask(*args, **kwargs):
        nonlocal answered
        calls.write(literal((name, args, kwargs)) + "\n")
        calls.flush()
        line = answers.readline(10_000_000)
        kind, value = ast.literal_eval(line)
        answered += 1
        if kind == "return":
            return value
        error = getattr(builtins, value, None)
        known = isinstance(error, type) and issubclass(error, Exception)
        raise error() if known else RuntimeError(value)

    namespace = {"__name__": "checker"}
    try:
        exec(compile(setup, "setup", "exec"), namespace)
        namespace[name] = ask
        exec(compile(test, "test", "exec"), namespace)
        if "check" in namespace:
            namespace["check"](ask)
        return 0 if answered else 3
    except BaseException:
        return 3


def limited(role, seconds, *command):
    """Run a role, or the command of another role, within its limits."""
    limit(role, float(seconds))
    roles = {"candidate": candidate, "checker": checker}
    if role in roles and command != ("true",):
        os._exit(roles[role](*command))  # so that nothing of the program's runs at the end
    os.execvp(command[0], command)


if __name__ == "__main__" and sys.argv[1:2] == ["limited"]:
    limited(*sys.argv[2:])
