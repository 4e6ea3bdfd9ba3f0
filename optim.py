"""Training algorithms by name.

An optimizer is a function and its line in OPTIMIZERS; a learning-rate schedule is a function and
its line in SCHEDULES. An optimizer function takes the model and the settings and returns a list of
torch optimizers that together update every parameter:

    def rmsprop(model, cfg):
        return [torch.optim.RMSprop(groups(model, cfg), lr=cfg.lr)]

    OPTIMIZERS = {"rmsprop": (rmsprop, dict(lr=2e-3)), ...

Beside the function stand the settings that suit it where they differ from train.py's. train.py sets
each group's learning rate before every step. Matrices have weight decay, biases and norms never. An
algorithm of your own can subclass `Optimizer` below, as Lion does.
"""

import math

import torch

from parts import device


def groups(model, cfg, skip=frozenset()):
    """Parameter groups of all parameters but `skip`: those with weight decay, those without."""
    tables = {p for name, p in model.named_parameters() if "embed" in name}
    rest = [p for p in model.parameters() if p not in skip]
    decay = {p for p in rest if p.dim() >= 2 and (cfg.decay_embeddings or p not in tables)}
    decay -= vectors(model)
    return [
        {"params": [p for p in rest if p in decay], "weight_decay": cfg.weight_decay},
        {"params": [p for p in rest if p not in decay], "weight_decay": 0.0},
    ]


def fused(model):
    """Whether torch has optimizers in one kernel for the model's device."""
    return next(model.parameters()).device.type in ("cpu", "cuda")


def matrices(model):
    """The blocks' matrices, which Muon and SOAP treat as such."""
    some = vectors(model)
    return [p for p in model.gpt_neox["layers"].parameters() if p.dim() == 2 and p not in some]


def vectors(model):
    """Parameters with two dimensions that are no matrices: what a Mix holds is one vector for each
    position back."""
    kinds = {"Mix", "FastMix"}
    return {p for m in model.modules() if type(m).__name__ in kinds for p in m.parameters()}


def adamw(model, cfg, skip=frozenset()):
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2), fused."""
    betas = cfg.beta1, cfg.beta2
    return [AdamW(groups(model, cfg, skip), lr=cfg.lr, betas=betas, fused=fused(model))]


def adam(model, cfg):
    """Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1), fused; weight decay is
    part of the gradient."""
    betas = cfg.beta1, cfg.beta2
    return [torch.optim.Adam(groups(model, cfg), lr=cfg.lr, betas=betas, fused=fused(model))]


def sgd(model, cfg):
    """Gradient descent with Nesterov's momentum (Sutskever et al. 2013,
    https://proceedings.mlr.press/v28/sutskever13.html), fused."""
    sharded = hasattr(model, "unshard")  # torch's fused kernel cannot take slices
    how = dict(momentum=cfg.momentum, nesterov=cfg.momentum > 0, fused=fused(model) and not sharded)
    return [torch.optim.SGD(groups(model, cfg), lr=cfg.lr, **how)]


def adafactor(model, cfg):
    """Adafactor (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, algorithms 4 and 5): it
    keeps the squared gradient's sums by row and by column; lr is relative to each tensor's size.
    torch's first eps is the square root of the paper's 1e-30."""
    return [torch.optim.Adafactor(groups(model, cfg), lr=cfg.lr, eps=(1e-15, 1e-3))]


class Optimizer(torch.optim.Optimizer):
    """What the algorithms below share. `states` names the tensors, zero at first, that are kept for
    each parameter; `update` gets a group, its parameters, their gradients, and for each name the
    list of those tensors. group["steps"] counts from 1."""

    states = ()

    def __init__(self, params, **defaults):
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p] = {name: torch.zeros_like(p) for name in self.states}
            group["steps"] = group.get("steps", 0) + 1
            kept = [[self.state[p][name] for p in params] for name in self.states]
            if params:
                self.update(group, params, [p.grad for p in params], *kept)


def adam_direction(means, squares, beta1, beta2, steps, eps=1e-8):
    """Adam's direction from running means of gradients and of their squares, both corrected for
    their start at zero."""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, (1 - beta2**steps) ** 0.5)
    torch._foreach_add_(roots, eps)
    directions = torch._foreach_div(means, roots)
    torch._foreach_div_(directions, 1 - beta1**steps)
    return directions


