"""Loads a real model by a known name, from a local folder or `.gguf` file, or from the Hugging Face hub."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn

from dipsim.basics.errors import InputError, one_line
from dipsim.basics.files import sha256
from dipsim.gpu.tensors import check_device
from dipsim.live import smollm2
from dipsim.live.routers import Router, find_routers
from dipsim.live.swiglu import Mlp, find_mlps
from dipsim.workload.shape import ModelShape

KNOWN: dict[str, Callable[[], Path]] = {"smollm2-135m": smollm2.path}
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with its tokenizer, shape and MLPs. `source` says where it came from.

    A mixture of experts has `routers` instead of MLPs. `path` is the model's GGUF file, None where it has none.
    """

    model: Any
    tokenizer: Any
    shape: ModelShape
    mlps: list[Mlp]
    source: dict[str, Any]
    routers: list[Router] = field(default_factory=list)
    path: Path | None = None


def load(name: str, dtype: str = "float32", device: str = "cpu", adapter: Path | None = None) -> LoadedModel:
    """Load a known name, a `.gguf` file, a local folder or else a model of the Hugging Face hub.

    `dtype` is one of DTYPES; `adapter` is a LoRA folder to merge. Only hub ids touch the network. Raises InputError
    if there is no such dtype or device, the model cannot be loaded, or it is neither a SwiGLU decoder nor a mixture of
    experts.
    """
    if dtype not in DTYPES:
        raise InputError(f"torch dtype {dtype!r}: is not known; use one of {', '.join(DTYPES)}")
    check_device(device)
    path = _locate(name)
    options: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    options |= {"local_files_only": True, "trust_remote_code": False}  # no code of a stranger, nor a question about it
    folder = path.parent if path.is_file() else path
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            options["dtype"] = getattr(torch, dtype)
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{name}: cannot be loaded ({_first_line(error)}); check the model's files") from None
    if adapter is not None:
        model = _merged(model, adapter)
    routers = find_routers(model)
    mlps = [] if routers else find_mlps(model)
    hub = name not in KNOWN and not Path(name).exists()
    source = {"model": name if hub else (path if path.is_file() else path.resolve()).name}
    if hub:
        source["model_revision"] = path.name
    if path.is_file():
        source["model_sha256"] = sha256(path)
    source |= {"tokenizer": f"the model's own, {len(tokenizer)} entries", "torch_dtype": dtype}
    source |= {"torch": torch.__version__, "transformers": transformers.__version__}
    title = name if name in KNOWN else Path(source["model"].removesuffix(".gguf")).name
    changes = {"name": re.sub(r"[^a-z0-9.]+", "-", title.lower()).strip("-")}
    shape = ModelShape.from_config(model.config.to_dict(), name, **changes)
    if [router.layer for router in routers] != np.flatnonzero(shape.is_mixture).tolist():
        raise InputError(f"{name}: its routers are not in the layers where config.json has mixtures; check the file")
    if routers and dtype == "float64":
        model.set_experts_implementation("eager")  # the default has no float64
    file = path if path.is_file() and adapter is None else None
    return LoadedModel(model.to(device).eval(), tokenizer, shape, mlps, source, routers, file)


def _locate(name: str) -> Path:
    """The `.gguf` file or the folder that a name means; a model of the hub is downloaded into the hub's own cache."""
    path = KNOWN[name]() if name in KNOWN else Path(name)
    if name in KNOWN and not path.is_file():
        raise InputError(f"{name}: is not there yet; run `make model` (or `python -m {smollm2.__name__}`)")
    if path.suffix == ".gguf" and not path.is_file():
        raise InputError(f"{name}: no such file (looked in {Path.cwd()})")
    if path.suffix == ".gguf":
        return path
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name}: holds no config.json; give the folder of a saved Hugging Face model")
        return path
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        known = ", ".join(KNOWN)
        raise InputError(f"{name or '(empty)'}: no such folder; give a folder, .gguf file, hub id or one of: {known}")
    try:
        wanted, not_wanted = ["*.json", "*.safetensors", "*.model", "*.txt"], ["consolidated*", "*/*"]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted, ignore_patterns=not_wanted))
    except Exception as error:  # the hub's, the network's and the disk's errors have no common base
        hint = f"check the name and the network, or use one of: {', '.join(KNOWN)}"
        raise InputError(f"{name}: no folder, and the hub does not give it ({_first_line(error)}); {hint}") from None


def _merged(model: Any, adapter: Path) -> Any:
    """The model with a LoRA adapter added into its weights, which takes no bytes of its own."""
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{adapter}: holds no adapter_config.json; give the folder that `adapt` wrote")
    import peft

    try:
        with quiet():
            adapted = peft.PeftModel.from_pretrained(model, str(adapter))
            wanted = sum("lora_" in name for name, _ in adapted.named_parameters())
            with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
                if (found := len(file.keys())) != wanted:
                    raise ValueError(f"{found} matrices for {wanted}")
            return adapted.merge_and_unload()
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, OSError, SafetensorError) as error:
        reason = one_line(error, 160)
        raise InputError(
            f"{adapter}: is not an adapter of this model ({reason}); give one that was trained on it"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")


@contextlib.contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, each hook is called with its module, the module's inputs and its output, which it may replace."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, the library shows no warnings and no progress bars, which it writes to stderr whatever its settings."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
