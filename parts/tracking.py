"""Experiment tracking: starts the process that sends a run to MLflow or Weights & Biases, and the
two trackers that it sends to. The process itself, also a command to type, is tools/track.py.

A tracker only reads a run's folder, from a process of its own. One that is slow, hangs or is down
costs the training nothing, and gets what it missed later.
"""

from parts.start import spawn

import contextlib
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import types
from datetime import datetime, timezone
from pathlib import Path

from parts import configurator, mlflow_model
from parts.files import read_json

# --- for train.py and eval.py ---------------------------------------------------------------------


def start(name: str, out: Path) -> tuple[str, subprocess.Popen]:
    """Start a process that sends the run in `out` to the tracker `name` until `finish` is called or
    this process is gone."""
    script = configurator.ROOT / "tools" / "track.py"
    command = [sys.executable, str(script), "follow", f"--run={Path(out).resolve()}"]
    # In a session of its own, since Ctrl-C is for the training alone.
    how = dict(stdin=subprocess.PIPE, text=True, start_new_session=True)
    # Otherwise W&B would show the load of the process that sends.
    how["env"] = os.environ | {"WANDB_X_STATS_PID": str(os.getpid())}
    return name, spawn([*command, f"--to={name}"], **how)


def finish(trackers: list[tuple[str, subprocess.Popen]], out: Path, how: str, seconds: float):
    """Tell what `start` returned how the training ended ("finished" or "stopped"), and wait up to
    `seconds`, for all of them together, while they send the rest. If it was stopped,
    they send the figures alone, since a machine that is taken away waits for nobody."""
    # More seconds, in which those that are not done clean up and leave by themselves.
    late = 0.5 if how == "stopped" else 5
    for _, process in trackers:
        with contextlib.suppress(OSError):  # it may have died
            process.stdin.write(f"{how} {seconds}\n")
            process.stdin.close()
    deadline = time.monotonic() + seconds + late
    for name, process in trackers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0))
        process.kill()  # if it is still there
        failed = process.wait()
        state = read_json(Path(out) / f"{name}.json")
        if state.get("trouble"):
            continue  # the process itself has told it
        if failed:
            complain(name, out, f"not done {seconds:.1f} s after the training")
        elif how == "stopped":
            complain(name, out, "got the figures of the stopped training, not its files")
        else:
            print(f"all of {out} is {state.get('place', f'in {name}')}", flush=True)


def send(out: Path, seconds: float = 60):
    """Send what is new in the folder of a tracked run, such as its eval.json, to its trackers."""
    known = [name for name in TRACKERS if (Path(out) / f"{name}.json").exists()]
    finish([start(name, out) for name in known], out, "finished", seconds)


def finite_numbers(values: dict) -> dict:
    """The numbers among the values, but for those that no picture or table can show."""
    numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
    return {key: value for key, value in numbers.items() if abs(value) < 1e300}


def complain(name: str, out: Path, why: str, file=None):
    """Print one line that says why a tracker did not get everything and how to send it later."""
    why = why.strip().splitlines()[0].rstrip(".")
    if "API key" in why:
        why = "not logged in: run `wandb login`, or set WANDB_MODE=offline"
    command = f"python tools/track.py --to={name} --run={out}"
    line = f"\n{name}: {why}; everything is in {out}, send it later with: {command}"
    print(line, file=file or sys.stderr, flush=True)


# --- the trackers ---------------------------------------------------------------------------------
# A tracker is made from the run's name, its params, its id there or None, when the training began
# (seconds since 1970), and a temporary folder. It has `id`, log(records), summary(values, step),
# files(paths, export, step), see(), the address or command that shows the run, place(), which says
# where it is now, and close(how, ended).


