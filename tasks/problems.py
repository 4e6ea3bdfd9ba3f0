"""Programming problems: a prompt, a known solution, and tests.

HumanEval (Chen et al. 2021), the Go part of HumanEval-X (Zheng et al. 2023), and the repository's
own in tasks/*.jsonl; those with a gap are in humaneval_infill.py. Small models solve few of them,
so it is also measured how likely they find the known solution, and whether likelier than its
mutants.
"""

import ast
import functools
import gzip
import http.client
import math
import os
import random
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from typing_extensions import NotRequired, TypedDict  # torch needs it

from parts import configurator
from parts.files import parse_json, write_whole
from tasks import sandbox
from tasks.code import lex, parse, parses
from tasks.places import Place
from tasks.scoring import score
from tasks.task import Examinee, Options, Task
from tasks.writing import Writer, write_bodies

BENCHMARKS = {"humaneval", "humaneval-x", "humaneval-infill", "sentiment"}  # read --file
MOST_BYTES = 1 << 28  # of a file of problems, unpacked

# --- reading them ---------------------------------------------------------------------------------


class Problem(NamedTuple):
    id: str
    language: str
    prompt: str
    solution: str
    test: str
    name: str  # of the function; Python only
    imports: str  # at the top of the prompt; Go only
    test_setup: str  # what the tests need: package, imports, ...; Go only
    suffix: str | None  # what follows the solution, where that fills a gap


Row = TypedDict(
    "Row",
    {
        "task_id": str,
        "prompt": str,
        "canonical_solution": str,
        "test": str,
        "entry_point": NotRequired[str],  # Python needs it
        "import": NotRequired[str],
        "test_setup": NotRequired[str],
        "declaration": NotRequired[str],  # only HumanEval-X has it
        "suffix": NotRequired[str],  # only HumanEval-Infilling has it
    },
)


def read_problem(row: Row, language: str) -> Problem:
    """ValueError if a problem cannot be made of it."""
    problem = Problem(
        row["task_id"],
        language,
        row["prompt"],
        row["canonical_solution"],
        row["test"],
        row.get("entry_point", ""),
        row.get("import", ""),
        row.get("test_setup", ""),
        row.get("suffix"),
    )
    for key, text in problem._asdict().items():
        (text or "").encode()  # JSON can spell half of a character
        if key in ("id", "prompt", "solution", "test") and not text.strip():
            raise ValueError(f"its {key} is empty")
    if language == "python" and not problem.name.isidentifier():
        raise ValueError(f"its entry_point is no name of a function: {problem.name!r}")
    if problem.suffix is None and not mutants(problem, 1):
        raise ValueError("its solution is too short to be changed")
    check_source(problem)
    return problem


def check_source(problem: Problem):
    """ValueError unless prompt and solution are a program, which in Python defines entry_point.
    Nothing is run. Of Go without gofmt nothing is known."""
    program = problem.prompt + problem.solution + (problem.suffix or "")
    if problem.language == "go":
        if parses(f"package main\n{program}", "go") is False:
            raise ValueError("gofmt cannot read its prompt and solution")
        return
    tree = parse(program)
    if tree is None or parse(problem.test) is None:
        what = "test is" if tree else "prompt and solution are"
        raise ValueError(f"its {what} not Python")
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    if problem.name not in (node.name for node in tree.body if isinstance(node, kinds)):
        raise ValueError(f"prompt and solution do not define its entry_point, {problem.name}")


def read_problems(name: str, files: list[Path], language: str) -> list[Problem]:
    """The problems in .jsonl or .jsonl.gz files. ValueError or OSError says what is wrong."""
    problems = {}
    for file in files:
        for number, line in enumerate(contents(file).split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line.decode("utf-8-sig"), "it", Row)
                if name in ("mine", benchmark(row)):
                    problem = read_problem(row, language)
                    if problem.id in problems:
                        raise ValueError(f"the task_id {problem.id} was used before")
                    problems[problem.id] = problem
            except ValueError as error:
                raise ValueError(
                    f"{file}, line {number}, is not a problem in HumanEval's format: {error}"
                ) from None
    if not problems:
        raise ValueError(f"{', '.join(map(str, files))} holds no problem of {name}")
    return list(problems.values())