def average_squares(squares, grads, beta2):
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)


class Lion(Optimizer):
    """Steps of one size, by the sign of the momentum (Chen et al. 2023,
    https://arxiv.org/abs/2302.06675, algorithm 2)."""

    states = ("momentum",)

    def update(self, group, params, grads, momenta):
        beta1, beta2 = group["betas"]
        updates = torch._foreach_lerp(momenta, grads, 1 - beta1)
        torch._foreach_sign_(updates)
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-group["lr"])
        torch._foreach_lerp_(momenta, grads, 1 - beta2)


def lion(model, cfg):
    return [Lion(groups(model, cfg), lr=cfg.lr, betas=(cfg.beta1, cfg.beta2))]


class Cautious(Optimizer):
    """AdamW that moves only the numbers that the gradient would move the same way, and those
    further (Liang et al. 2024, https://arxiv.org/abs/2411.16085, algorithm 2)."""

    states = ("mean", "square")

    def update(self, group, params, grads, means, squares):
        torch._foreach_lerp_(means, grads, 1 - group["betas"][0])
        average_squares(squares, grads, group["betas"][1])
        updates = adam_direction(means, squares, *group["betas"], group["steps"])
        agree = [(u * g > 0).to(u.dtype) for u, g in zip(updates, grads)]
        torch._foreach_mul_(updates, [a * (a.numel() / (a.sum() + 1)) for a in agree])
        torch._foreach_add_(params, updates, alpha=-group["lr"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])


def cautious(model, cfg):
    return [Cautious(groups(model, cfg), lr=cfg.lr, betas=(cfg.beta1, cfg.beta2))]


class ScheduleFree(Optimizer):
    """AdamW that needs no schedule, because it averages its weights (Defazio et al. 2024,
    https://arxiv.org/abs/2405.15682, algorithm 1).

    Gradients are taken at y, between the average x and the iterate z. The parameters are y, but
    between eval() and train() they are x, which is what to evaluate, save and use; the state then
    holds y, so that nothing is rounded on the way."""

    states = ("iterate", "square")

    def update(self, group, params, grads, iterates, squares):
        beta1, beta2 = group["betas"]
        if group["steps"] == 1:
            for iterate, p in zip(iterates, params):  # not _foreach_copy_, which takes no slices
                iterate.copy_(p)
        average_squares(squares, grads, beta2)
        lr = group["lr"] * (1 - beta2 ** group["steps"]) ** 0.5
        group["weight_sum"] = group.get("weight_sum", 0.0) + lr**2
        share = lr**2 / group["weight_sum"] if lr else 0.0
        updates = adam_direction(grads, squares, 0.0, 0.0, 1)  # not corrected: lr is
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        torch._foreach_lerp_(params, iterates, share)  # y of the new x and z, without x
        torch._foreach_add_(params, updates, alpha=-lr * (1 - beta1 * (1 - share)))
        torch._foreach_add_(iterates, updates, alpha=-lr)

    @torch.no_grad()
    def eval(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if state and "trained" not in state:
                    state["trained"] = p.clone()
                    p.lerp_(state["iterate"], 1 - 1 / group["betas"][0])

    @torch.no_grad()
    def train(self):
        for p, state in self.state.items():
            if "trained" in state:
                p.copy_(state.pop("trained"))


def schedulefree(model, cfg):
    if not cfg.beta1:
        raise ValueError("schedulefree needs beta1 above 0: the average's share of the weights")
    return [ScheduleFree(groups(model, cfg), lr=cfg.lr, betas=(cfg.beta1, cfg.beta2))]


class Muon(Optimizer):
    """Momentum whose matrices are orthogonalised (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon).

    It does what torch.optim.Muon does, but for all matrices of one shape together, in 0.6 of the
    time (4 to 6 layers, 128 to 256 wide, 2 cores). The update is scaled to AdamW's usual size (Liu
    et al. 2025, https://arxiv.org/abs/2502.16982, eq. 4), so that one learning rate suits both."""

    states = ("momentum_buffer",)

    def update(self, group, params, grads, buffers):
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        shapes = {}
        for row in zip(params, grads, buffers):
            shapes.setdefault(row[0].shape, []).append(row)
        for shape, rows in shapes.items():
            same, some, averages = zip(*rows)
            ahead = torch._foreach_lerp(some, averages, group["momentum"])  # Nesterov's
            updates = orthogonalize(torch.stack(ahead)).to(same[0].dtype)
            size = 0.2 * max(shape) ** 0.5
            torch._foreach_add_(same, list(updates), alpha=-size * group["lr"])


def orthogonalize(matrices, steps=5):
    """Matrices (n, rows, columns), each moved near the closest one with orthonormal rows or
    columns.

    Quintic Newton-Schulz steps, whose coefficients take singular values to between 0.7 and 1.2. In
    bfloat16, on GPUs that lack it in float32 (float16 is known to be unstable); float64 stays."""
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    if dtype == torch.float32 and device.has_bfloat16(matrices.device.type):
        dtype = torch.bfloat16
    tall = matrices.size(1) > matrices.size(2)  # not transposed: a copy takes as long as a product
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)).to(dtype)
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal(dim1=1, dim2=2).add_(3.4445)
        x = x @ polynomial if tall else polynomial @ x
    return x


