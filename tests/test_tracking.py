"""Runs followed by the real MLflow and the real W&B: read back, resumed, and with trackers that are of no use."""

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

import pytest
from conftest import ROOT, TINY, in_process, run

SHORT = (*TINY, "--max_iters=20", "--eval_interval=10", "--sample_prompt=def", "--sample_tokens=5")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory() as temporary:
        folders = dict.fromkeys(("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"), str(tmp_path)) | {"TMPDIR": temporary}
        for name, value in ({"WANDB_MODE": "offline", "MLFLOW_DISABLE_TELEMETRY": "true"} | folders).items():
            monkeypatch.setenv(name, value)
        yield
        left = [name for name in os.listdir(temporary) if not name.startswith("db_init_lock")]  # MLflow's, one for each store
        assert not left


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An MLflow server on loopback with a SQLite store: its process, and the client of its API."""
    mlflow = pytest.importorskip("mlflow")
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={uri.rsplit(':')[-1]}", "--workers=1",
               f"--backend-store-uri=sqlite:///{tmp_path / 'store.db'}", f"--artifacts-destination={tmp_path / 'artifacts'}"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "TMPDIR": str(tmp_path)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
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


def curve(out, key):
    return [(m["step"], m[key]) for m in lines(out) if m.get(key) is not None]


def wandb_records(path):
    """The records of a .wandb file: protocol buffers in LevelDB's log format, blocks of 32 KiB, after 7 bytes of its own."""
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


