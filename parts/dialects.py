"""What clients of serve.py send and get: the forms of OpenAI's API and of llama.cpp's server.

A body is checked by a model of pydantic's. Fields that it does not name are ignored, as servers of
this kind do; those with the type Absent are refused by name.
"""

import re
import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from parts.chat import Message
from parts.engine import Ask, Job, Part
from parts.gate import Refused
from parts.tokenizer import Tokenizer

MOST_CHOICES = 16  # completions of one request
MOST_TOLD = 20  # likely tokens told with each


def texts(value: Any) -> Any:
    """None, one text or a list of them, to a list."""
    value = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise ValueError("must be a text that is not empty, or a list of such texts")
    if len(value) > 64 or any(len(text) > 1000 for text in value):
        raise ValueError("must be at most 64 texts, of 1,000 characters each")
    return value


def absent(value: Any, info: ValidationInfo) -> Any:
    if value not in (None, [], {}, "none", "auto", {"type": "text"}):
        raise ValueError(f"{info.field_name} is not supported")
    return None


Texts = Annotated[list[str], BeforeValidator(texts)]
Absent = Annotated[Any, BeforeValidator(absent)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Body(BaseModel):
    """What all have in common. null stands for a field's default."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None  # 0: the likeliest alone
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Texts = []
    seed: Seed | None = None
    stream: bool | None = False
    logit_bias: Absent = None
    grammar: Absent = None
    json_schema: Absent = None

    def sampling(self, **defaults) -> dict:
        """How tokens are drawn, as `engine.Ask` has it."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty")
        names += ("frequency_penalty", "seed")
        given = {name: getattr(self, name) for name in names}
        how = defaults | {name: value for name, value in given.items() if value is not None}
        how["top_k"] = max(how.get("top_k", 0), 0)
        return how | {"stop": tuple(self.stop)}


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class OpenAI(Body):
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = 1
    stream_options: StreamOptions | None = None
    tools: Absent = None
    functions: Absent = None
    function_call: Absent = None
    tool_choice: Absent = None
    response_format: Absent = None


Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]


class Completions(OpenAI):
    """POST /v1/completions."""

    prompt: str | Ids | Annotated[list[str] | list[Ids], Field(min_length=1, max_length=64)] = ""
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOLD)] | None = None

    def prompts(self) -> list[str | list[int]]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt


class Said(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict] | None

    def message(self) -> Message:
        """ValueError where it holds more than text."""
        text = self.content or ""
        if not isinstance(text, str):
            if not all(part.get("type") == "text" for part in text):
                raise ValueError("a message may hold text only")
            text = "".join(str(part.get("text", "")) for part in text)
        return Message("system" if self.role == "developer" else self.role, text)


class ChatCompletions(OpenAI):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOLD)] | None = None


class Extra(BaseModel):
    text: str
    filename: str | None = None


