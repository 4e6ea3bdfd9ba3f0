"""The notebooks' install cell beside what Colab has: nothing of Colab's is replaced. Needs Python
3.13 and a package index, from which it fetches pip and what the packages require, no gigabytes.

    COLAB_FREEZE=pip-freeze.gpu.txt     # in the environment: another list than the one below
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# What Colab's GPU runtime had on 2026-08-19 (github.com/googlecolab/backend-info), as far as our
# requirements or what they require reach it. It also had the 18 CUDA 12 packages of this torch.
VERSIONS = """
aiohappyeyeballs==2.7.1 aiohttp==3.14.3 aiosignal==1.4.0 annotated-doc==0.0.5
annotated-types==0.8.0 anyio==4.14.2 attrs==26.1.0 blinker==1.9.0 cachetools==6.2.6
certifi==2026.7.22 cffi==2.1.1 charset-normalizer==3.4.9 click==8.4.2 cloudpickle==3.1.2
contourpy==1.3.3 cryptography==50.0.0 cycler==0.12.1 datasets==4.0.0 dill==0.3.8 distro==1.9.0
fastapi==0.141.1 filelock==3.32.3 flask==3.1.3 fonttools==4.63.0 frozenlist==1.8.0
fsspec==2025.3.0 google-auth==2.49.0 googleapis-common-protos==1.75.0 greenlet==3.5.5
h11==0.16.0 hf-xet==1.6.0 httpcore==1.0.9 httpcore2==2.10.0 httpx==0.28.1 httpx2==2.10.0
huggingface-hub==1.27.0 idna==3.18 importlib-metadata==9.0.0 itsdangerous==2.2.0 jinja2==3.1.6
joblib==1.5.3 kiwisolver==1.5.0 llvmlite==0.44.0 lxml==6.1.1 mako==1.1.3 markupsafe==3.0.3
matplotlib==3.10.0 mpmath==1.3.0 multidict==6.7.1 multiprocess==0.70.16 narwhals==2.24.0
networkx==3.6.1 numba==0.61.2 numpy==2.1.3 opentelemetry-api==1.42.1 opentelemetry-sdk==1.42.1
opentelemetry-semantic-conventions==0.63b1 packaging==26.3 pandas==2.2.3 pillow==11.3.0
platformdirs==4.11.3 prettytable==3.18.0 prometheus-client==0.26.0 propcache==0.5.2
protobuf==5.29.6 psutil==5.9.5 pyarrow==18.1.0 pyasn1==0.6.4 pyasn1-modules==0.4.2
pycparser==3.0 pydantic==2.13.4 pydantic-core==2.46.4 pyparsing==3.3.2
python-dateutil==2.9.0.post0 python-dotenv==1.2.3 pytz==2025.2 pyyaml==6.0.3 regex==2025.11.3
requests==2.32.4 rsa==4.9.1 safetensors==0.8.0 scikit-learn==1.6.1 scipy==1.16.3
sentry-sdk==2.68.0 setuptools==75.2.0 six==1.17.0 sniffio==1.3.1 sqlalchemy==2.0.52
sqlparse==0.6.0 starlette==1.6.0 sympy==1.14.0 tabulate==0.9.0 threadpoolctl==3.6.0
tiktoken==0.14.0 tokenizers==0.22.2 torch==2.11.0+cu128 tqdm==4.67.3 triton==3.6.0
truststore==0.10.4 typing-extensions==4.16.0 typing-inspection==0.4.4 tzdata==2026.3
urllib3==2.5.0 uvicorn==0.52.3 wandb==0.28.1 wcwidth==0.8.2 werkzeug==3.1.8 xxhash==4.0.1
yarl==1.24.5 zipp==4.1.0
"""
PIP = "24.1.2"  # Colab's


def versions_in(text):
    """Version by name, of what stands there as name==version."""
    return {canonical(name): version for name, version in re.findall(r"([\w.-]+)==(\S+)", text)}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def do(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A Python in which pip sees Colab's packages; and their versions, by name."""
    found = sys.executable if sys.version_info[:2] == (3, 13) else shutil.which("python3.13")
    if not found:
        pytest.skip("Colab's Python 3.13 is not here")
    folder = tmp_path_factory.mktemp("colab")
    do(found, "-m", "venv", folder)
    python, report = folder / "bin" / "python", folder / "report.json"
    do(python, "-m", "pip", "install", "-q", f"pip=={PIP}")
    reached = versions = versions_in(VERSIONS)
    if freeze := os.environ.get("COLAB_FREEZE"):
        versions = versions_in(Path(freeze).read_text())
        del versions["pip"]
    # What each of them requires, so that pip sees what it would see on Colab.
    asked = [f"{n}=={v.partition('+')[0]}" for n, v in versions.items() if n in reached]
    options = ("--dry-run", "--no-deps", "--ignore-installed", "--only-binary=:all:")
    do(python, "-m", "pip", "install", "-q", *options, f"--report={report}", *asked)
    about = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    requires = {canonical(a["name"]): a.get("requires_dist", []) for a in about}
    # Colab's torch is for CUDA 12, the index's for CUDA 13: other packages, which Colab has too.
    requires["torch"] = [r for r in requires["torch"] if not r.startswith(("nvidia", "cuda"))]
    packages = do(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    for name, version in versions.items():
        place = Path(packages) / f"{name.replace('-', '_')}-{version}.dist-info"
        place.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {line}" for line in requires.get(name, ())]
        (place / "METADATA").write_text("\n".join(lines) + "\n")
        (place / "INSTALLER").write_text("pip\n")
    return python, versions


def test_the_install_cell_adds_what_is_missing_and_replaces_nothing(colab):
    python, versions = colab
    code = "import json; from tools.install import ALL, install, installed; "
    code += "print(json.dumps([installed(), install(*ALL, dry_run=True)]))"
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    print(*lines, sep="\n")
    seen, added = json.loads(last)
    assert len(versions) > 100 and versions.items() <= seen.items()
    added = {canonical(name) for name in added}
    assert {"mlflow", "sacrebleu"} <= added and not added & versions.keys()
    assert f"{len(seen)} installed packages, would be replaced: 0" in lines[-1]