def test_both_trackers_get_all_of_a_run_that_is_stopped_resumed_and_evaluated(dataset, tmp_path, server, monkeypatch, capfd):
    pytest.importorskip("wandb")
    import mlflow

    process, client = server
    out = tmp_path / "run"
    settings = [f"--dataset={dataset}", f"--out_dir={out}", *SHORT, "--tracker_wait=240", "--mlflow", "--wandb", "--lr_schedule=constant"]
    assert in_process(monkeypatch, *settings, "--max_iters=10") == 0
    first = json.loads((out / "mlflow.json").read_text())["id"], json.loads((out / "wandb.json").read_text())["id"]
    assert in_process(monkeypatch, *settings, "--init_from=auto") == 0
    said = capfd.readouterr().err + run("eval.py", f"--ckpt={out}", f"--dataset={dataset}", "--tasks=loss").stderr
    assert "mlflow:" not in said and "wandb:" not in said

    (tracked,) = client.search_runs([client.get_experiment_by_name("nanoNeoX").experiment_id])
    assert (tracked.info.run_id, tracked.info.status, tracked.info.run_name) == (first[0], "FINISHED", "run")
    params, meta = tracked.data.params, json.loads((dataset / "meta.json").read_text())
    assert params["n_embd"] == "32" and params["data.train.sha256"] == meta["train"]["sha256"] and params["versions.torch"]
    made_by = [tracked.data.tags[f"mlflow.source.{key}"] for key in ("name", "git.commit")]
    assert made_by == ["train.py", params["git.commit"]] and [i.dataset.name for i in tracked.inputs.dataset_inputs] == [dataset.name]
    for key in ("loss", "val_loss", "bits_per_byte", "lr", "grad_norm", "tokens", "tokens_per_s", "mfu", "loss_scale"):
        history = client.get_metric_history(first[0], key)
        assert [(m.step, m.value) for m in history] == curve(out, key), key
    assert [m.timestamp - tracked.info.start_time for m in history] == [int(1000 * seconds) for _, seconds in curve(out, "elapsed")]
    assert tracked.data.metrics["eval_loss"] == json.loads((out / "eval.json").read_text())["loss"]
    paths = {item.path for folder in ("", "checkpoint", "samples") for item in client.list_artifacts(first[0], folder)}
    assert {"loss.png", "run.json", "metrics.jsonl", "eval.json", "checkpoint/ckpt.pt", "samples/step_0000020.txt"} <= paths
    (model, *_) = mlflow.search_logged_models(experiment_ids=[tracked.info.experiment_id], output_format="list")
    figures = {metric.key: metric.value for metric in model.metrics}
    assert figures["val_loss"] == curve(out, "val_loss")[-1][1] and figures["eval_loss"] == tracked.data.metrics["eval_loss"]
    assert mlflow.register_model(model.model_uri, "tiny").version == "1"
    files = {file.name for file in (tmp_path / "artifacts").rglob("*") if file.is_file()}
    assert "model.safetensors" in files and not any(name.endswith(".pkl") for name in files)
    load = "import mlflow; print(mlflow.pyfunc.load_model('models:/tiny/1').predict(['def f(', 'class '])) "
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.stdout.startswith("[") and done.stdout.count("', ") + done.stdout.count('", ') >= 1, done.stdout + done.stderr

    offline = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    records = [record for file in offline for record in wandb_records(file)]
    assert len(offline) == 3 and {r.run.run_id for r in records if r.HasField("run")} == {first[1]}
    config = {item.key: json.loads(item.value_json) for item in next(r for r in records if r.HasField("run")).run.config.update}
    assert config["n_embd"] == 32 and "git.commit" in config
    history = [{i.key or i.nested_key[0]: i.value_json for i in r.history.item} for r in records if r.HasField("history")]
    for key in ("loss", "val_loss", "bits_per_byte", "lr", "grad_norm"):
        got = [(json.loads(row["step"]), json.loads(row[key])) for row in history if key in row]
        assert got == [(step, pytest.approx(value)) for step, value in curve(out, key)], key
    assert any("sample" in row for row in history) and any("plot" in row for row in history)
    artifacts = [{entry.path for entry in r.artifact.manifest.contents} for r in records if r.HasField("artifact")]
    assert {"ckpt.pt", "model.safetensors", "loss.png"} <= artifacts[0] and "eval.json" in artifacts[-1]

    # The server is killed in the midst of a run, which ends as if nothing had happened.
    out = tmp_path / "bereft"
    settings = [f"--dataset={dataset}", f"--out_dir={out}", *TINY, "--max_iters=100000", "--eval_interval=0", "--tracker_wait=60"]
    training = subprocess.Popen([sys.executable, ROOT / "train.py", *settings, "--mlflow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "mlflow.json").exists() or "tokens" not in (out / "mlflow.json").read_text():
        assert training.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    at = len(lines(out))
    while len(lines(out)) < at + 20:
        time.sleep(0.1)
    training.send_signal(signal.SIGTERM)
    said = training.communicate()[1]
    assert training.returncode == 143 and said.count("\nmlflow: ") == 1, said
    assert [m["step"] for m in lines(out)] == list(range(1, len(lines(out)) + 1))


def test_trackers_that_are_down_refuse_or_hang_cost_a_run_nothing(dataset, tmp_path, monkeypatch, capfd):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(403)

        do_POST = do_GET
        log_message = lambda *_: None  # noqa: E731

    refusing = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=refusing.serve_forever, daemon=True).start()
    hanging = socket.create_server(("127.0.0.1", 0))  # takes connections, and never answers
    address = lambda port: f"http://127.0.0.1:{port}"  # noqa: E731
    servers = {"down": address(free_port()), "refusing": address(refusing.server_port), "hanging": address(hanging.getsockname()[1])}
    for name, uri in servers.items():
        trackers = ("mlflow", "wandb") if name == "hanging" else ("mlflow",)
        for variable, value in {"MLFLOW_TRACKING_URI": uri, "WANDB_MODE": "online", "WANDB_BASE_URL": uri, "WANDB_API_KEY": "0" * 40}.items():
            monkeypatch.setenv(variable, value)
        settings = [*SHORT, *(f"--{tracker}" for tracker in trackers), f"--tracker_wait={5 if name == 'hanging' else 240}"]
        code, (output, errors) = in_process(monkeypatch, f"--dataset={dataset}", f"--out_dir={tmp_path / name}", *settings), capfd.readouterr()
        assert code == 0 and "done at step 20" in output, (name, output, errors)
        for tracker in trackers:
            assert errors.count(f"\n{tracker}: ") == 1 and f"python parts/tracking.py --to={tracker} --run=" in errors, (name, errors)
        assert len(curve(tmp_path / name, "loss")) == 20 and len(curve(tmp_path / name, "val_loss")) == 3

    # What was down has come up: the run is sent now.
    out = tmp_path / "down"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'later.db'}")
    (out / "eval.json").write_text('{"mine_pass@1": 0.25}')
    assert "is in mlflow" in run("parts/tracking.py", f"--run={out}", "--to=mlflow", cwd=tmp_path).stdout
    with sqlite3.connect(tmp_path / "later.db") as store:
        rows = store.execute("SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step")
        assert rows.fetchall() == curve(out, "loss")
        assert store.execute("SELECT value FROM metrics WHERE key = 'eval_mine_pass_at_1'").fetchall() == [(0.25,)]
    done = run("parts/tracking.py", f"--run={tmp_path}", ok=False)
    assert done.returncode == 2 and "is not a run's folder" in done.stderr and done.stderr.count("\n") == 1
