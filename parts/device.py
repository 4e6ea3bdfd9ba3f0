"""Which device, which dtype, and how fast the machine is."""

import contextlib
import ctypes
import functools
import time

import torch

DEVICES = ["auto", "cpu", "cuda", "mps"]
DTYPES = ["auto", "float32", "bfloat16", "float16"]


def pick(name: str) -> str:
    """The device that a setting names; "auto" is cuda if there is one, else the CPU.

    ValueError if it is not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    missing = name == "cuda" and not torch.cuda.is_available()
    if missing or (name == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"device={name} is not available here; use --device=auto")
    return name


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 is worth using: on GPUs from compute capability 8.0 on. (torch's
    is_bf16_supported() says yes to a T4, which emulates it at a quarter of float16's speed.)"""
    return device != "cuda" or torch.cuda.get_device_capability() >= (8, 0)


def native_dtype(device: str) -> torch.dtype:
    """The dtype of the fastest matrix products: bfloat16 where it is native, float16 on older GPUs,
    else float32."""
    if device == "cuda":
        return torch.bfloat16 if has_bfloat16(device) else torch.float16
    native = device == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return torch.bfloat16 if native else torch.float32


def training_dtype(device: str, name: str) -> torch.dtype:
    """The dtype of matrix products that a setting names; "auto" is the native one."""
    return native_dtype(device) if name == "auto" else getattr(torch, name)


def generation_dtype(device: str, rows: int) -> torch.dtype:
    """The fastest dtype for generating this many rows. One row on a CPU gains nothing from
    bfloat16: oneDNN rearranges the weights at every call, which takes longer than reading twice
    the bytes."""
    return torch.float32 if device == "cpu" and rows == 1 else native_dtype(device)


def autocast(device: str, dtype: torch.dtype):
    """A function that returns a context in which matrix products run in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device, dtype)


def prepare(device: str):
    """Process-wide settings of torch and the C library that training on this device wants."""
    torch.set_float32_matmul_precision("high")  # TF32, where a GPU has it
    # Sums of float16 products in float16 overflow; torch allows them unless told otherwise.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if device == "cpu":
        keep_freed_memory()


def use_threads(count: int) -> int:
    """Have torch compute on so many CPU threads; 0: as many as it chooses. Returns how many."""
    if count:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def keep_freed_memory(keep: bool = True):
    """Have the C library keep large blocks that are freed, or not. A CPU training step without
    torch.compile frees hundreds of MB; handing them back to the system and fetching them again
    made it 1.3 times as long. But keeping them takes up to 1.7 times the memory of their tensors,
    not 1.05. Linux with glibc; elsewhere this does nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 2**30 if keep else 2**20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1 if keep else 2**20)  # M_TRIM_THRESHOLD


def synchronize(device: str):
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s that this machine sustains in large matrix products: what MFU is a share of.

    On a CPU the best of four products (0.1 s). On a GPU the mean over a second: it slows down when
    it gets warm, and a T4 is held at 70 W. What this allocates does not count as peak memory."""
    if device == "cuda":
        return sustained_peak(dtype)
    n, times = 2048, []
    if device == "cpu":  # large enough; without native float16 a product of 2,048 takes a minute
        n = {torch.float32: 1024, torch.float16: 256}.get(dtype, n)
    a, b = torch.rand(2, n, n, device=device).to(dtype)
    for _ in range(4):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # reading a value waits for the device
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def sustained_peak(dtype: torch.dtype, n: int = 8192) -> float:
    """FLOP/s of a GPU in products of n x n matrices over a second."""
    a, b = torch.randn(2, n, n, device="cuda").to(dtype)
    a @ b  # cuBLAS prepares itself
    torch.cuda.synchronize()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 1:
        for _ in range(4):
            a @ b
        torch.cuda.synchronize()
        count += 4
    rate = 2 * n**3 * count / (time.perf_counter() - start)
    del a, b
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return rate
