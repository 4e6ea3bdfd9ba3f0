"""For notebooks: run this repository's scripts from a cell and see what they print, watch a
training as it learns, keep a copy of a run elsewhere.

A script that is started here ends with the kernel, so that nothing goes on in secret: on Linux it
gets SIGTERM, upon which a training saves; elsewhere it ends at the next line that it prints."""

import codecs
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from model import NeoXConfig
from parts import configurator, plots
from parts.checkpoints import newest_checkpoint
from parts.files import Lock, read_json, unused
from parts.runs import read_metrics, refuse_foreign_files, run_folder

# Settings that do not make a training another one.
INCIDENTAL = set(
    """init_from new_data note device threads compile wandb mlflow tracker_wait save_interval
    save_minutes keep""".split()
)

SHAPE = NeoXConfig.__dataclass_fields__
HERE = f"{configurator.ROOT}{os.sep}"  # says nothing to the reader of a notebook


class Failed(RuntimeError):
    """A script that ended with an error. A notebook shows the message without a traceback."""

    def _render_traceback_(self):
        return [str(self)]


@contextlib.contextmanager
def mistakes():
    """A person's mistake, as `Failed`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise Failed(str(error)) from None


class Screen:
    """Shows a script's output in a cell: lines as they come, and the last state of a progress bar.
    Outside a notebook, as in a terminal."""

    def __init__(self):
        self.text, self.rest, self.kept, self.shown_at = "", "", None, 0.0
        try:
            from IPython import get_ipython
            from IPython.display import display

            self.display = display if get_ipython() is not None else None
        except ImportError:
            self.display = None

    def add(self, text: str):
        self.text += text
        *pieces, self.rest = re.split(r"(?<=\n)|(?=\r)", self.rest + text.replace("\r\n", "\n"))
        lines = (piece.lstrip("\r") for piece in pieces if piece.endswith("\n"))
        print("".join(lines).replace(HERE, ""), end="", flush=True)
        bars = [piece for piece in [*pieces, self.rest] if piece[:1] == "\r" and piece[-1] != "\n"]
        bars = [bar.strip() for bar in bars if bar.strip()]
        if bars and time.monotonic() > self.shown_at + 0.5:
            self.show_bar(bars[-1])

    def show_bar(self, bar: str):
        self.shown_at = time.monotonic()
        if self.display is None:
            print(f"\r{bar}", end="", flush=True)
        else:
            self.kept = self.show(self.kept, {"text/plain": bar})

    def show(self, handle, data: dict):
        """Put something into the cell, or in the place of what `handle` stands for."""
        if handle is None:
            return self.display(data, raw=True, display_id=True)
        handle.update(data, raw=True)
        return handle

    def end(self):
        if self.kept is not None:
            self.kept.update({"text/plain": ""}, raw=True)


def start(script: str, **how) -> subprocess.Popen:
    """`python script`, in the repository's folder."""
    with mistakes():
        if not (words := shlex.split(script)):
            raise ValueError("name a script, such as sample.py")
    command = [sys.executable, *words]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
    environment.pop("MPLBACKEND", None)  # the notebook's own, which a script cannot draw with
    if sys.platform == "linux":
        import ctypes

        prctl = ctypes.CDLL(None).prctl
        how["preexec_fn"] = lambda: prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    out = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with mistakes():
        return subprocess.Popen(command, cwd=configurator.ROOT, env=environment, **out, **how)


def run(script: str, each=lambda: None) -> str:
    """Run a script, such as "eval.py --ckpt=out/lesson", and show its output as it comes.

    each: called now and then meanwhile. Returns the output. `Failed` if the script fails; when the
    cell is stopped, the script is, and a training saves."""
    screen, process = Screen(), start(script)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = time.monotonic()
    try:
        while data := process.stdout.read1(1 << 16):
            screen.add(decoder.decode(data))
            if time.monotonic() > last + 1:
                each()
                last = time.monotonic()
        process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            screen.add(decoder.decode(process.communicate(timeout=20)[0]))
        process.kill()
        raise
    finally:
        screen.end()
    each()
    if process.returncode:
        lines = [line for line in re.split(r"[\r\n]", screen.text) if line.strip()]
        reason = lines[-1].strip().replace(HERE, "") if lines else "it printed nothing"
        raise Failed(f"{shlex.split(script)[0]} ended with code {process.returncode}: {reason}")
    return screen.text


