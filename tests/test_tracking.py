"""Runs tracked by the real MLflow and the real W&B: read back, resumed, and with trackers that fail
in every way."""

import functools
import http.server
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from datetime import datetime

import pytest
from conftest import ROOT, TINY, in_process, run

NOTE = "does a tracker get it all?"
SHORT = (*TINY, "--max_iters=20", "--eval_interval=10", "--sample_prompt=def", "--sample_tokens=5")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """No telemetry, no W&B server, and nothing left behind in the folder for temporary files."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            monkeypatch.setenv(name, str(tmp_path))
        monkeypatch.setenv("TMPDIR", temporary)
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        yield
        lock = "db_init_lock"  # MLflow's, one for each store
        assert not [name for name in os.listdir(temporary) if not name.startswith(lock)]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An MLflow server on loopback with a SQLite store: its process, and the client of its API."""
    mlflow = pytest.importorskip("mlflow")
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}"]
    command += ["--workers=1", f"--backend-store-uri=sqlite:///{tmp_path / 'store.db'}"]
    command += [f"--artifacts-destination={tmp_path / 'artifacts'}"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for _ in range(1800):
        try:
            urllib.request.urlopen(uri + "/health", timeout=1)
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    yield process, mlflow.MlflowClient()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def milliseconds(*seconds):
    return tuple(int(1000 * value) for value in seconds)


def curve(out, key):
    return [(m["step"], m[key]) for m in lines(out) if m.get(key) is not None]


def run_id(out, tracker):
    return json.loads((out / f"{tracker}.json").read_text())["id"]


def wandb_records(path):
    """The records of a .wandb file: protocol buffers in LevelDB's log format, in blocks of 32 KiB,
    after 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, part, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        room = 2**15 - position % 2**15
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            records.append(Record.FromString(part))
            part = b""
    return records


def test_both_trackers_get_all_of_a_run_that_is_stopped_resumed_and_evaluated(
    dataset, tmp_path, server, monkeypatch, capfd
):
    pytest.importorskip("wandb")
    out, (_, client), before = tmp_path / "run", server, time.time()
    settings = [f"--dataset={dataset}", f"--out_dir={out}", *SHORT, "--lr_schedule=constant"]
    settings += ["--tracker_wait=240", "--mlflow", "--wandb", f"--note={NOTE}"]
    address = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//me:secret@"))
    assert in_process(monkeypatch, *settings, "--max_iters=10") == 0
    first = run_id(out, "mlflow"), run_id(out, "wandb")
    assert in_process(monkeypatch, *settings, "--init_from=auto") == 0
    evaluated = run("eval.py", f"--ckpt={out}", f"--dataset={dataset}", "--tasks=loss")
    printed, errors = capfd.readouterr()
    said = errors + evaluated.stderr
    assert "mlflow:" not in said and "wandb:" not in said
    tracked = mlflow_has_all(client, out, first[0], dataset, before)
    url = f"{address}/#/experiments/{tracked.info.experiment_id}"
    assert "secret" not in printed + said + (out / "mlflow.json").read_text()
    assert printed.count(f"all of {out} is in mlflow, run run: {url}/runs/{first[0]}?") == 2
    sampled = functools.partial(completed, monkeypatch, capfd)
    mlflow_serves_the_model(client, out, tracked, tmp_path, sampled)
    wandb_has_all(out, first[1], tmp_path / "wandb")
    sync = f"wandb sync {tmp_path}/wandb/offline-run-*-{first[1]}\n"
    assert printed.count(f"all of {out} is ready for wandb, not sent yet: {sync}") == 2
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{first[1]}"))) == 3


def mlflow_has_all(client, out, first, dataset, before):
    (tracked,) = client.search_runs([client.get_experiment_by_name("nanoNeoX").experiment_id])
    info, params, tags = tracked.info, tracked.data.params, tracked.data.tags
    assert (info.run_id, info.status, info.run_name) == (first, "FINISHED", "run")
    meta = json.loads((dataset / "meta.json").read_text())
    assert params["n_embd"] == "32" and params["versions.torch"]
    assert params["data.train.sha256"] == meta["train"]["sha256"]
    assert tags["mlflow.note.content"] == NOTE
    made_by = [tags[f"mlflow.source.{key}"] for key in ("name", "git.commit")]
    assert made_by == ["train.py", params["git.commit"]]
    assert [i.dataset.name for i in tracked.inputs.dataset_inputs] == [dataset.name]
    began = json.loads((out / "run.json").read_text())["began"]
    assert (info.start_time, info.end_time) == milliseconds(began, lines(out)[-1]["time"])
    assert before < began < lines(out)[0]["time"] < lines(out)[-1]["time"]
    keys = "loss val_loss bits_per_byte lr grad_norm tokens tokens_per_s mfu loss_scale".split()
    keys += ["system/memory_gb", "system/cpu_percent"]
    for key in keys:
        history = client.get_metric_history(first, key)
        assert [(m.step, m.value) for m in history] == curve(out, key), key
    elapsed = [int(1000 * seconds) for _, seconds in curve(out, "elapsed")]
    assert [m.timestamp - info.start_time for m in history] == elapsed
    assert 0.05 < tracked.data.metrics["system/memory_gb"] < 50
    assert 1 < tracked.data.metrics["system/cpu_percent"] < 100 * os.cpu_count() + 50
    evaluation = json.loads((out / "eval.json").read_text())
    assert tracked.data.metrics["eval_loss"] == evaluation["loss"]
    folders = ("", "checkpoint", "samples")
    paths = {item.path for folder in folders for item in client.list_artifacts(first, folder)}
    assert {"loss.png", "run.json", "metrics.jsonl", "eval.json"} <= paths
    assert {"checkpoint/ckpt.pt", "samples/step_0000020.txt"} <= paths
    return tracked


def mlflow_serves_the_model(client, out, tracked, tmp_path, sampled):
    """It has its figures, no pickle, a version for each end of the training, and completes prompts
    as sample.py does where nothing of the repository is."""
    import mlflow

    experiments = [tracked.info.experiment_id]
    models = mlflow.search_logged_models(experiment_ids=experiments, output_format="list")
    figures = {metric.key: metric.value for metric in models[0].metrics}
    assert figures["val_loss"] == curve(out, "val_loss")[-1][1]
    assert figures["eval_loss"] == tracked.data.metrics["eval_loss"]
    files = {file.name for file in (tmp_path / "artifacts").rglob("*") if file.is_file()}
    assert "model.safetensors" in files and not any(name.endswith(".pkl") for name in files)
    os.utime(out / "model.safetensors")
    assert "is in mlflow" in run("tools/track.py", f"--run={out}", "--to=mlflow").stdout
    versions = client.search_model_versions("name = 'nanoNeoX-run'")
    made = sorted((v.version, v.tags["step"], v.run_id) for v in versions)
    assert made == [("1", "10", tracked.info.run_id), ("2", "20", tracked.info.run_id)]

    how = dict(max_new_tokens=30, temperature=0.9, top_k=40, top_p=0.9, repetition_penalty=1.1)
    how |= dict(seed=7, stop=["\n\n"])
    texts, default, signed, errors = asked_of_mlflow("models:/nanoNeoX-run/2", how, tmp_path)
    args = [f"--{key}={value}" for key, value in how.items() if key != "stop"]
    args += ["--stop=\\n\\n"]
    assert texts == [sampled(out, prompt, *args) for prompt in PROMPTS]
    assert default == [sampled(out, PROMPTS[0])] != texts[:1]
    assert signed[0] == "[string (required)]" and signed[1] == ["def fibonacci(n):"]
    assert "Failed to validate type" in errors[0] and "top_p must be from" in errors[1]
    assert "would fit" in errors[2]


PROMPTS = ("import o", "class Stack:\n    def push(self, item):\n        ret", "x = ")


def asked_of_mlflow(uri, how, cwd):
    """What a model that MLflow has loaded says: texts, texts without params, its signature and
    example, the errors of wrong params."""
    wrong = [{"temperature": "hot"}, {"top_p": 2.0}, {"max_new_tokens": 2**31 - 1}]
    code = f"""
import json, mlflow, numpy, psutil
model = mlflow.pyfunc.load_model({uri!r})
texts = model.predict({list(PROMPTS)!r}, params={how!r})
default = model.predict({PROMPTS[0]!r})
errors, memory = [], psutil.virtual_memory()
psutil.virtual_memory = lambda: memory._replace(available=2**30)
for params in {wrong!r}:
    try:
        model.predict({PROMPTS[0]!r}, params=params)
    except mlflow.exceptions.MlflowException as error:
        errors.append(str(error))
signed = [repr(model.metadata.signature.inputs), model.input_example]
print(json.dumps([texts, default, signed, errors], default=list))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"TMPDIR": str(cwd)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def completed(monkeypatch, capfd, out, prompt, *args):
    """What `python sample.py args` adds to a prompt, run in this process, which has torch."""
    import sample

    monkeypatch.setattr(sys, "argv", ["sample.py", f"--ckpt={out}", f"--prompt={prompt}", *args])
    sample.main()
    printed = capfd.readouterr().out
    assert printed.startswith(prompt)
    return printed[len(prompt) : -1]


def wandb_has_all(out, first, folder):
    offline = sorted(folder.glob("offline-run-*/*.wandb"))
    records = [record for file in offline for record in wandb_records(file)]
    runs = [record.run for record in records if record.HasField("run")]
    assert len(offline) == 3 and {one.run_id for one in runs} == {first}
    assert {one.notes for one in runs} == {NOTE}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["n_embd"] == 32 and "git.commit" in config
    history = [
        {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    (made_by, *_) = [record.environment for record in records if record.HasField("environment")]
    assert made_by.program == made_by.code_path == "train.py"
    times = [json.loads(row["_timestamp"]) for row in history if "loss" in row]
    assert times == [line["time"] for line in lines(out) if "loss" in line]
    summary = [
        {item.key: json.loads(item.value_json) for item in record.summary.update}
        for record in records
        if record.HasField("summary")
    ]
    (ended, *_) = [one["training_ended"] for one in summary[::-1] if "training_ended" in one]
    assert datetime.fromisoformat(ended).timestamp() == int(lines(out)[-1]["time"])
    (minutes, *_) = [one["training_minutes"] for one in summary[::-1] if "training_minutes" in one]
    began = json.loads((out / "run.json").read_text())["began"]
    assert 60 * minutes == pytest.approx(lines(out)[-1]["time"] - began)
    for key in ("loss", "val_loss", "bits_per_byte", "lr", "grad_norm", "system/memory_gb"):
        got = [(json.loads(row["step"]), json.loads(row[key])) for row in history if key in row]
        assert got == [(step, pytest.approx(value)) for step, value in curve(out, key)], key
    assert any("sample" in row for row in history) and any("plot" in row for row in history)
    artifacts = [
        {entry.path for entry in record.artifact.manifest.contents}
        for record in records
        if record.HasField("artifact")
    ]
    assert {"ckpt.pt", "model.safetensors", "loss.png"} <= artifacts[0]
    assert "eval.json" in artifacts[-1]


def test_a_server_that_is_killed_costs_a_run_nothing(dataset, tmp_path, server):
    process, _ = server
    out = tmp_path / "run"
    settings = [f"--dataset={dataset}", f"--out_dir={out}", *TINY, "--mlflow", "--tracker_wait=60"]
    settings += ["--max_iters=100000", "--eval_interval=0"]
    training = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    state = out / "mlflow.json"
    while not state.exists() or "tokens" not in state.read_text():
        assert training.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    at = len(lines(out))
    while len(lines(out)) < at + 20:
        time.sleep(0.1)
    training.send_signal(signal.SIGTERM)
    printed, said = training.communicate()
    where = f"{os.environ['MLFLOW_TRACKING_URI']}/#/experiments/1/runs/{run_id(out, 'mlflow')}?"
    assert f"to see run in mlflow: {where}" in printed  # as soon as the run is there
    assert training.returncode == 143 and said.count("\nmlflow: ") == 1, said
    assert [m["step"] for m in lines(out)] == list(range(1, len(lines(out)) + 1))


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(403)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def useless():
    """The addresses of three servers, by what is wrong with them."""
    refusing = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=refusing.serve_forever, daemon=True).start()
    hanging = socket.create_server(("127.0.0.1", 0))  # takes connections, and never answers
    ports = {"down": free_port(), "refusing": refusing.server_port}
    ports["hanging"] = hanging.getsockname()[1]
    yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    refusing.shutdown()
    refusing.server_close()
    hanging.close()


def test_trackers_that_are_down_refuse_or_hang_cost_a_run_nothing(
    dataset, tmp_path, useless, monkeypatch, capfd
):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for name, uri in useless.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("WANDB_BASE_URL", uri)
        trackers = ("mlflow", "wandb") if name == "hanging" else ("mlflow",)
        settings = [f"--dataset={dataset}", f"--out_dir={tmp_path / name}", *SHORT]
        settings += [f"--{tracker}" for tracker in trackers]
        settings += [f"--tracker_wait={5 if name == 'hanging' else 240}"]
        code, (output, errors) = in_process(monkeypatch, *settings), capfd.readouterr()
        assert code == 0 and "done at step 20" in output, (name, output, errors)
        for tracker in trackers:
            assert errors.count(f"\n{tracker}: ") == 1, (name, errors)
            assert f"python tools/track.py --to={tracker} --run=" in errors, (name, errors)
        assert len(curve(tmp_path / name, "loss")) == 20
        assert len(curve(tmp_path / name, "val_loss")) == 3

    # What was down has come up: the run is sent now.
    out = tmp_path / "down"
    store = f"sqlite:///{tmp_path / 'later.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "nowhere://")
    (out / "eval.json").write_text('{"mine_pass@1": 0.25}')
    sent = run("tools/track.py", f"--run={out}", "--to=mlflow", cwd=tmp_path)
    told = (
        f", run down: mlflow ui --backend-store-uri {store}\n    and open http://127.0.0.1:5000/#/"
    )
    assert "is in mlflow, but not in its model registry (" in sent.stdout and told in sent.stdout
    with sqlite3.connect(tmp_path / "later.db") as store:
        rows = store.execute("SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step")
        assert rows.fetchall() == curve(out, "loss")
        rows = store.execute("SELECT value FROM metrics WHERE key = 'eval_mine_pass_at_1'")
        assert rows.fetchall() == [(0.25,)]
        ((began, ended),) = store.execute("SELECT start_time, end_time FROM runs").fetchall()
        about = json.loads((out / "run.json").read_text())
        assert (began, ended) == milliseconds(about["began"], lines(out)[-1]["time"])
    done = run("tools/track.py", f"--run={tmp_path}", ok=False)
    assert done.returncode == 2 and "is not a run's folder" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_without_the_package_the_run_goes_on_and_is_told_how_to_install_it(
    tracker, dataset, tmp_path, monkeypatch, capfd
):
    missing = tmp_path / "missing"
    missing.mkdir()
    words = f"No module named '{tracker}'"
    (missing / f"{tracker}.py").write_text(f'raise ModuleNotFoundError("{words}")\n')
    monkeypatch.setenv("PYTHONPATH", str(missing))  # for the process that sends the run
    out = tmp_path / "run"
    settings = [f"--dataset={dataset}", f"--out_dir={out}", *SHORT, f"--{tracker}"]
    code, (output, errors) = in_process(monkeypatch, *settings), capfd.readouterr()
    assert code == 0 and "done at step 20" in output, (output, errors)
    (line,) = [line for line in errors.splitlines() if line.startswith(f"{tracker}: ")]
    assert "pip install -r requirements-track.txt" in line and words in line
    assert f"python tools/track.py --to={tracker} --run={out}" in line


def test_the_model_in_mlflow_has_the_defaults_of_sample_py():
    import sample
    from parts.mlflow_model import PARAMS

    settings = vars(sample.Settings) | {"stop": list(sample.Settings.stop)}
    assert {key: default for key, (default, *_) in PARAMS.items()} == {
        key: settings[key] for key in PARAMS
    }


def test_how_train_py_starts_it_is_no_setting():
    shown = run("tools/track.py", "--help").stdout
    assert "--run=" in shown and "--to=" in shown and "--follow" not in shown
    # The process must start quickly: a tracker's package, or torch, is loaded when it is needed.
    heavy = "{'torch', 'numpy', 'mlflow', 'wandb', 'tokenizers'}"
    code = f"import sys, parts.tracking; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
