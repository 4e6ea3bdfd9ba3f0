"""The exact loss over the whole validation split."""

import math

import numpy as np

from tasks.code import CLASSES, token_classes
from tasks.scoring import score
from tasks.task import Examinee, Task


class Loss(Task):
    """Over all tokens but the first, each scored once; of code also by class of token."""

    def measure(self, examinee: Examinee) -> dict[str, float]:
        context = examinee.network.config.block_size
        stride = min(self.options.stride or context, context)
        [scores] = score(examinee, [self.tokens], [1], stride, "loss")
        nats, ranks = scores.nats[1:].astype(np.float64), scores.ranks[1:]
        loss = nats.mean()
        report = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "bits_per_byte": loss / math.log(2) * len(self.tokens) / self.meta["val"]["bytes"],
            "top1": (ranks == 0).mean(),
            "top5": (ranks < 5).mean(),
        }
        if self.language:
            classes = token_classes(self.tokens, self.tokenizer, self.language)[1:]
            for number, name in enumerate(CLASSES):
                mask = classes == number
                if mask.any():
                    report[f"loss_{name}"] = nats[mask].mean()
                    report[f"top1_{name}"] = (ranks[mask] == 0).mean()
                    report[f"share_{name}"] = mask.mean()
        return {key: float(value) for key, value in report.items()}
