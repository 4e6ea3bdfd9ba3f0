"""Follow a run in Weights & Biases or MLflow: send what its folder holds and the tracker does not have yet.

    python train.py config/python_cpu.py --mlflow --wandb       # starts this beside the training
    python parts/tracking.py --run=out/python_cpu --to=mlflow         # later: for a run that was not tracked, or not to its end

The folder is the source: run.json, metrics.jsonl, eval.json, loss.png, the checkpoint and the export. A tracker only reads
along, in a process of its own, so that one that is slow, hangs or is down costs the training nothing, and gets what it missed
when it is back. out/<run>/mlflow.json and wandb.json say which run it is there, for a resumed training to continue, and what was sent.
"""

import contextlib
import html
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parts import configurator

FILES = ("run.json", "metrics.jsonl", "eval.json", "loss.png", "scores.png", "ckpt.pt")
EXPORT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


class Settings:
    run = ""  # a run's folder
    to = "mlflow"  # mlflow or wandb
    follow = False  # used by train.py itself: go on until standard input says that the training has ended


# --- for train.py and eval.py -------------------------------------------------------------------------------------------


def git(*command):
    """What git says about this code, None where there is no git or no repository."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", configurator.ROOT, *command], capture_output=True, text=True, timeout=10)
        return done.stdout.strip() if done.returncode == 0 else None


def describe(cfg, meta):
    """How a run came about, for run.json: settings, code, versions, and the data set with its hashes."""
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in ("torch", "numpy", "tokenizers", "tiktoken"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "settings": vars(cfg), "versions": versions,
        "git": {"commit": git("rev-parse", "HEAD"), "changed": None if changed is None else bool(changed)},
        "data": {split: {key: meta[split].get(key) for key in ("tokens", "bytes", "sha256")} for split in ("train", "val")},
    }  # fmt: skip


def start(name, out):
    """A process that follows the run in `out` until `finish`, or until this process is gone."""
    command = [sys.executable, __file__, f"--run={Path(out).resolve()}", f"--to={name}", "--follow"]
    return name, subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)  # Ctrl-C is for the training alone


def finish(trackers, out, how, seconds):
    """Tell the trackers how the training ended, and give them so long, all together, to send the rest."""
    for _, process in trackers:
        with contextlib.suppress(OSError):  # it may have died
            process.stdin.write(f"{how} {seconds}\n")
            process.stdin.close()
    end = time.monotonic() + seconds + 5  # in which those that are not done leave by themselves, and nothing behind
    for name, process in trackers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0))
        process.kill()  # if it has not ended
        if process.wait() and not read_json(Path(out) / f"{name}.json").get("trouble"):  # which it said itself
            complain(name, out, f"not done {seconds:.0f} s after the training")


def send(out, seconds=60):
    """Tell the trackers that know the run in `out` what is new in its folder, such as an eval.json."""
    finish([start(name, out) for name in TRACKERS if (Path(out) / f"{name}.json").exists()], out, "finished", seconds)


def complain(name, out, why, file=None):
    why = (str(why).strip() or repr(why)).splitlines()[0]
    print(f"\n{name}: {why}; all is in {out}, to be sent with: python parts/tracking.py --to={name} --run={out}", file=file or sys.stderr, flush=True)


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# --- the trackers -------------------------------------------------------------------------------------------------------


class MLflow:
    """A run in the experiment nanoNeoX, or MLFLOW_EXPERIMENT_NAME, of mlflow.db here or MLFLOW_TRACKING_URI."""

    def __init__(self, name, params, run_id, temporary):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds; as it comes, a server that hangs holds it for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow

        self.mlflow = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.chdir(configurator.ROOT)  # beside which it keeps mlruns/
            mlflow.set_tracking_uri("sqlite:///mlflow.db")
        mlflow.end_run()  # one left by an attempt that failed
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "nanoNeoX"))
        tags = {"mlflow.source.name": "train.py", "mlflow.source.git.commit": params["git.commit"]}  # not this script and today's code
        try:
            run = mlflow.start_run(run_id=run_id, run_name=None if run_id else name, tags=tags)
        except mlflow.exceptions.MlflowException as error:
            if not run_id or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = mlflow.start_run(run_name=name, tags=tags)  # another machine's store
        self.id, self.began, self.client = run.info.run_id, run.info.start_time, mlflow.MlflowClient()
        known = self.client.get_run(self.id).data.params  # they cannot be changed
        mlflow.log_params({key: value for key, value in params.items() if key not in known})
        entities, digest = mlflow.entities, str(params["data.train.sha256"])[:16]
        data = entities.Dataset(Path(params["dataset"]).name, digest, "local", json.dumps({"uri": params["dataset"]}))
        self.client.log_inputs(self.id, [entities.DatasetInput(data, [entities.InputTag("mlflow.data.context", "training")])])
        tempfile.tempdir = temporary  # only now: the lock on its store lies where all processes see it

    def log(self, records):
        metrics = [self.mlflow.entities.Metric(key, value, self.began + int(1000 * record["elapsed"]), record["step"])
                   for record in records for key, value in record.items() if isinstance(value, (int, float)) and key != "step"]  # fmt: skip
        for begin in range(0, len(metrics), 1000):  # the most it takes at once
            self.client.log_batch(self.id, metrics[begin : begin + 1000], synchronous=True)
        for record in records:
            if "sample" in record:
                self.client.log_text(self.id, record["sample"], f"samples/step_{record['step']:07}.txt")

    def summary(self, values, step):
        self.mlflow.log_metrics({key.replace("@", "_at_"): value for key, value in values.items()}, step)  # it takes no pass@1

    def files(self, paths, export, step):  # with the model it shows the metrics of its step
        for path in paths:
            self.client.log_artifact(self.id, path, "checkpoint" if path.suffix == ".pt" else None)
        if export:
            folder = Path(tempfile.gettempdir(), "export")
            folder.mkdir(exist_ok=True)
            for path in export:
                shutil.copy(path, folder)
            code = [str(configurator.ROOT / file) for file in ("model.py", "parts")]
            lines = (configurator.ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
            needs = [line.split("#")[0].strip() for line in lines if line.startswith(("torch", "numpy", "tiktoken", "tokenizers", "safetensors"))]
            self.mlflow.pyfunc.log_model(
                name="model", step=step, loader_module="parts.tracking", data_path=str(folder), code_paths=code, pip_requirements=needs)  # fmt: skip

    def close(self, how):
        self.mlflow.end_run("FINISHED" if how == "finished" else "KILLED")


def _load_pyfunc(folder):
    """What `mlflow.pyfunc.load_model` gives of a run's model: predict(prompts) completes each by up to 100 tokens.

    MLflow looks for a function of this name in the module that files() names, so that nothing is pickled."""
    import types

    import numpy as np

    from parts import tokenizer as tokenizers
    from model import NeoX

    model, tokenizer = NeoX.from_pretrained(folder).eval(), tokenizers.load(folder)
    start = [] if tokenizer.eot is None else [tokenizer.eot]

    def predict(prompts, params=None):
        ids = [start + tokenizer.encode(str(prompt)) for prompt in np.asarray(prompts).ravel()]
        return [tokenizer.decode(new) for new in model.generate(ids, 100, temperature=0.2, stop_ids=[tokenizer.eot], seed=0)]

    return types.SimpleNamespace(predict=predict)


class WandB:
    """A run in the project nanoNeoX, or WANDB_PROJECT; with WANDB_MODE=offline in wandb/ here, or WANDB_DIR."""

    def __init__(self, name, params, run_id, temporary):
        tempfile.tempdir = temporary
        os.environ |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), temporary)  # for the process that it starts
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "nanoNeoX"), name=name, id=run_id, resume="allow", config=params, allow_val_change=True,
            dir=os.environ.get("WANDB_DIR", configurator.ROOT), settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )  # fmt: skip
        self.id = self.run.id
        self.run.define_metric("*", step_metric="step")  # its own counter knows no resumed run

    def log(self, records):
        for record in records:
            record = {key: value for key, value in record.items() if value is not None}
            if "sample" in record:
                record["sample"] = self.wandb.Html(f"<pre>{html.escape(record['sample'])}</pre>")
            self.run.log(record)

    def summary(self, values, step):
        self.run.summary.update(values)

    def files(self, paths, export, step):
        artifact = self.wandb.Artifact(f"run-{self.id}", type="model")
        for path in [*paths, *export]:
            artifact.add_file(str(path))
            if path.suffix == ".png":
                self.run.log({"plot": self.wandb.Image(str(path))})
        self.run.log_artifact(artifact)

    def close(self, how):
        self.run.finish(exit_code=0 if how == "finished" else 1)


TRACKERS = {"mlflow": MLflow, "wandb": WandB}


# --- the process --------------------------------------------------------------------------------------------------------


def new_records(out, sent):
    """Lines of metrics.jsonl after those sent: {first key of a kind of line: its last step}. Updates `sent`.
    Each has "elapsed", that of the line before if need be, so that evaluations too can be drawn over time."""
    records, elapsed = [], 0.0
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:  # the last one is empty, or half written
        record = json.loads(line)
        kind, elapsed = list(record)[1], record.setdefault("elapsed", elapsed)
        if record["step"] > sent.get(kind, -1):
            sent[kind] = record["step"]
            records.append(record)
    return records


def update(tracker, out, state, ended):
    """Send what is new, and once the training has ended the files too; `state` then says that it was sent."""
    sent = dict(state.get("sent", {}))  # a copy, as the tracker may fail
    tracker.log(new_records(out, sent))
    state["sent"] = sent
    if ended:
        step = max(sent.values(), default=0)
        stamps = {name: (out / name).stat().st_mtime for name in FILES + EXPORT if (out / name).is_file()}
        fresh = lambda names: [out / n for n in names if n in stamps and state.get("files", {}).get(n) != stamps[n]]  # noqa: E731
        paths, export = fresh(FILES), fresh(EXPORT) if "model.safetensors" in stamps else []
        if out / "eval.json" in paths:
            results = read_json(out / "eval.json")
            tracker.summary({f"eval_{k}": v for k, v in results.items() if isinstance(v, (int, float)) and math.isfinite(v)}, step)
        if paths or export:
            tracker.files(paths, [out / name for name in EXPORT if name in stamps] if export else [], step)
        state["files"] = stamps


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, to=list(TRACKERS))
    out = configurator.locate(cfg.run).resolve()
    if not cfg.run or not (out / "run.json").is_file():
        configurator.die(f"--run={cfg.run} is not a run's folder with a run.json; train.py makes one")
    about, state_file = read_json(out / "run.json"), out / f"{cfg.to}.json"
    params = about["settings"] | {f"{part}.{key}": str(value) for part in ("git", "versions") for key, value in about[part].items()}
    params |= {f"data.{split}.{key}": value for split, values in about["data"].items() for key, value in values.items()}
    errors, words, ended = sys.stderr, ["finished"], threading.Event()
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # for the trackers, which do not tidy up after leave()

    def leave(code):
        temporary.cleanup()
        os._exit(code)  # no tracker's thread holds it up

    def listen():
        words[:] = sys.stdin.readline().split() or ["killed", "600"]  # how the training ended, and the seconds left to this process
        ended.set()
        time.sleep(float(words[1]))
        leave(1)

    if cfg.follow:
        errors = os.fdopen(os.dup(2), "w", encoding="utf-8")
        for standard in (1, 2):  # what trackers say of themselves would tear the training's progress bar
            os.dup2(os.open(os.devnull, os.O_WRONLY), standard)
        if hasattr(os, "nice"):
            os.nice(10)
            with contextlib.suppress(OSError):  # Linux serves sessions alike, whatever the niceness of what runs in them
                Path("/proc/self/autogroup").write_text("10")
        threading.Thread(target=listen, daemon=True).start()

    def save_state():
        with contextlib.suppress(OSError):
            state_file.with_suffix(".json.tmp").write_text(json.dumps(state) + "\n", encoding="utf-8")
            os.replace(state_file.with_suffix(".json.tmp"), state_file)

    tracker, state, pause = None, read_json(state_file), 0
    if state.pop("trouble", None):  # of another time
        save_state()
    while True:
        last = not cfg.follow or ended.wait(pause)
        try:
            if tracker is None:
                tracker = TRACKERS[cfg.to](out.name, params, state.get("id"), temporary.name)
                state = state if tracker.id == state.get("id") else {"id": tracker.id}  # a new run has got nothing yet
            update(tracker, out, state, last)
            if last:
                tracker.close(words[0])
            state.pop("trouble", None)
            pause = 5
        except (Exception, SystemExit) as error:  # whatever a tracker comes up with, all of it is said once and tried again
            if not state.get("trouble"):
                complain(cfg.to, out, f"{type(error).__name__}: {error}", errors)
            state["trouble"], pause = str(error), 30
        save_state()
        if last:
            if not cfg.follow and not state.get("trouble"):
                print(f"all of {out} is in {cfg.to}, run {state['id']}", flush=True)
            leave(1 if state.get("trouble") else 0)


if __name__ == "__main__":
    main()