class MLflow:
    """A run in the experiment nanoNeoX, or MLFLOW_EXPERIMENT_NAME, stored in mlflow.db in the
    repository, or MLFLOW_TRACKING_URI."""

    def __init__(self, name: str, params: dict, run_id: str | None, began: float, temporary: str):
        """Continue the run run_id or, where there is none, start one. temporary: a folder."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # In seconds. With MLflow's defaults a server that hangs holds it up for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow
        from mlflow.tracking.context.registry import resolve_tags

        self.mlflow, self.name, self.unregistered = mlflow, name, ""
        self.local = "MLFLOW_TRACKING_URI" not in os.environ  # which set_tracking_uri changes
        if self.local:
            os.chdir(configurator.ROOT)  # mlruns/ is created in the working directory
            mlflow.set_tracking_uri("sqlite:///mlflow.db")
        mlflow.end_run()  # left over from an attempt that failed
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "nanoNeoX")
        self.experiment = mlflow.set_experiment(experiment).experiment_id
        self.client = mlflow.MlflowClient()
        try:
            run = self.client.get_run(run_id) if run_id else None
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None  # run_id is in another machine's store
        if not run:
            # MLflow would name this process, today's commit, and now as the beginning.
            tags = {"mlflow.source.name": "train.py"}
            tags = resolve_tags(tags | {"mlflow.source.git.commit": params["git.commit"]})
            run = self.client.create_run(self.experiment, int(1000 * began), tags, name)
        self.id, self.began = run.info.run_id, run.info.start_time
        mlflow.start_run(run_id=self.id)
        if note := params.get("note"):
            self.client.set_tag(self.id, "mlflow.note.content", note)
        known = run.data.params  # which cannot be changed
        mlflow.log_params({key: value for key, value in params.items() if key not in known})
        self.log_dataset(params["dataset"], params["data.train.sha256"])
        # Only now, because the lock file of its store must be where all processes look for it.
        tempfile.tempdir = temporary

    def log_dataset(self, dataset: str, sha256: str):
        entities, source = self.mlflow.entities, json.dumps({"uri": dataset})
        data = entities.Dataset(Path(dataset).name, str(sha256)[:16], "local", source)
        tag = entities.InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.id, [entities.DatasetInput(data, [tag])])

    def log(self, records: list[dict]):
        metrics = []
        for record in records:
            step, now = record["step"], self.began + int(1000 * record["elapsed"])
            for key, value in record.items():
                if isinstance(value, (int, float)) and key not in ("step", "time"):
                    metrics.append(self.mlflow.entities.Metric(key, value, now, step))
        for begin in range(0, len(metrics), 1000):  # MLflow's limit for one call
            self.client.log_batch(self.id, metrics[begin : begin + 1000], synchronous=True)
        for record in records:
            if "sample" in record:
                file = f"samples/step_{record['step']:07}.txt"
                self.client.log_text(self.id, record["sample"], file)

    def summary(self, values: dict, step: int):
        # MLflow allows no @ in a name, as in pass@1.
        values = {key.replace("@", "_at_"): value for key, value in values.items()}
        self.mlflow.log_metrics(values, step)

    def files(self, paths: list[Path], export: list[Path], step: int):
        """Upload files, and the exported model, which MLflow shows with the metrics of `step`."""
        for path in paths:
            self.client.log_artifact(self.id, path, "checkpoint" if path.suffix == ".pt" else None)
        if export and not self.is_registered(step):
            self.register(self.log_model(export, step), step)

    def log_model(self, export: list[Path], step: int) -> str:
        """Store the exported model as one that MLflow loads and serves. Returns its id."""
        folder = Path(tempfile.gettempdir(), "export")
        folder.mkdir(exist_ok=True)
        for path in export:
            shutil.copy(path, folder)
        text = (configurator.ROOT / "requirements.txt").read_text(encoding="utf-8")
        needed = "torch numpy tiktoken tokenizers safetensors psutil pydantic tqdm".split()
        lines = [line for line in text.splitlines() if line.startswith(tuple(needed))]
        code = ("model.py", "optim.py", "parts")
        contents = dict(
            loader_module="parts.mlflow_model",
            data_path=str(folder),
            code_paths=[str(configurator.ROOT / name) for name in code],
            pip_requirements=[line.split("#")[0].strip() for line in lines],
            signature=mlflow_model.signature(),
            input_example=mlflow_model.EXAMPLE,
        )

        def save_model(path, **how):
            self.mlflow.pyfunc.save_model(path, mlflow_model=how["mlflow_model"], **contents)

        # pyfunc.log_model would load the model to try the example, while the training has its own.
        flavor = types.SimpleNamespace(save_model=save_model)
        how = dict(name="model", step=step, validate_serving_input=False)
        return self.mlflow.models.Model.log(None, flavor, **how).model_id

    def registered_name(self) -> str:
        return "nanoNeoX-" + re.sub(r"[^\w-]", "-", self.name)

    def is_registered(self, step: int) -> bool:
        """Whether the registry has a version of this run's model at this step."""
        with self.registry():
            found = self.client.search_model_versions(f"name = '{self.registered_name()}'")
            return any(v.run_id == self.id and v.tags.get("step") == str(step) for v in found)
        return False

    def register(self, model_id: str, step: int):
        """Make the logged model a version in the registry."""
        how = dict(await_registration_for=None, tags={"step": str(step)})
        with self.registry():
            self.mlflow.register_model(f"models:/{model_id}", self.registered_name(), **how)

    @contextlib.contextmanager
    def registry(self):
        """A store may have none. Then `place` says so, and everything else is sent."""
        try:
            yield
            self.unregistered = ""
        except self.mlflow.exceptions.MlflowException as error:
            reason = configurator.first_line(error)
            self.unregistered = f", but not in its model registry ({reason})"

    def see(self) -> str:
        uri = re.sub(r"(?<=:)//[^/]*@", "//", self.mlflow.get_tracking_uri())  # no password
        page = f"/#/experiments/{self.experiment}/runs/{self.id}"
        page += "?workflowType=machine_learning"  # else MLflow 3 shows its pages for chat agents
        if uri.startswith("http"):
            return uri.rstrip("/") + page
        if self.local:  # a person may be in another folder
            uri = f"sqlite:///{(configurator.ROOT / 'mlflow.db').as_posix()}"
        command = f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
        return f"{command}\n    and open http://127.0.0.1:5000{page}"

    def place(self) -> str:
        return f"in mlflow{self.unregistered}, run {self.name}: {self.see()}"

    def close(self, how: str, ended: float):
        status = "FINISHED" if how == "finished" else "KILLED"
        # mlflow.end_run knows no other time than now.
        self.client.set_terminated(self.id, status, int(1000 * ended))