def muon(model, cfg):
    """Muon for the blocks' matrices, AdamW for the rest."""
    inner = matrices(model)
    how = dict(lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
    return [Muon(inner, **how)] + adamw(model, cfg, skip=set(inner))


class SOAP(Optimizer):
    """Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024,
    https://arxiv.org/abs/2409.11321, algorithms 3 and 4).

    As in the authors' code, the first gradient only initialises the basis, so no gradient is
    projected onto a basis computed from itself alone. A step took 3 times as long as Muon's (4
    layers, 128 wide, 1 core)."""

    states = ("mean", "square")

    def update(self, group, params, grads, means, squares, frequency=10):
        beta1, beta2 = group["betas"]
        states = [self.state[p] for p in params]
        if group["steps"] > 1:
            torch._foreach_lerp_(means, grads, 1 - beta1)
            turned_means, turned_grads = (
                [s["left_basis"].T @ x @ s["right_basis"] for s, x in zip(states, tensors)]
                for tensors in (means, grads)
            )
            average_squares(squares, turned_grads, beta2)
            updates = adam_direction(turned_means, squares, beta1, beta2, group["steps"] - 1)
            updates = [s["left_basis"] @ u @ s["right_basis"].T for s, u in zip(states, updates)]
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])
        for state, g in zip(states, grads):
            for side, product in ("left", g @ g.T), ("right", g.T @ g):
                if group["steps"] == 1:
                    state[side] = (1 - beta2) * product
                    basis = torch.linalg.eigh(product)[1].flip(1)  # largest first, as below
                    state[f"{side}_basis"] = basis.contiguous()
                    continue
                state[side].lerp_(product, 1 - beta2)
                if (group["steps"] - 1) % frequency == 0:  # a step of power iteration
                    basis = torch.linalg.qr(state[side] @ state[f"{side}_basis"])[0]
                    state[f"{side}_basis"] = basis.contiguous()


def soap(model, cfg):
    """SOAP for the blocks' matrices, AdamW for the rest."""
    inner = matrices(model)
    how = dict(lr=cfg.lr, betas=(cfg.beta1, cfg.beta2), weight_decay=cfg.weight_decay)
    return [SOAP(inner, **how)] + adamw(model, cfg, skip=set(inner))


# Beside each function the settings that it brings where train.py's, which are AdamW's, do not suit
# it. The comments give validation losses on Shakespeare's letters (4 layers, 128 wide, GELU) after
# 300 steps, the rate falling linearly to zero (schedulefree: constant), one seed each; another seed
# moved four of them by up to 0.02. AdamW got 2.10 at 3e-3, and 2.19 at 1e-3.
OPTIMIZERS = {
    "adamw": (adamw, {}),
    # 2.10; 2.19 at 1e-3, 2.11 at 5e-3
    "adam": (adam, dict(lr=3e-3, min_lr=0.0, weight_decay=0.0)),
    # 2.25; 2.35 at 0.1, 2.30 at 1
    "sgd": (sgd, dict(lr=0.3, min_lr=0.0, momentum=0.9, weight_decay=0.0)),
    # 2.10; 2.11 at 7e-4, 2.13 at 2e-3
    "lion": (lion, dict(lr=1e-3, min_lr=0.0, beta2=0.98, weight_decay=0.3)),
    # 2.11; 2.24 at 1e-2, 2.18 at 0.1
    "adafactor": (adafactor, dict(lr=3e-2, min_lr=0.0, weight_decay=0.0)),
    # 2.06; 2.13 at 1e-3, 2.09 at 6e-3
    "cautious": (cautious, dict(lr=3e-3, min_lr=0.0)),
    # 2.06; 2.07 at 5e-3, 2.16 at 1e-2
    "schedulefree": (schedulefree, dict(lr=3e-3, min_lr=0.0, lr_schedule="constant")),
    # 1.95; 2.04 at 5e-3, 1.94 at 2e-2, 1.92 there with momentum 0.85
    "muon": (muon, dict(lr=1.5e-2, min_lr=0.0, momentum=0.9)),
    # 2.00; 2.01 at 6e-3, 2.08 at 2e-2, 1.97 with betas 0.8 and 0.9
    "soap": (soap, dict(lr=1e-2, min_lr=0.0)),
}
PRESETS = {name: preset for name, (_, preset) in OPTIMIZERS.items()}


