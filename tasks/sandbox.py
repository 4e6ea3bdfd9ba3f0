"""Programs that a model wrote, run and tested where they can do no harm and cannot fake success. Linux with bubblewrap only.

A Python program is judged in two processes, each in a sandbox of its own. One runs the program and answers calls: arguments
come in and results go out as literals. The other holds the tests, compares what came back, and never runs a line of the program:

    checker   assert f(3) == 9   -- "f", (3,), {} -->   candidate   def f(x): return x * x
                                 <-- "return", 9 --

So the program cannot see the tests or their answers, cannot end, patch or print its way to a pass, and an object that equals
everything is no literal. A Go program is compiled with its tests into one binary. It can fake nothing without a package that
reaches the system, and it gets imports only from GO_PACKAGES, none of which does.

The sandbox (`sandboxed`): own user, process, network, mount, IPC and host name namespaces; a file system of the interpreter,
read-only, and an empty /tmp; no capabilities and no namespaces in it; an environment of four variables; limits on CPU time,
memory, file size, processes and open files; and a time after which all of it is killed. The kernel is shared: no sandbox of
this kind holds against a fault in it. In Go, a data race made on purpose could break the language's own safety, so there the
sandbox holds, and the verdict is as good as the language.

This file is also what runs inside, given as text to `python -c`, so it imports nothing of ours.
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

NOBODY = 65534  # root's processes are exempt from limits on their number, so root runs the sandbox as nobody
FOLDER = 64 << 20  # bytes that /tmp in the sandbox holds
LIMITS = {  # for each kind of process: memory of each in bytes, largest file in bytes, processes and threads together
    "candidate": (512 << 20, 16 << 20, 8),
    "checker": (512 << 20, 16 << 20, 8),
    "binary": (4 << 30, 16 << 20, 64),  # Go reserves far more addresses than it uses
    "compiler": (16 << 30, 1 << 30, 256),
}
GO_PACKAGES = ("bytes", "crypto/md5", "errors", "fmt", "math", "math/rand", "regexp", "sort", "strconv", "strings", "time",
               "unicode")  # fmt: skip
GO_LIBRARY = "/usr/share/gocode"  # where Debian puts Go's libraries


def sandboxed(role, command, seconds, binds=(), **popen):
    """Start a command in a sandbox, as a process group of its own. binds: bwrap arguments for what else it may see."""
    python = interpreter()
    wanted = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", str(python.parent.parent)]
    seen = [part for path in dict.fromkeys(wanted) for part in ("--ro-bind-try", path, path)]
    inside = [str(python), "-I", "-S", "-c", Path(__file__).read_text(encoding="utf-8"), "limited", role, str(seconds), *command]
    nobody = dict(user=NOBODY, group=NOBODY, extra_groups=[]) if os.geteuid() == 0 else {}
    return subprocess.Popen(
        ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
         "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox", *seen, "--proc", "/proc", "--dev", "/dev",
         "--size", str(FOLDER), "--tmpfs", "/tmp", *binds, "--chdir", "/tmp", "--", *inside],
        env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
        cwd="/", start_new_session=True, **nobody, **popen,
    )  # fmt: skip


def interpreter():
    """The interpreter itself, not the link to it in a virtual environment, which is not to be seen inside; the system's where
    root keeps its own in a folder that nobody else may read."""
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    hidden = os.geteuid() == 0 and not all(folder.stat().st_mode & 0o005 == 0o005 for folder in own.parents)
    return Path("/usr/bin/python3").resolve() if hidden else own


def finish(process, seconds):
    """The exit code, or None where it took longer. Either way nothing of the process is left: when bwrap dies, so does the first
    process of its namespace, and with that one all the others."""
    try:
        for _ in range(int(10 * seconds)):  # short waits: where the machine stands still for a while, so does this clock
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


def missing(language="python"):
    """What keeps programs from being run here, in a sentence; empty when nothing does."""
    if not sys.platform.startswith("linux"):
        return "running generated code needs Linux and its namespaces; leave --allow_code_execution out"
    if not shutil.which("bwrap"):
        return "running generated code needs bubblewrap: apt-get install bubblewrap"
    process = sandboxed("checker", ["true"], 10, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read().decode(errors="replace").strip()
    if finish(process, 30) != 0:
        return f"bubblewrap 0.8 or newer does not work here (unprivileged user namespaces may be forbidden): {said[-300:]}"
    if language == "go" and not shutil.which("go"):
        return "Go programs need its compiler: apt-get install golang-go"
    return ""


def run_python(program, name, setup, test, seconds=10.0):
    """Whether a program's function `name` passes the tests: (True, "") or (False, why).

    program: the source that defines it. setup, test: trusted source, which the checker executes: definitions that the tests use,
    then either HumanEval's `check(candidate)`, which is called, or assertions, which call the function by its name. Arguments and
    results: None, bool, int, float but NaN, complex, str, bytes, and lists, tuples, sets and dicts of them. The tests get at most
    `seconds`, of CPU and by the clock."""
    if len(program) > 100_000:
        return False, "too long"
    calls, answers = os.pipe(), os.pipe()  # from the checker to the candidate, and back
    quiet = {"stderr": subprocess.DEVNULL}
    processes = [
        sandboxed("checker", [json.dumps([name, setup, test])], seconds, stdin=answers[0], stdout=calls[1], **quiet),
        sandboxed("candidate", [program], seconds, stdin=calls[0], stdout=answers[1], **quiet),
    ]
    for end in calls + answers:
        os.close(end)
    code = finish(processes[0], seconds + 1)
    finish(processes[1], 0)
    return code == 0, {0: "", 3: "failed", None: "time"}.get(code, "crashed")


def run_go(program, test, test_setup, folder, seconds=10.0):
    """Whether a Go program passes its tests: (True, "") or (False, why). program: declarations without package and imports;
    test_setup: package, imports and whatever else the tests need; folder: for the compiler's cache, the same at every call."""
    def imports(source):
        code = re.sub(r"//[^\n]*", "", source)
        wanted = (package for package in GO_PACKAGES if re.search(rf"\b{package.split('/')[-1]}\.", code))
        return "".join(f'import "{package}"\n' for package in wanted)

    # A file's imports are its own, and one that it does not use is an error: HumanEval-X lists them for both files together.
    test_setup = re.sub(rf'(?m)^\s*"({"|".join(GO_PACKAGES)})"\n', "", test_setup)
    with tempfile.TemporaryDirectory(dir=folder) as work, tempfile.TemporaryFile() as said:
        (Path(work) / "program.go").write_text(f"package main\n\n{imports(program)}\n{program}", encoding="utf-8")
        (Path(work) / "program_test.go").write_text(f"{test_setup}\n{imports(test)}\n{test}", encoding="utf-8")
        (Path(folder) / "cache").mkdir(exist_ok=True)
        if os.geteuid() == 0:
            for path in (work, Path(folder) / "cache"):
                os.chown(path, NOBODY, NOBODY)
            os.chmod(folder, 0o755)
        go = str(Path(shutil.which("go")).resolve())
        settings = ["GO111MODULE=off", f"GOPATH={GO_LIBRARY}", "GOCACHE=/cache", "CGO_ENABLED=0", "GOFLAGS=", "GOMAXPROCS=2"]
        build = ["env", "-C", "/build", *settings, go, "test", "-c", "-vet=off", "-o", "/build/test.binary"]
        # The first compilation builds the library, too.
        process = sandboxed("compiler", build, 300, ["--bind", work, "/build", "--bind", f"{folder}/cache", "/cache",
                            "--ro-bind-try", "/etc/alternatives", "/etc/alternatives"],
                            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)  # fmt: skip
        if finish(process, 300) != 0 or not (Path(work) / "test.binary").is_file():
            said.seek(0)
            return False, f"does not compile: {said.read(2000).decode(errors='replace')}"
        process = sandboxed("binary", ["/build/test.binary", "-test.run", "^Test"], seconds, ["--ro-bind", work, "/build"],
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        code = finish(process, seconds + 1)
    return code == 0, {0: "", None: "time"}.get(code, "failed")


# What follows runs in the sandbox.


def limit(role, seconds):
    """Set this process's limits, for good and for whatever it starts."""
    import resource

    memory, file, processes = LIMITS[role]
    for what, most in ((resource.RLIMIT_CPU, int(seconds) + 1), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file),
                       (resource.RLIMIT_NPROC, processes), (resource.RLIMIT_NOFILE, 256), (resource.RLIMIT_CORE, 0)):  # fmt: skip
        resource.setrlimit(what, (most, most))


