"""One frozen base that carries the LoRA adapters sft, reward, policy and value."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, TaskType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.models.adapter_files import (
    SCORE,
    SCORE_MODULES,
    adapter_folder,
    check_adapter,
    check_lora_config,
    read_adapter,
    read_calibration,
    write_adapter,
    write_calibration,
)
from rlhf.models.batched_lora import can_batch_adapters
from rlhf.models.packed_attention import repeated
from rlhf.models.peft_layers import (
    AdapterLayer,
    adapter_layers,
    adapter_parameters,
    adapter_weights,
    inject_adapter,
    load_adapter_weights,
    select_adapter,
    unwrap_peft,
)
from rlhf.models.positions import forward_inputs
from rlhf.models.precision import float_trained_weights
from rlhf.models.sharding import is_sharded

# (configuration, weights with PEFT's names, weight [1, H] of the head or None, bias of the head)
AdapterState = tuple[LoraConfig, dict[str, Tensor], Tensor | None, float]


class SharedBase(nn.Module):
    """One frozen causal LM that carries named LoRA adapters; adapters with a scalar head score tokens.

    Four models for the memory of one: the policy is adapter `policy`, the reference is `sft`, the reward model `reward`
    and the value model `value`. Outside of `use(name)` no adapter is active: the model is the bare base, bit for bit.

    The class has no forward. A trainer calls the methods below in the forward of a module that holds this one, because
    DDP and FSDP prepare for backward only in the forward of the module that they wrap.

    Attributes:
        peft_model: the base, wrapped in a `PeftModel` once it has its first adapter.
        heads: adapter name -> `ScalarHead` in float32.
        compiled: `lm` has compiled layers (`rlhf.models.compiled_layers`): one graph for all adapters in tuples.
        ensembles: name -> (members, "mean" or "min"), see `add_ensemble`.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        base.requires_grad_(False)
        self.peft_model: PeftModel | PreTrainedModel = base
        self.heads = nn.ModuleDict()
        self.ensembles: dict[str, tuple[tuple[str, ...], str]] = {}
        self._layers: list[AdapterLayer] = []  # of `adapter_layers`
        self._active: str | tuple[str, ...] | None = None
        self.compiled = False
        self.train(base.training)

    @property
    def lm(self) -> PreTrainedModel:
        """The transformers model with LoRA layers in it; computes with the adapter in `use`."""
        return unwrap_peft(self.peft_model)

    @property
    def config(self):
        return self.lm.config

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters, in the order of their addition."""
        return tuple(self.peft_model.peft_config) if isinstance(self.peft_model, PeftModel) else ()

    # -- add and save adapters ----------------------------------------------------------------------------------------

    def add_adapter(
        self,
        name: str,
        folder: str | Path | None = None,
        lora_config: LoraConfig | None = None,
        copy_of: str | None = None,
        trainable: bool = False,
        head: bool = False,
    ) -> None:
        """Adds adapter `name` from exactly one source.

        Args:
            name: e.g. `policy`.
            folder: folder or Hub id of a PEFT LoRA adapter. The LoRA weights of a SEQ_CLS adapter (a reward model) fit
                the causal LM, whose backbone has the same names. With `head` its score head is loaded too, and its
                calibration becomes the head's bias.
            lora_config: configuration of a new adapter, which changes no output until it is trained.
            copy_of: name of an adapter of this base; with `head` its head is copied too, if it has one.
            trainable: its parameters, and those of its head, require gradients.
            head: adds a scalar head. A new head is drawn from N(0, 1 / (H + 1)) (arXiv 2009.01325), or is zero if it is
                trainable: a value model that starts from nothing predicts 0.

        Raises:
            InputError: the adapter is missing, was trained on another base, changes the base, or has no score head and
                `head` is set.
        """
        if sum(source is not None for source in (folder, lora_config, copy_of)) != 1:
            raise ValueError(f"Adapter {name}: pass exactly one of folder, lora_config and copy_of.")
        if name in self.adapters:
            raise ValueError(f"Adapter {name} exists already. Pass another name.")
        if folder is not None:
            config, weights, score, bias = self._read(folder, head)
            if head and score is None:
                raise InputError(f"Adapter {folder} has no score head. Pass the folder of a reward or value adapter.")
        elif copy_of is not None:
            config, weights, score, bias = self._state_of(copy_of)
        else:
            assert lora_config is not None
            check_lora_config(lora_config, f"Adapter {name}")
            config, weights, score, bias = lora_config, None, None, 0.0

        trained = {parameter for parameter in self.parameters() if parameter.requires_grad}
        self.peft_model = inject_adapter(self.peft_model, name, copy.deepcopy(config))
        self._layers = adapter_layers(self.lm)
        if weights is not None:
            load_adapter_weights(self.peft_model, name, weights, source=folder or str(copy_of))
        if head:
            width = head_width(self.lm)
            if score is None and trainable:
                score = torch.zeros(1, width)
            self.heads[name] = make_scalar_head(width, score, bias).to(self.device)
        for parameter in self.parameters():  # some versions of PEFT change requires_grad of other adapters
            parameter.requires_grad_(parameter in trained)
        for parameter in self._parameters_of(name):
            parameter.requires_grad_(trainable)
        if trainable:
            float_trained_weights(self.peft_model)
        self.train(self.training)  # new layers start in training mode, with dropout
        self._select(None)

    def add_ensemble(self, name: str, members: Sequence[str], how: Literal["mean", "min"]) -> None:
        """Makes `token_scores(name)` the mean or the minimum of the scores of several adapters.

        Reward models trained with different seeds make different errors. A policy gains less from an error of one
        member if the others count too, and least if the lowest score counts (arXiv 2310.02743).

        Args:
            name: may be the name of a member, which itself does not change: `reward` for `reward`, `reward_2`, ...
            members: adapters with heads. Each is calibrated on its own and their scores are not rescaled, so their
                trainings should differ only in the seed and the order of the data.
        """
        if missing := [member for member in members if member not in self.heads]:
            raise ValueError(
                f"No adapter with a head is named {', '.join(missing)}. "
                f"Pass members from: {', '.join(self.heads) or 'none'}."
            )
        self.ensembles[name] = tuple(members), how

    def save_adapter(self, name: str, folder: str | Path) -> None:
        """Writes adapter `name` as PEFT does, so that plain PEFT loads it.

        An adapter with a head is written as TRL's RewardTrainer does: a SEQ_CLS adapter with `score`, plus the bias of
        the head as calibration.json. `load_reward_model` loads reward and value adapters.
        """
        config, weights, score, bias = self._state_of(name)
        config = copy.deepcopy(config)
        config.inference_mode = True
        if score is not None:
            config.task_type = TaskType.SEQ_CLS
            config.modules_to_save = [*(config.modules_to_save or ()), *SCORE_MODULES]
            weights[SCORE] = score
        write_adapter(Path(folder), config, weights)
        if score is not None:
            write_calibration(folder, -bias)

    def trainable_parameters(self, name: str) -> list[nn.Parameter]:
        """Parameters of adapter `name` and of its head that require gradients, always in the same order."""
        return [parameter for parameter in self._parameters_of(name) if parameter.requires_grad]

    # -- the active adapter -------------------------------------------------------------------------------------------

    def use(self, name: str | tuple[str, ...] | None) -> "_Use":
        """Context in which the model computes with adapter `name`, or as the bare base if None. Contexts nest.

        A tuple of R names splits the rows of a batch in one pass: the first name takes the first 1 / R of the rows, and
        so on. `can_batch` tells if this is possible.

        Sets PEFT's active adapter layer by layer instead of calling `set_adapter`, which also sets `requires_grad` on
        the chosen adapter and clears it on all others. After a reference pass the policy would be frozen, and
        activation recomputation would build a different graph from the one it replaces.
        """
        for adapter in name if isinstance(name, tuple) else (name,):
            if adapter is not None and adapter not in self.adapters:
                raise ValueError(f"No adapter is named {adapter}. Pass one of: {', '.join(self.adapters) or 'none'}.")
        return _Use(self, name)

    def can_batch(self, *names: str) -> bool:
        """True if `use(names)` works: the adapters are plain LoRA of equal rank on the same layers, not sharded."""
        return not is_sharded(self.lm) and can_batch_adapters(self._layers, names)

    def _select(self, name: str | tuple[str, ...] | None) -> None:
        select_adapter(self._layers, self._active, name, leaves=self.compiled)
        self._active = name

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Keeps only the layers' inputs in forward and recomputes the layers in backward.

        By then another adapter may be active, so each checkpoint remembers the adapter of its forward. This takes a
        `context_fn`, which only non-reentrant checkpoints have.
        """
        checkpoint_kwargs = dict(gradient_checkpointing_kwargs or {})
        if checkpoint_kwargs.setdefault("use_reentrant", False):
            raise InputError(
                "gradient_checkpointing_kwargs has use_reentrant: true. Set it to false for a shared base."
            )
        checkpoint_kwargs["context_fn"] = lambda: (nullcontext(), self.use(self._active))
        if hasattr(self.lm, "activation_checkpointing_enable"):
            self.lm.activation_checkpointing_enable(checkpoint_kwargs, **kwargs)
        else:
            self.lm.gradient_checkpointing_enable(checkpoint_kwargs, **kwargs)
        # transformers makes the embeddings' output require gradients, for reentrant checkpoints. Here it would only
        # build an unused autograd graph for frozen adapters.
        self.lm.disable_input_require_grads()

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Name of the same method in the Trainer of newer transformers."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    # -- forward passes -----------------------------------------------------------------------------------------------

    def token_scores(self, name: str, input_ids: Tensor, attention_mask: Tensor | None = None, **packed: Any) -> Tensor:
        """Head of adapter `name` on the last hidden state of every token: [B, T] float32.

        For `reward`, the calibrated reward of the text up to that token; the score of a text is that of its last token.
        For `value`, the value estimates. For an ensemble, the mean or minimum at every token.

        Args:
            input_ids, attention_mask: [B, T]; padding may be on either side. Without a mask it must be on the right.
            packed: the other arguments of a packed row [1, T] (`rlhf.models.packed_attention`).
        """
        if packed:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False, **packed}
        else:
            inputs = forward_inputs(self.lm, input_ids, attention_mask)
        if name in self.ensembles:
            members, how = self.ensembles[name]
            scores = torch.stack([self._token_scores(member, inputs) for member in members])  # [M, B, T]
            return scores.mean(0) if how == "mean" else scores.amin(0)
        return self._token_scores(name, inputs)

    def _token_scores(self, name: str, inputs: dict) -> Tensor:
        backbone = getattr(self.lm, self.lm.base_model_prefix)
        with self.use((name,) if self.compiled else name):
            return self.head(name, backbone(**inputs).last_hidden_state)

    def head(self, name: str, hidden: Tensor) -> Tensor:
        """Head of adapter `name` on hidden states [..., H]: [...] float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.heads[name](hidden).squeeze(-1)

    def hidden_states(self, names: tuple[str, ...], input_ids: Tensor, **packed: Any) -> Tensor:
        """Last hidden states of each adapter in `names` on the same rows, in one pass; see `use`.

        Args:
            input_ids: [B, T]; padding must be on the right.
            packed: the other arguments of a packed row [1, T] (`rlhf.models.packed_attention`).

        Returns:
            [len(names), B, T, H].
        """
        backbone = getattr(self.lm, self.lm.base_model_prefix)
        inputs = repeated({"input_ids": input_ids, **packed}, len(names))
        with self.use(names):
            hidden = backbone(**inputs, use_cache=False).last_hidden_state
        return hidden.unflatten(0, (len(names), len(input_ids)))

    # -- state of an adapter ------------------------------------------------------------------------------------------

    def _read(self, folder: str | Path, head: bool) -> AdapterState:
        config = check_adapter(folder, self.lm.name_or_path or None, getattr(self.lm.config, "_commit_hash", None))
        folder = adapter_folder(folder)
        weights, score = read_adapter(folder)
        return config, weights, score, -read_calibration(folder) if head and score is not None else 0.0

    def _state_of(self, name: str) -> AdapterState:
        score, bias = None, 0.0
        if name in self.heads:
            head = cast(ScalarHead, self.heads[name])
            score, bias = head.weight.detach().clone(), head.bias.item()
        model = cast(PeftModel, self.peft_model)  # since its first adapter
        return cast(LoraConfig, model.peft_config[name]), adapter_weights(model, name), score, bias

    def _parameters_of(self, name: str) -> list[nn.Parameter]:
        head = list(self.heads[name].parameters()) if name in self.heads else []
        return adapter_parameters(self._layers, name) + head


class _Use:
    """Context of `SharedBase.use`. Unlike a generator's, it can be entered again, since recomputation may run twice."""

    def __init__(self, shared: SharedBase, name: str | tuple[str, ...] | None) -> None:
        self.shared, self.name = shared, name
        self.before: list[str | tuple[str, ...] | None] = []

    def __enter__(self) -> None:
        self.before.append(self.shared._active)
        self.shared._select(self.name)

    def __exit__(self, *_) -> None:
        self.shared._select(self.before.pop())


class ScalarHead(nn.Linear):
    """Linear layer from H features to 1.

    Computes in float32 even if DeepSpeed or FSDP has cast its weights to the dtype of the base.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), self.bias.float())


def head_width(lm: PreTrainedModel) -> int:
    """Returns the size of the last hidden states, which OPT-350m projects to half of `hidden_size`."""
    return getattr(lm.get_output_embeddings(), "in_features", lm.config.get_text_config().hidden_size)


def make_scalar_head(hidden_size: int, weight: Tensor | None, bias: float) -> ScalarHead:
    """A head with `weight` [1, H] and `bias`; without a weight, N(0, 1 / (H + 1)) (arXiv 2009.01325)."""
    head = ScalarHead(hidden_size, 1, dtype=torch.float32)
    with torch.no_grad():
        if weight is None:
            nn.init.normal_(head.weight, std=(hidden_size + 1) ** -0.5)
        else:
            head.weight.copy_(weight)
        head.bias.fill_(bias)
    return head