def train(settings: str) -> list[dict]:
    """Run train.py with these settings, and draw its losses while it trains.

    A run that was stopped or cut off goes on; one that is finished is not trained again. With other
    settings than the run in out_dir has, a new one begins, and the old one is set aside. Returns
    the lines of its metrics.jsonl."""
    out = wait_for(settings)
    screen, picture, drawn = Screen(), None, None

    def draw():
        nonlocal picture, drawn
        lines = metrics(out)
        if screen.display is None or not lines or len(lines) == drawn:
            return
        drawn = len(lines)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, out.name, "loss.png")
            if plots.losses(lines, file):
                picture = screen.show(picture, {"image/png": file.read_bytes()})

    run(f"train.py {settings}{resumption(settings, out)}", draw)
    return metrics(out)


def asked(settings: str) -> dict:
    """What train.py makes of these settings. `Failed` where it would refuse them."""
    import train as script  # torch takes its time, and not every cell needs it

    try:
        with mistakes():
            words = shlex.split(settings)
        return vars(script.read_settings(argv=words))
    except SystemExit:
        raise Failed("train.py does not take these settings; the line above says why") from None


def wait_for(settings: str, seconds: float = 30) -> Path:
    """The run's folder, once no other process writes to it: one whose kernel was just killed is
    still saving."""
    until = time.monotonic() + seconds
    with mistakes():
        out = run_folder(asked(settings)["out_dir"])
    while (out / "lock").exists():
        try:
            Lock(out).file.close()
            break
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise Failed(str(error)) from None
            time.sleep(0.5)
    return out


def resumption(settings: str, out: Path) -> str:
    """The setting that makes train.py go on with the run in `out`, if it is the same training."""
    if not any(out.glob("ckpt*.pt")):
        return ""
    now, before = asked(settings), read_json(out / "run.json").get("settings")
    if now["init_from"] == "resume":
        return ""
    if before is None:  # somebody removed run.json, but a checkpoint has the settings too
        with mistakes():
            before = newest_checkpoint(out)[0]["settings"]
    differ = {
        key: f"{key}={before[key]}, not {value}"
        for key, value in now.items()
        if key not in INCIDENTAL | {"out_dir"} and before.get(key, value) != value
    }
    if not now["vocab_size"]:  # the data set's, which run.json knows and the settings do not
        differ.pop("vocab_size", None)
    if now["init_from"] not in ("scratch", "auto", "resume"):  # weights that bring their shape
        differ = {key: text for key, text in differ.items() if key not in SHAPE}
    if not differ:
        return " --init_from=resume"
    print(
        f"The run in {out.name} has {'; '.join(differ.values())}: a new run begins. (To train the "
        "old one longer, add --init_from=resume.)"
    )
    return ""


