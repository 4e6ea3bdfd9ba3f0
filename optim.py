"""Training algorithms by name: an optimizer is one function in OPTIMIZERS, a learning-rate schedule one in SCHEDULES.

An optimizer function takes the model and the settings and returns a list of torch optimizers that together update every
parameter; each parameter group's learning rate is then lr times what the schedule says. Matrices decay, biases and norms never.
"""

import math

import torch


def adamw(model, cfg, skip=frozenset()):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), fused; parameters in `skip` are left to others."""
    rest = [p for p in model.parameters() if p not in skip]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return [torch.optim.AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), fused=fused)]


def muon(model, cfg):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for the blocks' matrices, AdamW for the rest.

    The update is scaled to AdamW's usual size (Liu et al. 2025, https://arxiv.org/abs/2502.16982, eq. 4): one lr suits both."""
    matrices = [p for p in model.gpt_neox["layers"].parameters() if p.dim() == 2]
    hidden = torch.optim.Muon(matrices, lr=cfg.lr, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw")
    return [hidden] + adamw(model, cfg, skip=set(matrices))


OPTIMIZERS = {"adamw": adamw, "muon": muon}

# From the share of training done after warmup, 0 to 1, to the share of the way from lr down to min_lr that is left, 1 to 0.
SCHEDULES = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def learning_rate(cfg, step, progress):
    """The rate for a step: a linear rise over warmup_iters, then cfg.lr_schedule by the share of the run that is done."""
    if step < cfg.warmup_iters:
        return cfg.lr * (step + 1) / cfg.warmup_iters
    start = cfg.warmup_iters / cfg.max_iters
    done = min(max(progress - start, 0) / (1 - start), 1) if start < 1 else 1
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * SCHEDULES[cfg.lr_schedule](done)