class WandB:
    """A run in the project nanoNeoX, or WANDB_PROJECT. With WANDB_MODE=offline it is kept in wandb/
    in the repository, or WANDB_DIR."""

    def __init__(self, name: str, params: dict, run_id: str | None, began: float, temporary: str):
        """Continue the run run_id or, where there is none, start one. temporary: a folder."""
        tempfile.tempdir = temporary
        if "WANDB_X_STATS_PID" not in os.environ:  # of a training that goes on: see `start`
            os.environ["WANDB_X_DISABLE_STATS"] = "true"
        # For the process that it starts.
        os.environ |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), temporary)
        import wandb
        from wandb import init  # ImportError if `wandb` is only the folder of runs in WANDB_DIR

        self.wandb = wandb
        self.run = init(
            project=os.environ.get("WANDB_PROJECT", "nanoNeoX"),
            name=name,
            id=run_id,
            resume="allow",
            config=params,
            notes=params.get("note") or None,
            allow_val_change=True,
            dir=os.environ.get("WANDB_DIR", configurator.ROOT),
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=30,
                program="train.py",
                program_relpath="train.py",
            ),
        )
        self.id, self.began = self.run.id, began
        self.run.define_metric("*", step_metric="step")  # its own counter ignores resuming

    def log(self, records: list[dict]):
        for record in records:
            record = {key: value for key, value in record.items() if value is not None}
            if "time" in record:
                record["_timestamp"] = record.pop("time")
            if "sample" in record:
                record["sample"] = self.wandb.Html(f"<pre>{html.escape(record['sample'])}</pre>")
            self.run.log(record)

    def summary(self, values: dict, step: int):
        self.run.summary.update(values)

    def files(self, paths: list[Path], export: list[Path], step: int):
        artifact = self.wandb.Artifact(f"run-{self.id}", type="model")
        for path in [*paths, *export]:
            artifact.add_file(str(path))
            if path.suffix == ".png":
                self.run.log({"plot": self.wandb.Image(str(path))})
        self.run.log_artifact(artifact)

    def see(self) -> str:
        if self.run.offline:
            folders = f"{shlex.quote(str(Path(self.run.settings.sync_dir).parent))}/offline-run-*"
            return f"wandb sync {folders}-{self.id}"
        return self.run.url or ""  # none where WANDB_MODE=disabled

    def place(self) -> str:
        if not (see := self.see()):
            return "not in wandb, since WANDB_MODE=disabled"
        return f"{'ready for wandb, not sent yet' if self.run.offline else 'in wandb'}: {see}"

    def close(self, how: str, ended: float):
        # W&B's own start and runtime are those of the process that sends, whatever it is told.
        times = {"training_began": self.began, "training_ended": ended}
        for key, seconds in times.items():
            moment = datetime.fromtimestamp(seconds, timezone.utc)
            self.run.summary[key] = moment.isoformat(timespec="seconds")
        self.run.summary["training_minutes"] = (ended - self.began) / 60
        self.run.finish(exit_code=0 if how == "finished" else 1)


TRACKERS = {"mlflow": MLflow, "wandb": WandB}