def metrics(run: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl: a dict for each; none if there is no such run."""
    with mistakes():
        return read_metrics(configurator.locate(run), sys.maxsize)


class Server:
    """serve.py in the background, at `url`, until `stop` or the kernel's end."""

    def __init__(self, settings: str):
        self.process, self.output = start(f"serve.py {settings}"), ""
        while line := self.process.stdout.readline().decode(errors="replace"):
            self.output += line
            if found := re.search(r" on (http://\S+)", line):
                self.url = found[1]
                break
        else:
            self.process.wait()
            raise Failed(f"serve.py did not start: {self.output.strip() or 'it printed nothing'}")
        threading.Thread(target=self.process.stdout.read, daemon=True).start()  # lest it fill up

    def stop(self):
        self.process.terminate()
        self.process.wait()


def serve(settings: str = "") -> Server:
    """Start serve.py; it answers when this returns."""
    return Server(settings)


class Mirror:
    """Copies a run's files to another folder, such as one on Google Drive, when they change, in a
    thread of its own: the training never waits for it. Only a folder that holds a run, or nothing,
    is written to."""

    def __init__(self, run: Path, copy: Path, seconds: float):
        """ValueError or OSError where the copy may not be, or the run is being trained."""
        refuse_foreign_files(copy)
        self.run, self.copy, self.seconds = run, copy, seconds
        self.ending, self.troubled = threading.Event(), False
        self.copied: dict[str, tuple] = {}  # of each file, which version of it the copy has
        self.bring_back()
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def bring_back(self):
        """Where the copy is ahead, as on a fresh machine, the run begins with it. A run of another
        beginning stays as it is; then it is the copy that is set aside."""
        ours, theirs = self.run / "ckpt.pt", self.copy / "ckpt.pt"
        empty = not self.run.is_dir() or not any(self.run.iterdir())
        if not theirs.is_file() or not empty and began(self.run) != began(self.copy):
            return
        # Some file systems count time by two seconds.
        if ours.is_file() and theirs.stat().st_mtime <= ours.stat().st_mtime + 2:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.run)  # no training may write there meanwhile
        try:
            self.transfer(self.copy, self.run)
        finally:
            lock.release()
        self.copied = {file.name: version(file.stat()) for file in self.run.iterdir()}
        print(f"{self.copy} was brought back to {self.run}".replace(HERE, ""))

    def follow(self):
        while not self.ending.wait(self.seconds):
            self.update()

    def update(self):
        try:
            if not self.run.is_dir():
                return
            if (self.copy / "run.json").is_file() and began(self.copy) != began(self.run):
                aside = self.copy.rename(unused(self.copy))
                self.copied = {}
                print(f"{self.copy} held another run; it is now {aside}")
            self.transfer(self.run, self.copy)
            self.troubled = False
        except OSError as error:
            if not self.troubled:
                print(f"{self.copy} could not be written, the training goes on: {error}")
            self.troubled = True

    def transfer(self, source: Path, target: Path):
        """Copy what changed, whole files only, the checkpoint last: it needs all the others."""
        target.mkdir(parents=True, exist_ok=True)
        files = [file for file in source.iterdir() if file.is_file() and wanted(file.name)]
        for file in sorted(files, key=lambda file: (file.suffix == ".pt", file.name)):
            part = target / f"{file.name}.tmp"
            with open(file, "rb") as old:  # stays this version, whatever the training saves now
                info = os.fstat(old.fileno())
                there = (target / file.name).is_file()
                if there and self.copied.get(file.name) == version(info):
                    continue
                part.unlink(missing_ok=True)
                with open(part, "xb") as new:
                    shutil.copyfileobj(old, new, 1 << 20)
            os.utime(part, ns=(info.st_atime_ns, info.st_mtime_ns))
            os.replace(part, target / file.name)
            self.copied[file.name] = version(info)

    def stop(self):
        """Copy what is new, and end."""
        self.ending.set()
        self.thread.join()
        self.update()


def version(info: os.stat_result) -> tuple:
    return info.st_size, info.st_mtime_ns, info.st_ino


def wanted(name: str) -> bool:
    """Not the lock, not files that are being written, not the checkpoints before the last one."""
    return name != "lock" and not name.endswith(".tmp") and not re.match(r"ckpt\.\d", name)


def began(folder: Path):
    """When the run in a folder began, which tells one run from another."""
    return read_json(folder / "run.json").get("began")


mirrors: dict[Path, Mirror] = {}  # those of this kernel, by the copy's folder


def mirror(run: str, copy: str, seconds: float = 30) -> Mirror:
    """Keep a copy of the run's files in another folder, looking for changes every so many seconds,
    until `.stop()`. If that folder is ahead, as after a machine was lost, it is brought back.
    `Failed` where the folder holds anything but a run."""
    with mistakes():
        source, target = run_folder(run), run_folder(copy)
        if source == target:
            raise ValueError(f"{copy} is the run itself; name another folder for its copy")
        if target in mirrors:  # the cell is run again
            mirrors.pop(target).stop()
        mirrors[target] = Mirror(source, target, seconds)
    return mirrors[target]
