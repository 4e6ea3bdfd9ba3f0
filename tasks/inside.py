"""What runs inside sandbox.py's sandbox, as text given to `python -c`. So it imports nothing of
ours, and little else, since it starts anew for each program."""

import ast
import builtins
import os
import resource
import sys

ANSWER = 1_000_000  # characters of an answer


def literal(value):
    """A plain value as Python source; of a subclass only what its base class holds. TypeError for
    anything else."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "1e999" if value > 0 else "-1e999"
    if isinstance(value, int):
        return int.__format__(value, "#x")  # Python refuses to read more than 4300 decimal digits
    for kind in (float, complex, str, bytes):
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
    exec(compile(program, "candidate", "exec"), namespace)
    for line in calls:
        name, args, kwargs = ast.literal_eval(line)
        function = namespace[name]
        try:
            result = "return", function(*args, **kwargs)
        except Exception as error:
            result = "raise", type(error).__name__
        answers.write(literal(result).replace("\n", " ") + "\n")
        answers.flush()
    return 0


def checker(task):
    """Execute the tests with a function that asks the candidate. Exit code 0: they passed; 3: they
    did not."""
    name, setup, test = task
    answers = os.fdopen(os.dup(0), encoding="utf-8")
    calls = os.fdopen(os.dup(1), "w", encoding="utf-8")
    answered = 0

    def ask(*args, **kwargs):
        nonlocal answered
        try:
            calls.write(literal((name, args, kwargs)) + "\n")
            calls.flush()
            kind, value = ast.literal_eval(answers.readline(ANSWER))
            answered += 1
            if kind == "return":
                return value
            error = getattr(builtins, value, RuntimeError)
            ends_loops = StopIteration, StopAsyncIteration  # as if all calls had been made
            if not issubclass(error, Exception) or issubclass(error, ends_loops):
                error = RuntimeError
            error = error.__new__(error)  # some need arguments for __init__
        except BaseException:  # no answer, or anything but a literal
            os._exit(3)
        raise error

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


def limited(role, given, *command):
    """Run the command, or else the role. given: the number of an open file with a literal: the
    limits of what `resource` can limit, for this process and whatever it starts, and a value for
    the role."""
    with open(int(given), encoding="utf-8") as file:
        limits, value = ast.literal_eval(file.read())
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    if command:
        os.execvp(command[0], command)
    try:
        code = {"candidate": candidate, "checker": checker}[role](value)
    except BaseException:
        code = 1
    os._exit(code)  # so that nothing of the program's runs at the end


if __name__ == "__main__":
    limited(*sys.argv[1:])
