"""Training algorithms by name: an optimizer is one function in OPTIMIZERS, a learning-rate schedule one in SCHEDULES.

An optimizer function takes the model and the settings and returns a list of torch optimizers that together update every
parameter; each parameter group's learning rate is then lr times what the schedule says. Matrices decay, biases and norms never.
"""

import math

import torch

# Two wrappers in torch's optimizers import its compiler, 2 to 3 s of a start on 2 cores, just to keep it out of these methods.
without_wrapper = lambda method: getattr(method, "__wrapped__", method)  # noqa: E731
for method in map(without_wrapper, (torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.state_dict, torch.optim.Optimizer.load_state_dict)):
    method.__dynamo_disable = method


class AdamW(torch.optim.AdamW):
    step = torch.no_grad()(without_wrapper(torch.optim.AdamW.step))


def adamw(model, cfg, skip=frozenset()):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), fused; parameters in `skip` are left to others."""
    rest = [p for p in model.parameters() if p not in skip]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return [AdamW(groups, lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), fused=fused)]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    It does what torch.optim.Muon does, but for all matrices of one shape together, in 0.6 of the time (4 to 6 layers, 128 to 256
    wide, 2 cores). The update is scaled to AdamW's usual size (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982, eq. 4), so that one learning rate suits both."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.1):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, same in shapes.items():
                grads = [p.grad for p in same]
                for p in same:
                    if not self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum_buffer"] for p in same]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                updates = orthogonalize(torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"])))  # Nesterov's look ahead
                torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(same, list(updates.to(same[0].dtype)), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


def orthogonalize(matrices, steps=5):
    """Matrices (n, rows, columns), each moved near the closest one with orthonormal rows or columns, in 16 bits: quintic
    Newton-Schulz steps, whose coefficients take singular values to about 1 (between 0.7 and 1.2) and not exactly there."""
    native = matrices.device.type != "cuda" or torch.cuda.get_device_capability() >= (8, 0)
    tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if tall else matrices) / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    x = x.to(torch.bfloat16 if native else torch.float16, memory_format=torch.contiguous_format)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        x = polynomial @ x
    return x.mT if tall else x


def muon(model, cfg):
    """Muon for the blocks' matrices, AdamW for the rest."""
    matrices = [p for p in model.gpt_neox["layers"].parameters() if p.dim() == 2]
    return [Muon(matrices, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)] + adamw(model, cfg, skip=set(matrices))


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
