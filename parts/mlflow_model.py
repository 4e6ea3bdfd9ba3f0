"""A run's model as MLflow loads and serves it: a signature, and a function that completes prompts.

    model = mlflow.pyfunc.load_model("models:/nanoNeoX-python_cpu/1")
    model.predict(["def fibonacci(n):"], params={"temperature": 0.2, "stop": ["\\n\\n"]})

MLflow stores this file and what it imports beside the weights, so it needs no repository.
"""

import types

from parts import configurator

EXAMPLE = (["def fibonacci(n):"], {"max_new_tokens": 100})
# The settings of sample.py that `predict` takes: the default, and the limits of a number.
PARAMS = {
    "max_new_tokens": (200, 1, configurator.MAX_INT),
    "temperature": (0.8, 0, configurator.MAX_FLOAT),
    "top_k": (50, 0, configurator.MAX_INT),
    "top_p": (0.95, 1e-30, 1),
    "repetition_penalty": (1.0, 1e-30, configurator.MAX_FLOAT),
    "seed": (1337, 0, configurator.MAX_SEED),
    "stop": ([], None, None),
}


def signature():
    """What `predict` takes and returns, in MLflow's terms, by which MLflow refuses other types."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    kinds = {int: ("long", None), float: ("double", None), list: ("string", (-1,))}
    params = []
    for name, (default, _, _) in PARAMS.items():
        kind, shape = kinds[type(default)]
        params.append(ParamSpec(name, kind, default, shape))
    texts = Schema([ColSpec("string")])
    return ModelSignature(inputs=texts, outputs=texts, params=ParamSchema(params))


def read_params(params: dict | None) -> types.SimpleNamespace:
    """The defaults, and what was given instead. ValueError for a number out of its limits."""
    given = {key: value for key, value in (params or {}).items() if value is not None}
    values = {key: given.get(key, default) for key, (default, _, _) in PARAMS.items()}
    for key, (_, least, most) in PARAMS.items():
        if least is not None and not least <= values[key] <= most:
            raise ValueError(f"{key} must be from {least:,} to {most:,}, not {values[key]}")
    if "" in values["stop"]:
        raise ValueError("an empty stop would end every completion at once; leave it out")
    return types.SimpleNamespace(**values)


def _load_pyfunc(folder: str):
    """What `mlflow.pyfunc.load_model` returns for a run's model: an object whose predict(prompts,
    params) completes each prompt as sample.py does: alone, so that its text does not depend on the
    other prompts.

    MLflow calls the function of this name in the module that `MLflow.log_model` in
    parts/tracking.py gives it, so nothing has to be pickled."""
    import numpy as np
    from mlflow.exceptions import MlflowException

    from parts import device as devices
    from parts import hf, memory
    from parts import tokenizer as tokenization
    from parts.generate import completion, generate, read_prompt, sampling

    device = devices.pick("auto")
    model, tokenizer = hf.from_pretrained(folder).eval(), tokenization.load(folder)
    model.to(device, devices.generation_dtype(device, 1))

    def complete(text: str, cfg) -> str:
        prompt = read_prompt(tokenizer, text)
        memory.check_generation(model, 1, len(prompt.ids), cfg.max_new_tokens)

        def ended(ids):
            written = completion(tokenizer, ids, prompt.healed)
            return any(stop in written for stop in cfg.stop)

        (ids,) = generate(
            model,
            [prompt.ids],
            cfg.max_new_tokens,
            **sampling(cfg),
            stop_ids=list(tokenizer.special.values()),
            stop=ended if cfg.stop else None,
            first_ids=[prompt.first_ids],
            seed=cfg.seed,
            vocab_size=tokenizer.vocab_size,
        )
        return completion(tokenizer, ids, prompt.healed, cfg.stop)

    def predict(prompts, params=None):
        try:
            cfg = read_params(params)
            return [complete(str(prompt), cfg) for prompt in np.asarray(prompts).ravel()]
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    return types.SimpleNamespace(predict=predict)
