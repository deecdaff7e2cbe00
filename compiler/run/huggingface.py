"""A ``transformers`` model as the judge of an execution: its weights are loaded, its logits must come out.

Needs ``torch`` and ``transformers`` (``pip install "paradag[verify]"``); nothing else imports this module at start-up,
and nothing is downloaded.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from ...grammar.hf_config import read_hf_config
from ..diagnostics import Diagnostic, DiagnosticError
from ..spec import ModelSpec
from ._hf_weights import UnknownWeights, check_complete, renamed
from .report import TOLERANCE
from .weights import Weights, shapes_of

Precision = Literal["float32", "float64"]

SINGLE_TOLERANCE = 1e-4
"""Largest absolute difference between logits in float32 that counts as rounding."""


class HuggingFace:
    """A causal language model of ``transformers`` that an execution is compared with.

    The model is built anew from its config, with the weights of the one that is given, in one precision throughout: in
    float64 also where the model's code asks for float32 (norms, softmax, rotary angles, routers).

    Args:
        model: The model; it is left as it is.
        precision: In what it computes, and whoever loads its weights.

    Raises:
        DiagnosticError: PD020 or PD021 for an architecture that is not supported.
    """

    def __init__(self, model: PreTrainedModel, precision: Precision = "float64") -> None:
        self.precision = precision
        self.spec = ModelSpec.model_validate(read_hf_config(model.config.to_dict(), type(model).__name__))
        config = copy.deepcopy(model.config)
        config._attn_implementation = config._experts_implementation = "eager"
        with self._arithmetic():
            self.model = type(model)(config).to(getattr(torch, precision)).eval()
            self.model.load_state_dict(model.state_dict())
        self.weights = Weights(self.spec, _weights(self.model, self.spec))

    @classmethod
    def load(cls, folder: Path, precision: Precision = "float64") -> HuggingFace:
        """A model from a folder that ``save_pretrained`` wrote.

        Raises:
            DiagnosticError: PD001 for a folder that holds no such model; and see the class.
        """
        expected = "a folder written by save_pretrained"
        if not (folder / "config.json").is_file():  # its name might be taken for one of the library's cache
            raise DiagnosticError([Diagnostic("PD001", f"`{folder}` has no `config.json`", expected=expected)])
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            message = f"`{folder}` holds no causal language model: {reason}"
            raise DiagnosticError([Diagnostic("PD001", message, expected=expected)]) from error
        return cls(model, precision)

    @property
    def tolerance(self) -> float:
        return TOLERANCE if self.precision == "float64" else SINGLE_TOLERANCE

    def greedy(self, prompts: np.ndarray, steps: int) -> np.ndarray:
        """Logits [1 + steps, batch, vocab] after prompts and each further best token, by the model's own cache."""
        cache, ids, rows = DynamicCache(config=self.model.config), torch.from_numpy(prompts), []
        with torch.inference_mode(), self._arithmetic():
            for _ in range(1 + steps):
                logits = self.model(ids, past_key_values=cache, use_cache=True).logits[:, -1]
                rows.append(logits.numpy())
                ids = logits.argmax(dim=-1, keepdim=True)
        return np.stack(rows)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return _Double() if self.precision == "float64" else nullcontext()


def _weights(model: PreTrainedModel, spec: ModelSpec) -> dict[tuple[int, str], np.ndarray]:
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    try:
        tensors = renamed(state, spec)
        check_complete(tensors, shapes_of(spec))
    except UnknownWeights as error:
        raise DiagnosticError([Diagnostic("PD020", f"{type(model).__name__}: {error}")]) from error
    return tensors


class _Double(TorchFunctionMode):  # type: ignore[misc]
    """Computes in float64 what the model's code asks to be computed in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_widened, args), **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