def build(model, cfg) -> list[torch.optim.Optimizer]:
    """The torch optimizers that cfg.optimizer names."""
    return OPTIMIZERS[cfg.optimizer][0](model, cfg)


# --- learning-rate schedules ----------------------------------------------------------------------
# Each returns the share of the way from min_lr up to lr that remains, given the share of training
# that is done after warmup (0 to 1), the step, and the settings.


def cosine(done, step, cfg):
    return 0.5 * (1 + math.cos(math.pi * done))


def linear(done, step, cfg):
    return 1 - done


def wsd(done, step, cfg):
    """Warmup, stable, decay (Hu et al. 2024, https://arxiv.org/abs/2404.06395)."""
    return min(1, (1 - done) / 0.2)


def constant(done, step, cfg):
    return 1.0


def inv_sqrt(done, step, cfg):
    """Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 3."""
    return (max(step, 1) / max(cfg.warmup_iters, 1)) ** -0.5


SCHEDULES = {f.__name__: f for f in (cosine, linear, wsd, constant, inv_sqrt)}


def learning_rate(cfg, step, progress):
    """The rate for a step: a linear rise over warmup_iters, then cfg.lr_schedule by `progress`, the
    share of the whole run that is done."""
    if step < cfg.warmup_iters:
        return cfg.lr * (step + 1) / cfg.warmup_iters
    start = cfg.warmup_iters / cfg.max_iters
    done = min(max(progress - start, 0) / (1 - start), 1) if start < 1 else 1
    remains = SCHEDULES[cfg.lr_schedule](done, step, cfg)
    return cfg.min_lr + (cfg.lr - cfg.min_lr) * remains


# --- what train.py does with any of them ----------------------------------------------------------


def set_rate(optimizers, lr):
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def step(optimizers, bad):
    """Step all optimizers unless `bad`, a boolean tensor on the device, is true.

    torch's fused optimizers look at it on the device. Where another one takes part, or slices of a
    sharded model do, it is read, which waits for the device."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    sharded = any(hasattr(p, "full_tensor") for group in groups for p in group["params"])
    if not sharded and all(group.get("fused") for group in groups):
        for optimizer in optimizers:
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()
            optimizer.step()
    elif not bad:
        for optimizer in optimizers:
            optimizer.step()


def use_averaged_weights(optimizers, on):
    """Put the averaged weights of optimizers that keep some into the model, or with on=False those
    that are trained; either may be asked for twice."""
    for optimizer in optimizers:
        if hasattr(optimizer, "eval"):
            optimizer.eval() if on else optimizer.train()


# --- a faster start -------------------------------------------------------------------------------


def unwrapped(method):
    return getattr(method, "__wrapped__", method)


class AdamW(torch.optim.AdamW):
    """torch's own, with its step unwrapped (see below)."""

    step = torch.no_grad()(unwrapped(torch.optim.AdamW.step))


def start_without_compiler():
    """torch wraps three methods of its optimizers to keep torch.compile out of them, and imports
    the compiler for that: 1.3 of the 3.1 s to a first step on 2 cores. Mark them as wrapped."""
    for name in ("add_param_group", "state_dict", "load_state_dict"):
        method = unwrapped(getattr(torch.optim.Optimizer, name))
        method.__dynamo_disable = method


start_without_compiler()