def literal(value):
    """A plain value as Python source; of a subclass only what its base holds. TypeError for anything else."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "1e999" if value > 0 else "-1e999"
    for kind in (int, float, complex, str, bytes):
        if isinstance(value, kind):
            return kind.__repr__(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    for kind, begin, end in ((list, "[", "]"), (tuple, "(", ")"), (set, "{", "}"), (frozenset, "{", "}")):
        if isinstance(value, kind):
            inside = "".join(f"{literal(v)}, " for v in value)
            return begin + inside + end if inside or kind in (list, tuple) else "set()"
    raise TypeError(f"a {type(value).__name__} is not plain data")


def candidate(program):
    """Define what the program defines, then answer calls until there are no more."""
    calls, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
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
    """Execute the tests with a function that asks the candidate. Exit code 0 means that they passed, 3 that they did not."""
    import builtins

    name, setup, test = json.loads(task)
    answers, calls = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
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
        raise error() if isinstance(error, type) and issubclass(error, Exception) else RuntimeError(value)

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
    limit(role, float(seconds))
    if role in ("candidate", "checker") and command != ("true",):
        os._exit({"candidate": candidate, "checker": checker}[role](*command))  # nothing of the program's runs at the end
    os.execvp(command[0], command)


if __name__ == "__main__" and sys.argv[1:2] == ["limited"]:
    limited(*sys.argv[2:])
