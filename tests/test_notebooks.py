"""The notebooks, executed from top to bottom as Jupyter does, in a copy of the repository."""

import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT, TINY

from parts import notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "data", "out", "__pycache__", ".*_cache")


class Execution:
    """Executes a notebook of the copy; with `kill`, its kernel is killed in its first training."""

    def __init__(self, file: Path, kill: bool = False):
        self.runs, self.kill, self.done = file.parent.parent / "out", kill, False
        self.notebook = nbformat.read(file, as_version=4)
        where = {"metadata": {"path": str(file.parent)}}
        self.client = nbclient.NotebookClient(self.notebook, timeout=600, resources=where)
        threading.Thread(target=self.watch, daemon=True).start()
        try:
            self.client.execute()
        finally:
            self.done = True

    def watch(self):
        while self.kill and not self.done:
            logs = self.runs.glob("*/metrics.jsonl")
            if any(file.read_bytes().count(b"\n") > 2 for file in logs):
                os.kill(self.client.km.provisioner.process.pid, signal.SIGKILL)
                return
            time.sleep(0.2)

    def output(self) -> str:
        every = (out for cell in self.notebook.cells for out in cell.get("outputs", ()))
        return "".join(out.get("text", "") for out in every)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The repository without anybody's data and runs; what Jupyter keeps is in a folder of ours."""
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
    return shutil.copytree(ROOT, tmp_path / "copy", ignore=NOT_COPIED)


@pytest.mark.skipif(os.name != "posix", reason="a kernel is killed")
@pytest.mark.parametrize("name", [file.stem for file in NOTEBOOKS])
def test_runs_to_its_end_after_its_kernel_was_killed(name, copy):
    file = copy / "notebooks" / f"{name}.ipynb"
    with pytest.raises(nbclient.exceptions.DeadKernelError):
        Execution(file, kill=True)
    again = Execution(file)
    assert "going on from step" in again.output()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_kept_outputs_are_whole_and_private(file):
    text = file.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert not re.search(r"/(tmp|home|root|work|Users)/", text.replace("/content/", ""))
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"])


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_what_the_text_tells_the_reader_to_run_uses_names_that_cells_define(file):
    text = {"markdown": "", "code": ""}
    for cell in nbformat.read(file, as_version=4).cells:
        text[cell.cell_type] += cell.source + "\n"
    said = re.findall(r"\{([A-Z]\w*)|notebook\.\w+\((\w+)[(,)]", text["markdown"])
    names = set(filter(None, sum(said, ())))
    defined = set(re.findall(r"^(?:def )?(\w+(?:, \w+)*)(?= [-+]?=|\()", text["code"], re.M))
    assert names and names <= {name for names in defined for name in names.split(", ")}


def test_a_training_goes_on_or_begins_anew_as_its_settings_say(dataset, tmp_path, capsys):
    run = f"--dataset={dataset} --out_dir={tmp_path / 'run'} {' '.join(TINY)} --eval_interval=0"
    first = notebook.train(f"{run} --max_iters=4")
    assert [line["step"] for line in first if "loss" in line] == [1, 2, 3, 4]
    assert notebook.train(f"{run} --max_iters=4 --note=again") == first
    again = notebook.train(f"{run} --max_iters=4 --lr=2e-3")
    assert "lr=0.001, not 0.002" in capsys.readouterr().out
    assert again[0]["time"] > first[-1]["time"]
    assert notebook.metrics(tmp_path / "run.1") == first
    with pytest.raises(notebook.Failed, match="unknown setting"):
        notebook.run("train.py --no_such_thing=1")
    with pytest.raises(notebook.Failed, match="quotation"):
        notebook.train("--note=it's")


def test_a_fine_tuning_that_is_run_again_is_not_trained_again(dataset, trained, tmp_path):
    shape = ("--n_layer", "--n_head", "--n_embd")  # which the weights bring
    how = " ".join(setting for setting in TINY if not setting.startswith(shape))
    run = f"--init_from={trained} --dataset={dataset} --out_dir={tmp_path / 'tuned'} {how}"
    first = notebook.train(f"{run} --max_iters=2 --eval_interval=0")
    assert notebook.train(f"{run} --max_iters=2 --eval_interval=0") == first


def test_a_mirror_brings_a_lost_run_back_and_keeps_a_strange_one(trained, tmp_path, capsys):
    run, copy = tmp_path / "run", tmp_path / "drive"
    shutil.copytree(trained, run)
    notebook.mirror(str(run), str(copy), seconds=60).stop()
    assert (copy / "ckpt.pt").read_bytes() == (trained / "ckpt.pt").read_bytes()
    shutil.rmtree(run)
    mirror = notebook.mirror(str(run), str(copy), seconds=60)
    assert (run / "ckpt.pt").read_bytes() == (trained / "ckpt.pt").read_bytes()
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"began": 1.0}))  # as if it were another run
    mirror.stop()
    assert json.loads((tmp_path / "drive.1" / "run.json").read_text()) == about


def test_a_mirror_has_the_last_save_and_touches_no_other_files(trained, tmp_path):
    run, copy = tmp_path / "run", tmp_path / "drive"
    shutil.copytree(trained, run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("notes")
    for place in ("mine", "run"):
        with pytest.raises(notebook.Failed):
            notebook.mirror(str(run), str(tmp_path / place))
    assert os.listdir(tmp_path / "mine") == ["README.md"]
    mirror = notebook.mirror(str(run), str(copy), seconds=60)
    for save in (b"save 1", b"save 2"):  # as large as each other, and within the same second
        (run / "ckpt.pt").write_bytes(save)
        mirror.update()
        assert (copy / "ckpt.pt").read_bytes() == save
    notebook.mirror(str(run), str(copy), seconds=60).stop()  # as if the cell were run again
    assert not mirror.thread.is_alive()
