"""Settings, and a person's mistakes.

Settings: a script's defaults, then config files, then --key=value; the later one wins. A script
states its defaults in a class, one a line, with the comment that `--help` prints:

    class Settings:
        batch_size = 32  # sequences per step
        lr = 1e-3  # peak learning rate

    cfg = configurator.load(Settings)

`python train.py config/python_cpu.py --lr=3e-4` then gives cfg.lr == 3e-4. A config file is plain
Python, run in its own namespace; only the values that it assigns are used.

A class may also state presets: with _presets = {"optimizer": {"lion": {"lr": 3e-4}}}, whoever
changes optimizer to lion gets lr=3e-4 too, even if lr was set before. A value for lr that stands
beside optimizer=lion in the same file or command line, or comes later, still wins.

A default of None is a switch that the script decides by itself unless it is given: --key,
--key=True or --key=False; --key=auto gives it back.

A setting whose name is a word of Python has an underscore behind it: try_ = "" is --try.

A class that names its script in _script can be inherited by other scripts: they accept all its
settings, and their --help refers to that script instead of listing them again.
"""

from parts.start import say, speaks

import ast
import difflib
import inspect
import keyword
import os
import re
import reprlib
import runpy
import sys
import time
import types
import warnings
from collections import ChainMap
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

# The repository. data/ and out/ are here, whatever the working directory is.
ROOT = Path(__file__).resolve().parent.parent
# The largest numbers that a setting may have: what numpy and torch take as a seed, what fits in 32
# bits, and what is far from float32's limits, upwards and downwards, when it is multiplied.
MAX_SEED, MAX_INT, MAX_FLOAT = 2**63 - 1, 2**31 - 1, 1e30
MAX_TEXT = 100_000  # characters of a setting
# Control characters but for white space, and bytes of the command line that were not UTF-8.
NOT_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


# --- a person's mistakes --------------------------------------------------------------------------


def die(message: object) -> NoReturn:
    """End the script because of a person's mistake: one line on standard error, exit code 2."""
    if not speaks():  # most mistakes are all processes' own: torchrun ends this one after the first
        time.sleep(10)
    tell(message)
    sys.exit(2)


def tell(message: object):
    """Print what is wrong, in one line."""
    text = printable(" ".join(str(message).split()))
    text = text if len(text) <= 600 else f"{text[:400]} ... {text[-150:]}"
    print(f"error: {text}", file=sys.stderr)