def benchmark(row: Row) -> str:
    """The name of the task that a row belongs to."""
    if "suffix" in row:
        return "humaneval-infill"
    return "humaneval-x" if "declaration" in row else "humaneval"


def contents(file: Path) -> bytes:
    """The bytes of a file, unpacked if they are gzip's. ValueError or OSError for a damaged one, or
    for more than MOST_BYTES."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is not a file")
    with open(file, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            data = (gzip.open(raw) if packed else raw).read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is damaged: {error}") from None
    if len(data) > MOST_BYTES:
        raise ValueError(f"{file} has more than {MOST_BYTES >> 20} MB")
    return data


def fetched(url: str) -> Path:
    """The file in data/ that the URL is downloaded to, once."""
    file = configurator.ROOT / "data" / url.split("/")[-1]
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(
                f"{url} could not be downloaded ({error}); save it as {file}"
            ) from None
        write_whole(file, lambda temporary: temporary.write_bytes(data))
    return file


# --- mutants --------------------------------------------------------------------------------------


def pieces(text: str, language: str) -> list[tuple[str, str]]:
    """(class, text) of each piece of code, as `lex` cuts it."""
    source = text.encode()
    return [(kind, source[begin:end].decode()) for kind, begin, end in lex(source, language)]


def join(solution: list[tuple[str, str]]) -> str:
    return "".join(text for _, text in solution)


def code_in(solution: list[tuple[str, str]]) -> list[int]:
    return [n for n, (kind, _) in enumerate(solution) if kind not in ("whitespace", "comment")]


def exchange(solution: list[tuple[str, str]], rng: random.Random) -> str:
    """Two neighbouring pieces of code change places."""
    changed, code = list(solution), code_in(solution)
    if len(code) > 1:
        n = rng.randrange(len(code) - 1)
        a, b = code[n], code[n + 1]
        changed[a], changed[b] = changed[b], changed[a]
    return join(changed)


def replace(
    solution: list[tuple[str, str]], known: set[tuple[str, str]], rng: random.Random
) -> str:
    """A piece of code becomes another known one of its class."""
    changed, code = list(solution), code_in(solution)
    if code:
        n = rng.choice(code)
        old = changed[n]
        others = sorted(piece for piece in known if piece[0] == old[0] and piece != old)
        changed[n] = rng.choice(others or [old])
    return join(changed)


def reorder(solution: list[tuple[str, str]], rng: random.Random) -> str:
    """Two neighbouring lines change places."""
    lines = join(solution).split("\n")
    filled = [n for n, line in enumerate(lines) if line.strip()]
    if len(filled) > 1:
        n = rng.randrange(len(filled) - 1)
        a, b = filled[n], filled[n + 1]
        lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


def mutants(
    problem: Problem, count: int = 9, length: Callable[[str], int] | None = None
) -> list[str]:
    """Different corruptions of the known solution, the same ones every time: exchange, replace and
    reorder in turn, each at a random place. Now and then one is a correct program all the same.

    length: of a solution, in tokens. Mutants then have as many as the solution, since a text of
    fewer tokens is likelier to a model that knows nothing. There may be fewer than `count`."""
    solution = pieces(problem.solution, problem.language)
    known = set(solution) | set(pieces(problem.prompt, problem.language))
    changes = (exchange, functools.partial(replace, known=known), reorder)
    made, wanted = [problem.solution], length and length(problem.solution)
    for number in range(count):
        rng = random.Random(f"{problem.id} {number}")
        for attempt in range(300):
            mutant = changes[(number + attempt) % 3](solution, rng=rng)
            if mutant not in made and (not length or length(mutant) == wanted):
                made.append(mutant)
                break
    return made[1:]


# --- measuring ------------------------------------------------------------------------------------


class Problems(Task):
    name = ""  # of the task
    writes_programs = True

    @classmethod
    def reads_data(cls, options: Options) -> bool:
        return False

    def prepare(self):
        self.problems = self.read()  # which each subclass has
        if self.options.allow_code_execution:
            if reason := sandbox.missing(self.problems[0].language):
                raise ValueError(f"--allow_code_execution: {reason}")
            if self.are_own():
                self.check_solutions()

    def are_own(self) -> bool:
        """Whether the problems may be a person's own, rather than a benchmark's download."""
        return bool(self.options.file)

    def check_solutions(self):
        """ValueError names the problems whose known solution fails their tests: nobody could pass
        those."""
        known = [problem.solution for problem in self.problems]
        passes = run_all(self.problems, known, f"{self.name}: known solutions")
        if wrong := [problem.id for problem, right in zip(self.problems, passes) if not right]:
            raise ValueError(
                f"the known solution of {', '.join(wrong)} fails its own test, or takes more than "
                "10 s; mend the problem or remove its line"
            )

    def texts(self) -> dict[str, int]:
        return {"num_samples": len(self.problems)} if self.options.allow_code_execution else {}

    def measure(self, examinee: Examinee) -> dict[str, float]:
        report = self.likelihood(examinee)
        if self.options.allow_code_execution:
            report |= self.pass_rates(examinee)
        return {f"{self.name}_{key}": value for key, value in report.items()}

    def likelihood(self, examinee: Examinee) -> dict[str, float]:
        """Bits per byte of the known solutions given their prompts, and how often a solution is
        likelier than one of its mutants (choice2) and than all of them (choice10). Of an untrained
        model choice2 is a half, and choice10 far below a tenth: the solution lies between its
        mutants, and so does its likelihood (docs/RESULTS.md). Problems whose
        solution has no mutant as long as itself, or fewer than nine, are left out of them."""
        choices = []
        for problem in self.problems:
            length = functools.partial(self.length, problem)
            choices.append([problem.solution, *mutants(problem, length=length)])
        read = [
            self.tokens_of(problem, solution)
            for problem, solutions in zip(self.problems, choices)
            for solution in solutions
        ]
        stride = max(examinee.network.config.block_size // 2, 1)
        scores = score(examinee, *map(list, zip(*read)), stride, self.name)
        nats = iter([float(one.nats.sum(dtype=np.float64)) for one in scores])
        total, wins, best = 0.0, [], []
        for solutions in choices:
            known, *others = [next(nats) for _ in solutions]
            total += known
            if others:
                wins.append(np.mean([known < other for other in others]))
            if len(others) == 9:
                best.append(known < min(others))
        size = sum(len(problem.solution.encode()) for problem in self.problems)
        report = {"bits_per_byte": total / math.log(2) / size}
        if wins:
            report["choice2"] = float(np.mean(wins))
        if best:
            report["choice10"] = float(np.mean(best))
        return report

    def tokens_of(self, problem: Problem, solution: str) -> tuple[list[int], int]:
        """The ids of prompt and solution, and where the first token is that ends in the latter."""
        eot, ids = self.tokenizer.eot, self.tokenizer.encode(problem.prompt + solution)
        ends = np.cumsum([len(self.tokenizer.token_bytes(i)) for i in ids])
        start = int(np.searchsorted(ends, len(problem.prompt.encode()), "right"))
        return (ids, max(start, 1)) if eot is None else ([eot, *ids], start + 1)

    def length(self, problem: Problem, solution: str) -> int:
        """In how many tokens a solution is scored."""
        ids, start = self.tokens_of(problem, solution)
        return len(ids) - start

    def pass_rates(self, examinee: Examinee) -> dict[str, float]:
        """pass@k of num_samples programs for each problem, for k = 1, 10 and 100 up to that."""
        n = self.options.num_samples
        jobs = [problem for problem in self.problems for _ in range(n)]
        writer = Writer(examinee.network, self.tokenizer, self.options, self.options.temperature)
        passes = run_all(jobs, self.write(writer, jobs), self.name)
        correct = np.reshape(passes, (len(self.problems), n)).sum(axis=1)
        return {
            f"pass@{k}": float(np.mean([pass_at_k(n, c, k) for c in correct]))
            for k in (1, 10, 100)
            if k <= n
        }

    def write(self, writer: Writer, problems: list[Problem]) -> list[str]:
        """A solution that the model writes for each problem."""
        places = [Place(problem.prompt, problem.solution, "", "") for problem in problems]
        language = problems[0].language
        return [body for body, _ in write_bodies(writer, places, language, self.name)]


class HumanEval(Problems):
    name = "humaneval"
    url = "https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz"
    problems_in = "python"

    def read(self) -> list[Problem]:
        files = [configurator.locate(file) for file in self.options.file] or [fetched(self.url)]
        return read_problems(self.name, files, self.problems_in)


class HumanEvalX(HumanEval):
    name = "humaneval-x"
    url = (
        "https://github.com/THUDM/CodeGeeX/raw/main/codegeex/benchmark/humaneval-x/go/data/"
        "humaneval_go.jsonl.gz"
    )
    problems_in = "go"

    def prepare(self):
        super().prepare()
        testify = Path(sandbox.GO_LIBRARY) / "src/github.com/stretchr/testify"
        if self.options.allow_code_execution and not testify.is_dir():
            raise ValueError(
                "the tests of humaneval-x need testify: "
                "apt-get install golang-github-stretchr-testify-dev"
            )


class Mine(Problems):
    name = "mine"

    @classmethod
    def reads_data(cls, options: Options) -> bool:
        return not options.language  # then the data set's language is needed

    def are_own(self) -> bool:
        return True

    def read(self) -> list[Problem]:
        language = self.options.language or self.language or "python"
        files = [Path(__file__).with_name(f"{language}.jsonl")]
        beside = set(getattr(self.options, "tasks", "").split(",")) & BENCHMARKS
        if self.options.file and not beside:  # else the file is theirs
            files = [configurator.locate(file) for file in self.options.file]
        return read_problems(self.name, files, language)


def run_all(problems: list[Problem], bodies: list[str], name: str) -> list[bool]:
    """Whether each body passes its problem's tests. Ctrl-C ends whatever runs. name: of the
    progress bar."""
    language = problems[0].language
    threads = os.cpu_count() if language == "python" else 1
    progress = dict(desc=f"{name}: running", unit="program", leave=False, disable=None)
    sandbox.halt.clear()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        if language == "go":
            tqdm.write("compiling Go's library, once for all programs")
            sandbox.warm_up(folder, problems[0].test_setup)
        run = functools.partial(passed, folder=folder)
        try:
            return list(tqdm(pool.map(run, problems, bodies), total=len(problems), **progress))
        except BaseException:
            sandbox.halt.set()
            pool.shutdown(cancel_futures=True)
            raise


def passed(problem: Problem, body: str, folder: str | None) -> bool:
    """Whether a body written for the problem passes its tests. folder: for Go's compiler."""
    if problem.language == "python":
        setup, suffix = problem.prompt, problem.suffix or ""
        if parse(setup) is None:  # it ends at a gap, or has no docstring
            setup += problem.solution + suffix
        program = problem.prompt + body + suffix
        return sandbox.run_python(program, problem.name, setup, problem.test)[0]
    program = problem.prompt.replace(problem.imports, "", 1) + body  # gets the imports that it uses
    return sandbox.run_go(program, problem.test, problem.test_setup, folder)[0]


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n programs, c of them correct, hold a correct one: the estimator of Chen
    et al. 2021, section 2.1."""
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
