"""Settings: a script's defaults, then Python config files, then --key=value, each overriding the one before.

A script states its defaults in a class, one a line, with the comment that `--help` prints:

    class Settings:
        batch_size = 32     # sequences per step
        lr = 1e-3           # peak learning rate

    cfg = configurator.load(Settings)     # `python train.py config/python_cpu.py --lr=3e-4`  ->  cfg.lr == 3e-4

A config file is plain Python, run in a namespace of its own; only the values that it assigns are taken.

Where the class has _presets = {"optimizer": {"lion": {"lr": 3e-4}}}, the file or command line that changes optimizer to lion
brings lr=3e-4 too, whatever was said of lr before; what it says of lr itself, or what is said later, wins.
"""

import ast
import difflib
import inspect
import math
import os
import runpy
import sys
import types
from collections import ChainMap
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # what the scripts make (data/, out/) lives here, from whichever folder they run


def die(message):
    """End the script for a person's mistake: one line on standard error, exit code 2, no traceback."""
    if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun's other processes make the same mistake
        print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def mistakes():
    """Turn a ValueError or OSError raised inside into `die`: put it around reading what a person gave, never around work."""
    try:
        yield
    except (ValueError, OSError) as error:
        die(error)


def locate(path):
    """A file or folder that a person named: as seen from the working directory or, failing that, from the repository."""
    return Path(path) if Path(path).exists() else ROOT / path


def load(settings, argv=None):
    """The class's defaults overridden by argv (default: the command line), as a namespace. Ends the script on a mistake."""
    argv = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a sample that this terminal cannot show must not end a run
    if "--help" in argv or "-h" in argv:
        print_help(settings)
        sys.exit(0)
    classes = settings.__mro__[-2::-1]  # a script may add settings to another's by inheriting
    defaults = {key: value for one in classes for key, value in vars(one).items() if not key.startswith("_")}
    layers = [{}]  # what each config file says, and what the command line says before, between and after them
    for arg in argv:
        if arg.startswith("--"):
            key, given, text = arg[2:].partition("=")
            check_key(key, defaults, "")
            if given and isinstance(defaults[key], tuple):  # each --key=text adds one; \n and \t may be written out
                said = ChainMap(*reversed(layers), defaults)[key]
                layers[-1][key] = said + (text.replace("\\n", "\n").replace("\\t", "\t"),)
            elif given:
                layers[-1][key] = convert(key, parse(text, defaults[key]), defaults[key])
            elif isinstance(defaults[key], bool):
                layers[-1][key] = True
            else:
                die(f"--{key} needs a value: write --{key}={defaults[key] or '...'}")
        elif arg.endswith(".py"):
            layers += [{}, {}]
            for key, value in read_config(arg).items():
                check_key(key, defaults, f" in {arg}")
                layers[-2][key] = convert(key, value, defaults[key])
        else:
            near = difflib.get_close_matches(arg, [f"{arg}.py" * (ROOT / f"{arg}.py").is_file(), f"--{arg}" * ("=" in arg)], cutoff=0.5)
            die(f"{arg!r} is neither a config file (*.py) nor --key=value" + (f"; did you mean {near[0]}?" if near else ""))
    return types.SimpleNamespace(**combine(defaults, layers, getattr(settings, "_presets", {})))


def combine(defaults, layers, presets):
    """The defaults overridden by each layer in turn. A layer that changes a key of `presets` resets what the old value had brought
    and brings what the new one does, but for the keys that it names itself; says what that takes back, on standard error."""
    values, said = dict(defaults), set()
    for layer in layers:
        for key, options in presets.items():
            old, new = values[key], layer.get(key, values[key])
            if new != old and new in options:
                brought = {k: defaults[k] for k in options.get(old, {})} | options[new]
                brought = {k: value for k, value in brought.items() if k not in layer}
                lost = [f"{k}={value} (not {values[k]})" for k, value in brought.items() if k in said and value != values[k]]
                if lost:
                    print(f"{key}={new} brings its own {', '.join(lost)}", file=sys.stderr)
                values |= brought
                said -= brought.keys()
        values |= layer
        said |= layer.keys()
    return values


def read_config(path):
    """The plain values that a config file assigns."""
    path = locate(path)
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in (ROOT / "config").glob("*.py")))
        die(f"there is no config file {path}; config/ has {known}")
    try:
        namespace = runpy.run_path(str(path))
    except Exception as error:
        die(f"{path} does not run as Python: {type(error).__name__}: {error}")
    return {k: v for k, v in namespace.items() if not (k.startswith("_") or callable(v) or isinstance(v, types.ModuleType))}


def check_key(key, defaults, where):
    if key not in defaults:
        near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.5)
        die(f"unknown setting {key!r}{where}; " + (f"did you mean {near[0]!r}?" if near else "--help lists them"))


def parse(text, default):
    """The value a command line spells: text stays text, anything else is a Python literal."""
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def convert(key, value, default):
    """The value in the default's type; a whole number may be written 1e4. Numbers are finite and never negative."""
    wanted = type(default)
    if type(value) in (int, float) and wanted in (int, float):
        if not math.isfinite(value) or value < 0:
            die(f"{key} must be a number from 0 up, not {value!r}")
        if wanted is float or value == int(value):
            return wanted(value)
    elif type(value) is wanted:
        return value
    die(f"{key} must be of type {wanted.__name__}, like {default!r}, not {value!r}")


def require(cfg, positive=(), **choices):
    """End the script unless each setting in `positive` is above 0 and each key=[...] has one of the values listed."""
    for key in positive:
        if getattr(cfg, key) <= 0:
            die(f"{key} must be above 0, not {getattr(cfg, key)}")
    for key, allowed in choices.items():
        if getattr(cfg, key) not in allowed:
            die(f"{key} must be one of {', '.join(map(str, allowed))}, not {getattr(cfg, key)!r}")


def print_help(settings):
    """The script's own words, then every setting with its default and its comment, in the order of the source."""
    print((inspect.getmodule(settings).__doc__ or "").strip(), "\n\nSettings, with their defaults:")
    for line in "".join(inspect.getsource(one) for one in settings.__mro__[:-1]).splitlines():
        assignment, _, comment = line.strip().partition("  # ")
        if line.strip().startswith("#"):
            print(f"\n{line.strip('# ')}")
        elif " = " in assignment and not assignment.startswith("_"):
            print(f"  --{assignment.strip().replace(' = ', '='):<36} {comment}")
    for key, presets in getattr(settings, "_presets", {}).items():
        print(f"\nOther defaults that {key} brings:")
        for name, brought in presets.items():
            print(f"  --{f'{key}={name}':<36} {', '.join(f'{k}={value}' for k, value in brought.items())}".rstrip())