class LlamaCpp(Body):
    """POST /completion and /infill, with the defaults of llama.cpp's server."""

    prompt: str | Ids = ""
    n_predict: Annotated[int, Field(ge=-1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    n_probs: Annotated[int, Field(ge=0, le=MOST_TOLD)] | None = 0
    n_indent: Annotated[int, Field(ge=0, le=1000)] | None = 0
    t_max_predict_ms: Annotated[float, Field(ge=0)] | None = 0
    t_max_prompt_ms: Annotated[float, Field(ge=0)] | None = 0  # prompts are read whole
    samplers: list[str] | None = None  # ours are always in the order of llama.cpp's default
    cache_prompt: bool | None = True  # always: it changes nothing but the time
    response_fields: list[str] | None = None


class Infill(LlamaCpp):
    """POST /infill. input_extra is what an editor adds from other files; a context as short as ours
    holds only what is near the cursor, so it is left out."""

    prompt: str = ""
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[Extra] | None = None


def parse(kind: type[Body], data: bytes) -> Body:
    """A body from JSON. Refused, in one line, where it is something else."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        # A union tells the place inside each of its kinds; the field itself is enough.
        where = str(problem["loc"][0]) if problem["loc"] else None
        what = problem["msg"].removeprefix("Value error, ")
        raise Refused(400, f"{where}: {what}" if where else what, where) from None


MARK = re.compile(r"<\|?fim_(prefix|suffix|middle)\|?>")


def split_marks(text: str) -> tuple[str, str] | None:
    """(before, after) the gap of a prompt that has the three marks for filling in the middle, in
    either order; None for any other."""
    start, *pieces = MARK.split(text)
    parts = dict(zip(pieces[::2], pieces[1::2]))
    ordered = pieces[::2] in (["prefix", "suffix", "middle"], ["suffix", "prefix", "middle"])
    if not ordered or start.removeprefix("<|endoftext|>"):
        return None
    return parts["prefix"] + parts["middle"], parts["suffix"]


# --- answers --------------------------------------------------------------------------------------


class Answer:
    """How parts of a completion are told. One for each request: it counts characters and tokens."""

    def __init__(self, body: OpenAI, tokenizer: Tokenizer, model: str, usage: dict):
        self.body, self.tokenizer, self.model, self.usage = body, tokenizer, model, usage
        self.chat = isinstance(body, ChatCompletions)
        self.kind = "chat.completion" if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        self.id, self.created = f"{prefix}-{uuid.uuid4().hex}", int(time.time())
        self.offsets: dict[int, int] = {}

    def envelope(self, choices: list[dict], kind: str = "", **more) -> dict:
        head = {"id": self.id, "object": kind or self.kind, "created": self.created}
        return head | {"model": self.model, "choices": choices} | more

    def whole(self, choices: list[Part]) -> dict:
        found = []
        for part in choices:
            choice = {"index": part.row, "finish_reason": part.finish}
            if self.chat:
                message = {"role": "assistant", "content": part.text, "refusal": None}
                choice |= {"message": message, "logprobs": self.chat_logprobs(part)}
            else:
                choice |= {"text": part.text, "logprobs": self.logprobs(part)}
            found.append(choice)
        return self.envelope(found, usage=self.usage)

    def chunk(self, part: Part) -> dict:
        choice: dict = {"index": part.row}
        if self.chat:
            delta = {"content": part.text}
            if part.row not in self.offsets:
                delta, self.offsets[part.row] = {"role": "assistant"} | delta, 0
            choice |= {"delta": delta, "logprobs": self.chat_logprobs(part)}
        else:
            choice |= {"text": part.text, "logprobs": self.logprobs(part)}
        choice["finish_reason"] = part.finish or None
        return self.envelope([choice], "chat.completion.chunk" if self.chat else "")

    def logprobs(self, part: Part) -> dict | None:
        if self.body.logprobs is None:
            return None
        told = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        offset = self.offsets.get(part.row, 0)
        for token in part.tokens:
            text = self.text(token.id, token.skip)
            told["tokens"].append(text)
            told["token_logprobs"].append(token.logprob)
            top = {self.text(id, token.skip): value for id, value in reversed(token.top)}
            if token.logprob is None:
                told["top_logprobs"].append(None)
            else:
                told["top_logprobs"].append(top | {text: token.logprob} if top else top)
            told["text_offset"].append(offset)
            offset += len(text)
        self.offsets[part.row] = offset
        return told

    def chat_logprobs(self, part: Part) -> dict | None:
        if not self.body.logprobs:
            return None
        told = []
        for token in part.tokens:
            top = [self.scored(id, value) for id, value in token.top]
            told.append(self.scored(token.id, token.logprob) | {"top_logprobs": top})
        return {"content": told, "refusal": None}

    def scored(self, id: int, logprob: float) -> dict:
        return {
            "token": self.text(id),
            "logprob": logprob,
            "bytes": list(self.tokenizer.token_bytes(id)),
        }

    def text(self, id: int, skip: int = 0) -> str:
        return self.tokenizer.token_bytes(id)[skip:].decode(errors="replace")


def llama_answer(
    ask: Ask, part: Part, job: Job, new: int, tokenizer: Tokenizer, model: str, context: int
) -> dict:
    """What llama.cpp's server tells of a completion that is done. new: tokens written."""
    first = job.first or job.ended
    prompt_ms, new_ms = 1000 * (first - job.came), 1000 * (job.ended - first)
    read = len(ask.ids) - job.reused
    timings = {"prompt_n": read, "prompt_ms": prompt_ms, "cache_n": job.reused}
    timings |= {"predicted_n": new, "predicted_ms": new_ms}
    timings["prompt_per_second"] = 1000 * read / max(prompt_ms, 1e-6)
    timings["predicted_per_second"] = 1000 * max(new - 1, 0) / max(new_ms, 1e-6)
    answer = {"index": 0, "content": part.text, "stop": True, "model": model}
    answer |= {"stop_type": {"stop": "eos", "length": "limit"}[part.finish]}
    answer |= {"tokens_predicted": new, "tokens_evaluated": len(ask.ids)}
    answer |= {"tokens_cached": job.reused, "truncated": len(ask.ids) > context}
    answer |= {"has_new_line": "\n" in part.text, "timings": timings}

    def told(id: int, logprob: float) -> dict:
        return {"id": id, "token": tokenizer.decode([id]), "logprob": logprob}

    if ask.logprobs:
        answer["completion_probabilities"] = [
            told(token.id, token.logprob) | {"top_logprobs": [told(*pair) for pair in token.top]}
            for token in part.tokens
        ]
    return answer


def llama_fields(answer: dict, wanted: list[str] | None) -> dict:
    """The fields that a client of llama.cpp's server asks for; "timings/prompt_n" is one of those
    inside another, under that very name."""
    if not wanted:
        return answer
    found = {}
    for path in wanted:
        value: Any = answer
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[path] = value
    return found