def printable(text: str) -> str:
    """The text with what a terminal would obey rather than show, such as escape sequences in a
    file name or a foreign file, written as Python writes it: \\x1b."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextmanager
def mistakes():
    """Turn a ValueError or OSError raised inside into `die`.

    Put it around reading what a person gave, never around the work itself."""
    try:
        yield
    except (ValueError, OSError) as error:
        die(error)


def locate(path: str | Path) -> Path:
    """The file or folder that a person named, ~ being the home folder: relative to the working
    directory or, if there is none, to the repository."""
    path = os.path.expanduser(path)
    return Path(path) if os.path.exists(path) else ROOT / path


def dataset_folder(name: str) -> Path:
    """The folder of a data set: data/<name> or, where there is none, the one at that path."""
    name = os.path.expanduser(name)
    inside, there = ROOT / "data" / name, os.path.exists(os.path.join(name, "meta.json"))
    return Path(os.path.abspath(name)) if there and not os.path.exists(inside) else inside


def counted(count: int, name: str) -> str:
    """A number of things: 1 document, 34 e-mail addresses."""
    plural = "es" if name.endswith("s") else "s"
    return f"{count:,} {name}{plural * (count != 1)}"


def first_line(error: BaseException) -> str:
    """What an error says, in one short line: libraries may fill a page."""
    return next((line for line in str(error).splitlines() if line.strip()), "no reason given")[:200]


def newest_run() -> Path | None:
    """The folder of the run in out/ that was saved last; None if there is none."""
    saved = [(file.stat().st_mtime, file.parent) for file in (ROOT / "out").glob("*/ckpt.pt")]
    return max(saved)[1] if saved else None


# --- settings -------------------------------------------------------------------------------------


def load(settings: type, argv: list[str] | None = None) -> types.SimpleNamespace:
    """The class's defaults, overridden by argv (default: the command line). Ends the script if a
    setting is unknown or has a wrong value, and after printing --help."""
    argv = sys.argv[1:] if argv is None else argv
    if hasattr(sys.stdout, "reconfigure"):
        # A character that this terminal cannot show must not end a run.
        # And each line comes at once, also through a pipe: a run may take hours.
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    if "--help" in argv or "-h" in argv:
        print_help(settings)
        sys.exit(0)
    defaults = {
        key: value
        for base in reversed(settings.__mro__[:-1])  # all but object, base classes first
        for key, value in vars(base).items()
        if not key.startswith("_")
    }
    # In the order of the command line: the values given before a config file, those in the file,
    # those given after it, and so on.
    layers = [{}]
    for arg in argv:
        if arg.startswith("--"):
            key, given, text = arg[2:].partition("=")
            key += "_" * keyword.iskeyword(key)  # a class can have no attribute `try`
            check_key(key, defaults, "")
            if given and isinstance(defaults[key], tuple):  # each --key=text adds one
                before = ChainMap(*reversed(layers), defaults)[key]
                text = text.replace("\\n", "\n").replace("\\t", "\t")
                layers[-1][key] = (*before, text)
            elif given:
                layers[-1][key] = convert(key, parse(text, defaults[key]), defaults[key])
            elif is_switch(defaults[key]):
                layers[-1][key] = True
            else:
                die(f"--{key} needs a value: write --{key}={defaults[key] or '...'}")
        elif arg.endswith(".py"):
            layers += [{}, {}]
            for key, value in read_config(arg).items():
                check_key(key, defaults, f" in {arg}")
                layers[-2][key] = convert(key, value, defaults[key])
        else:
            known = [f"{arg}.py"] if os.path.isfile(ROOT / f"{arg}.py") else []
            known += [f"--{arg}"] if "=" in arg else []
            near = difflib.get_close_matches(arg, known, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            die(f"{arg!r} is neither a config file (*.py) nor --key=value{hint}")
    values = combine(defaults, layers, getattr(settings, "_presets", {}))
    return types.SimpleNamespace(**values)


def combine(defaults: dict, layers: list[dict], presets: dict) -> dict:
    """The defaults overridden by each layer in turn.

    A layer that changes a key of `presets` takes back what the old value's preset set and applies
    the new one's, except for keys that the layer itself sets. If that overrides a value that was
    given before, standard error says so."""
    values, given = dict(defaults), set()
    for layer in layers:
        for key, options in presets.items():
            old, new = values[key], layer.get(key, values[key])
            if new == old or new not in options:
                continue
            preset = {k: defaults[k] for k in options.get(old, {})} | options[new]
            preset = {k: value for k, value in preset.items() if k not in layer}
            lost = [k for k, value in preset.items() if k in given and value != values[k]]
            if lost:
                changes = ", ".join(f"{k}={preset[k]} (not {values[k]})" for k in lost)
                say(f"{key}={new} brings its own {changes}")
            values |= preset
            given -= preset.keys()
        values |= layer
        given |= layer.keys()
    return values


def read_config(arg: str) -> dict:
    """The plain values that a config file assigns."""
    path = locate(arg)
    if not os.path.isfile(path):
        known = ", ".join(sorted(file.name for file in (ROOT / "config").glob("*.py")))
        die(f"there is no config file {path}; config/ has {known}")
    try:
        namespace = runpy.run_path(str(path))
    except KeyboardInterrupt:  # Ctrl-C is for us
        raise
    except BaseException as error:  # the file may raise anything, also by sys.exit
        die(f"{path} does not run as Python: {type(error).__name__}: {shown(error, str)}")
    return {
        key: value
        for key, value in namespace.items()
        if isinstance(key, str)
        and not (key.startswith("_") or callable(value) or isinstance(value, types.ModuleType))
    }


def shown(value, text: Callable[[object], str] = reprlib.repr) -> str:
    """A value from a config file, shortened, or its text; its own code may fail in saying it, and
    so does Python for a number of 5,000 digits."""
    try:
        return text(value)
    except Exception:
        return f"something of type {type(value).__name__}"


def check_key(key: str, defaults: dict, where: str):
    if key not in defaults:
        near = difflib.get_close_matches(key, defaults, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "--help lists them"
        die(f"unknown setting {key!r}{where}; {hint}")


def is_switch(default) -> bool:
    return default is None or isinstance(default, bool)


def parse(text: str, default):
    """The value written on the command line: text stays text, the rest is a Python literal."""
    if isinstance(default, str):
        return text
    if is_switch(default):
        switch = {"true": True, "1": True, "false": False, "0": False}
        return (switch | {"auto": None} if default is None else switch).get(text.lower(), text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own, about things like 1if
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def convert(key: str, value, default):
    """The value in the default's type; a whole number may be written as 1e4. Ends the script if
    the type is wrong, a number is negative, not finite or too large, or a text is too long or has
    control characters."""
    wanted, given = bool if default is None else type(default), shown(value)
    if default is value is None:
        return value
    if type(value) in (int, float) and wanted in (int, float):
        most = MAX_FLOAT if wanted is float else MAX_SEED if key == "seed" else MAX_INT
        if not 0 <= value <= most:
            die(f"{key} must be a number from 0 up, and at most {most:,}, not {given}")
        if wanted is float or value == int(value):
            return wanted(value)
    elif type(value) is wanted:
        for text in (value,) if wanted is str else value if wanted is tuple else ():
            if type(text) is not str:
                die(f"{key} must be a list of texts, not {given}")
            if len(text) > MAX_TEXT:
                die(f"{key} may have {MAX_TEXT:,} characters, not {len(text):,}")
            if NOT_TEXT.search(text):
                die(f"{key} holds control characters or is not UTF-8: {given}")
        return value
    like = "True, False or auto" if default is None else repr(default)
    die(f"{key} must be of type {wanted.__name__}, like {like}, not {given}")


def require(cfg, positive=(), most=None, **choices):
    """End the script unless each setting in `positive` is above 0, each in `most` is at most what
    stands there, and each in `choices` has one of the values listed for it."""
    for key in positive:
        if getattr(cfg, key) <= 0:
            die(f"{key} must be above 0, not {getattr(cfg, key)}")
    for key, limit in (most or {}).items():
        if getattr(cfg, key) > limit:
            die(f"{key} must be at most {limit}, not {getattr(cfg, key)}")
    for key, allowed in choices.items():
        if getattr(cfg, key) not in allowed:
            given = shown(getattr(cfg, key))
            die(f"{key} must be one of {', '.join(map(str, allowed))}, not {given}")


def print_help(settings: type):
    """The script's docstring, then its settings with defaults and comments, in source order; of one
    that it states anew for itself, only that."""
    print((inspect.getmodule(settings).__doc__ or "").strip())
    print("\nSettings, with their defaults:")
    listed = set()
    for base in settings.__mro__[:-1]:
        script = vars(base).get("_script")
        if script and base is not settings:
            print(
                f"\nAll settings of {script} may be given too: python {script} --help lists them."
            )
        else:
            print_settings(base, listed)
            listed |= vars(base).keys()


def print_settings(base: type, listed: set[str]):
    """The settings that one class states, but for those listed already, and its presets."""
    for line in inspect.getsource(base).splitlines():
        assignment, _, comment = line.strip().partition("  # ")
        if assignment.startswith("#"):
            print(f"\n{line.strip('# ')}")
        elif " = " in assignment and not assignment.startswith("_"):
            key, _, default = assignment.partition(" = ")
            if key not in listed:
                default = "auto" if default == "None" else default
                shown_as = key.rstrip("_")
                print(f"  --{f'{shown_as}={default}':<36} {comment}")
    for key, presets in vars(base).get("_presets", {}).items():
        print(f"\nOther defaults that {key} brings:")
        for name, preset in presets.items():
            values = ", ".join(f"{k}={value}" for k, value in preset.items())
            print(f"  --{f'{key}={name}':<36} {values}".rstrip())
