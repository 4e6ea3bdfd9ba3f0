"""The handmade functions, for fine-tuning -> data/handmade, ready for train.py.

    python prepare/handmade.py --tokenizer=out/python_cpu     200 Python functions
    python prepare/handmade.py --language=go --tokenizer=out/go_cpu         100 of Go
    python prepare/handmade.py --path=~/projects --out=mine   and all functions of your own code

Each function is a document: the imports that it needs, then the function. They are in
prepare/functions/, to be read and added to; the tests run all of them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from parts.start import run_script

import ast
import re
import warnings
from collections.abc import Iterator

from parts import configurator
from prepare import corpus, next_step, sources
from prepare.clean import TOO_LARGE, Document

FUNCTIONS = Path(__file__).resolve().parent / "functions"


class Settings(corpus.Settings):
    language = "python"  # python or go
    out = ""  # the data set's name, a folder in data/; empty: handmade or handmade_go
    path = ""  # a folder of your own code, whose functions are added to ours
    tokenizer = ""  # the folder of the model to fine-tune; empty: the newest run in out/
    val_fraction = 0.1  # share of the bytes held out for val, in whole functions
    fim_rate = 0.0  # a function this short is best read as it stands


# --- Python ---------------------------------------------------------------------------------------


def python_functions(text: str) -> Iterator[tuple[str, str]]:
    """(name, document) of each function at the top level of a Python file. Nothing in it is run.
    SyntaxError, or what else Python's parser raises, if it is no Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in strings; the code is not ours
        tree = ast.parse(text)
    lines = text.split("\n")
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            needed = [line for line in (needed_import(i, names) for i in imports) if line]
            header = "\n".join(needed) + "\n\n\n" if needed else ""
            yield node.name, header + "\n".join(lines[first - 1 : node.end_lineno]) + "\n"


def needed_import(node: ast.Import | ast.ImportFrom, names: set[str]) -> str:
    """The import statement with only what these names need, "" if that is nothing."""
    future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
    kept = [a for a in node.names if future or (a.asname or a.name.split(".")[0]) in names]
    if not kept:
        return ""
    if isinstance(node, ast.Import):
        return ast.unparse(ast.Import(kept))
    return ast.unparse(ast.ImportFrom(node.module, kept, node.level))


# --- Go -------------------------------------------------------------------------------------------

# What may hold braces and words that are no code, and must be left out of account.
GO_TEXT = re.compile(
    r'//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\\n])*"|`[^`]*(?:`|\Z)|' + r"'(?:\\.|[^'\\\n])+'",
    re.S,
)
# gofmt puts the brace that closes a function, and no other one in it, at the beginning of a line.
GO_FUNCTION = re.compile(r"^func (\w+)(?:[^\n]*\}[ \t]*$|(?:(?!^func\b).)*?^\})", re.M | re.S)
GO_IMPORT = re.compile(r'^[ \t]*(?:import[ \t]+)?(?:([\w.]+)[ \t]+)?"([^"\n]+)"', re.M)


def go_functions(text: str) -> Iterator[tuple[str, str]]:
    """(name, document) of each function, no method, of a Go file that gofmt has formatted.
    ValueError if it names no package."""
    code = GO_TEXT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)  # of the same length
    package = re.search(r"^package \w+", code, re.M)
    if not package:
        raise ValueError("there is no package clause")
    first = re.search(r"^(?:func|type|var|const)\b", code, re.M)
    imports = GO_IMPORT.findall(text[package.end() : first.start() if first else len(text)])
    for match in GO_FUNCTION.finditer(code):
        begin = line = match.start()
        while line and text.startswith("//", line := text.rfind("\n", 0, line - 1) + 1):
            begin = line  # of its doc comment
        used = set(re.findall(r"\b(\w+)\.", match[0]))
        needed = [
            f'\t{alias} "{path}"' if alias else f'\t"{path}"'
            for alias, path in imports
            if (alias or re.sub(r"/v\d+$", "", path).split("/")[-1]) in used
        ]
        header = "import (\n" + "\n".join(needed) + "\n)\n\n" if needed else ""
        yield match[1], f"{package[0]}\n\n{header}{text[begin : match.end()]}\n"


# --- both -----------------------------------------------------------------------------------------

LANGUAGES = {"python": (".py", python_functions), "go": (".go", go_functions)}


def documents_in(path: Path, name: str, language: str) -> Iterator[Document]:
    """The functions of a file; one Document without text if it cannot be read."""
    suffix, split = LANGUAGES[language]
    try:
        with open(path, "rb") as file:
            data = file.read(TOO_LARGE)
        if len(data) == TOO_LARGE:
            raise ValueError("too large")
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        for function, document in split(text):
            yield Document(document, name, f"{name}:{function}")
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        yield Document(None, name, name)


def shipped(language: str) -> list[Document]:
    """The functions of this repository, without Go's tests."""
    files = sorted((FUNCTIONS / language).glob(f"*{LANGUAGES[language][0]}"))
    files = [file for file in files if not file.name.endswith("_test.go")]
    return [document for file in files for document in documents_in(file, file.name, language)]


def all_documents(ours: list[Document], files: list[Document], cfg) -> Iterator[Document]:
    """Our functions, then those of a person's files. Ends the script if these have none."""
    yield from ours
    found = False
    for file in files:
        for document in documents_in(file.text, file.name, cfg.language):
            found = found or document.text is not None
            yield document
    if files and not found:
        configurator.die(
            f"the {len(files):,} files in {cfg.path} have no {cfg.language} function at their top "
            "level; name another folder with --path=..."
        )


def newest_run() -> str:
    """The folder of the newest run in out/. Ends the script if there is none."""
    runs = list((configurator.ROOT / "out").glob("*/ckpt.pt"))
    if not runs:
        configurator.die(
            "there is no run in out/ to take the tokenizer from; name the folder of the model to "
            "fine-tune with --tokenizer=..., or train one with: make quickstart"
        )
    newest = max(runs, key=lambda file: file.stat().st_mtime)
    return newest.parent.relative_to(configurator.ROOT).as_posix()


def main():
    cfg = configurator.load(Settings)
    configurator.require(cfg, language=sorted(LANGUAGES))
    if cfg.file:
        configurator.die("prepare/handmade.py takes no --file; name a folder with --path=...")
    cfg.out = cfg.out or ("handmade" if cfg.language == "python" else f"handmade_{cfg.language}")
    files = []
    if cfg.path:
        files, _ = sources.local_documents([cfg.path], LANGUAGES[cfg.language][0], cfg)
    cfg.tokenizer = cfg.tokenizer or newest_run()
    source = "the handmade functions" + (f" and those in {cfg.path}" if cfg.path else "")
    command = next_step.fine_tuning("finetune_handmade", cfg.out, cfg.tokenizer)
    documents = all_documents(shipped(cfg.language), files, cfg)
    corpus.build(cfg, documents, source, unit="function", command=command, language=cfg.language)


if __name__ == "__main__":
    run_script(main)
