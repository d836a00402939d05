"""One frozen base that carries the LoRA adapters sft, reward, policy and value."""

import copy
import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.models.adapter_files import (
    SCORE,
    SCORE_MODULES,
    adapter_folder,
    check_adapter,
    read_adapter,
    read_calibration,
    write_adapter,
    write_calibration,
)
from rlhf.models.batched_lora import can_batch_adapters, mixed_lora_forward
from rlhf.models.reward_model import load_reward_model
from rlhf.models.sharding import is_sharded

__all__ = [
    "SharedBase",
    "adapter_folder",
    "check_adapter",
    "load_reward_model",
    "read_calibration",
    "write_calibration",
]

# An adapter's configuration, its weights with PEFT's names, the weight [1, hidden] of its head if any, and its bias.
AdapterState = tuple[LoraConfig, dict[str, Tensor], Tensor | None, float]


class SharedBase(nn.Module):
    """One frozen causal LM that carries the named LoRA adapters; those with a scalar head score tokens.

    Four models for the memory of one: the policy is adapter `policy`, the reference is `sft`, the reward model `reward`
    and the value model `value`. Outside of `use(name)` no adapter is active: the model is the bare base, bit for bit.

    It has no forward of its own. A trainer calls the passes that it needs in the forward of a module around this one,
    because DDP and FSDP prepare for backward in the forward of the module that they wrap, and in no other method.

    Attributes:
        peft_model: the base, wrapped in a `PeftModel` once it has its first adapter.
        heads: adapter name -> `nn.Linear(hidden, 1)` in float32.
        ensembles: name -> the adapters whose scores `token_scores(name)` combines, and how; see `add_ensemble`.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        base.requires_grad_(False)
        self.peft_model: PeftModel | PreTrainedModel = base
        self.heads = nn.ModuleDict()
        self.ensembles: dict[str, tuple[tuple[str, ...], str]] = {}
        self._layers: list[nn.Module] = []  # those that hold adapters
        self._active: str | tuple[str, ...] | None = None
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        self.train(base.training)

    @property
    def lm(self) -> PreTrainedModel:
        """The transformers model itself, with LoRA layers in it; answers as the adapter in `use`."""
        return self.peft_model.get_base_model() if isinstance(self.peft_model, PeftModel) else self.peft_model

    @property
    def config(self):
        return self.lm.config

    @property
    def generation_config(self):
        return self.lm.generation_config

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they were added."""
        return tuple(self.peft_model.peft_config) if isinstance(self.peft_model, PeftModel) else ()

    # -- adapters in and out ------------------------------------------------------------------------------------------

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
            folder: folder or Hub id of a PEFT LoRA adapter. Of a SEQ_CLS adapter (a reward model) the LoRA part is laid
                onto the causal LM, whose backbone has the same names; with `head` its score head is taken too, and the
                calibration becomes the head's bias.
            lora_config: a new adapter, which changes nothing until it is trained.
            copy_of: name of an adapter that is already here; with `head` its head is copied too, if it has one.
            trainable: whether its parameters, and its head's, require gradients.
            head: whether it gets a scalar head. A new head is drawn from N(0, 1 / (hidden + 1)) (arXiv 2009.01325).

        Raises:
            InputError: missing adapter, one trained on another base, or no score head in a `folder` with `head`.
        """
        if sum(source is not None for source in (folder, lora_config, copy_of)) != 1:
            raise ValueError(f"adapter {name}: give exactly one of folder, lora_config, copy_of")
        if name in self.adapters:
            raise ValueError(f"adapter {name} is there already")
        if folder is not None:
            config, weights, score, bias = self._read(folder)
            if head and score is None:
                raise InputError(f"adapter {folder} has no score head; give the folder of a reward or value adapter.")
        elif copy_of is not None:
            config, weights, score, bias = self._state_of(copy_of)
        else:
            config, weights, score, bias = lora_config, None, None, 0.0

        trained = {parameter for parameter in self.parameters() if parameter.requires_grad}
        self._inject(name, copy.deepcopy(config))
        if weights is not None:
            self._load(name, weights, source=folder or copy_of)
        if head:
            self.heads[name] = _scalar_head(self.config.get_text_config().hidden_size, score, bias).to(self.device)
        for parameter in self.parameters():  # PEFT, in some versions, has switched others than the new ones
            parameter.requires_grad_(parameter in trained)
        for parameter in self._parameters_of(name):
            parameter.requires_grad_(trainable)
        self.train(self.training)  # else the dropout of the new layers is on in a model that is in evaluation mode
        self._select(None)

    def add_ensemble(self, name: str, members: Sequence[str], how: Literal["mean", "min"]) -> None:
        """Lets `token_scores(name)` be the mean, or the worst case, of what the heads of several adapters say.

        Reward models that differ in the seed of their training err in different places; a policy gains less from the
        error of one when the others are heard, most of all when the lowest score counts (arXiv 2310.02743).

        Args:
            name: may be that of a member, which itself stays as it is: `reward` for `reward`, `reward_2`, ...
            members: adapters with heads. Their scores are taken as they are, each calibrated on its own, so they should
                come from trainings that differ in nothing but seed and order.
        """
        if missing := [member for member in members if member not in self.heads]:
            raise ValueError(
                f"no adapter with a head {', '.join(missing)}; there are {', '.join(self.heads) or 'none'}"
            )
        self.ensembles[name] = tuple(members), how

    def save_adapter(self, name: str, folder: str | Path) -> None:
        """Writes adapter `name` as PEFT would, so that plain PEFT loads it.

        One with a head is written as TRL's RewardTrainer would: a SEQ_CLS adapter with `score`, beside it the bias of
        its head as calibration.json. `load_reward_model` reads value models, too.
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
        """Context in which the model answers as adapter `name`, or as the bare base if None. Contexts nest.

        Of R names each answers its part of a batch, in one pass: the first name the first 1 / R of the rows, and so on.
        `can_batch` says whether that is possible.

        It sets PEFT's active adapter layer by layer instead of calling `set_adapter`, which also switches
        `requires_grad` on for the chosen adapter and off for all others: the policy would come out of a pass of the
        reference frozen, and a recomputation in backward would build a graph other than the one it stands in for.
        """
        for one in name if isinstance(name, tuple) else (name,):
            if one is not None and one not in self.adapters:
                raise ValueError(f"no adapter {one}; there are {', '.join(self.adapters) or 'none'}")
        return _Use(self, name)

    def can_batch(self, *names: str) -> bool:
        """Whether `use(names)` is possible: plain LoRA layers of equal rank in the same places, not sharded."""
        return not is_sharded(self.lm) and can_batch_adapters(self._layers, names)

    def _select(self, name: str | tuple[str, ...] | None) -> None:
        for layer in self._layers:
            if isinstance(self._active, tuple):
                del layer.forward
            if isinstance(name, tuple):
                layer.forward = partial(mixed_lora_forward, layer, name)
            else:
                layer._active_adapter = [] if name is None else [name]
                layer._disable_adapters = name is None
        self._active = name

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """Keeps only the layers' inputs in forward and computes the layers again in backward.

        By then another adapter may be active, so each checkpoint remembers the one that its forward saw. That takes a
        `context_fn`, which only non-reentrant checkpoints have.
        """
        checkpoint_kwargs = dict(gradient_checkpointing_kwargs or {})
        if checkpoint_kwargs.setdefault("use_reentrant", False):
            raise InputError("a shared base needs use_reentrant: false in gradient_checkpointing_kwargs.")
        checkpoint_kwargs["context_fn"] = lambda: (nullcontext(), self.use(self._active))
        if hasattr(self.lm, "activation_checkpointing_enable"):
            self.lm.activation_checkpointing_enable(checkpoint_kwargs, **kwargs)
        else:
            self.lm.gradient_checkpointing_enable(checkpoint_kwargs, **kwargs)
        # transformers makes the embeddings' output require gradients, for reentrant checkpoints, which see no others.
        # Here it would only give passes of frozen adapters a graph that nobody walks.
        self.lm.disable_input_require_grads()

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs: dict | None = None, **kwargs) -> None:
        """The name by which the Trainer of newer transformers calls it."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    # -- passes -------------------------------------------------------------------------------------------------------

    def logits(
        self,
        name: str | None,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
    ) -> Tensor:
        """Next-token logits of adapter `name`.

        Args:
            input_ids, attention_mask: [B, T]; padding may be on either side.
            position_ids: [B, T]; by default counted from each row's first real token, as `generate` does.
            logits_to_keep: the last `logits_to_keep` positions (0 = all T), or what else transformers takes for it: the
                unembedding is computed for these positions only.

        Returns:
            [B, logits_to_keep or T, V], in the dtype of the base.
        """
        inputs = self._inputs(input_ids, attention_mask, position_ids)
        with self.use(name):
            return self.lm(**inputs, logits_to_keep=logits_to_keep).logits

    def token_scores(
        self,
        name: str,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """The head of adapter `name` on the last hidden state at every token: [B, T] float32.

        For `reward` the calibrated reward of the text up to that token, of which the last token's is the score; for
        `value` the value estimate. Of an ensemble, the mean or the least at every token. Without a mask, padding has to
        be on the right.
        """
        inputs = self._inputs(input_ids, attention_mask, position_ids)
        if name in self.ensembles:
            members, how = self.ensembles[name]
            scores = torch.stack([self._token_scores(member, inputs) for member in members])  # [M, B, T]
            return scores.mean(0) if how == "mean" else scores.amin(0)
        return self._token_scores(name, inputs)

    def _token_scores(self, name: str, inputs: dict) -> Tensor:
        backbone = getattr(self.lm, self.lm.base_model_prefix)
        with self.use(name):
            return self.head(name, backbone(**inputs).last_hidden_state)

    def head(self, name: str, hidden: Tensor) -> Tensor:
        """The head of adapter `name` on hidden states [..., H]: [...] float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.heads[name](hidden).squeeze(-1)

    def hidden_states(self, names: tuple[str, ...], input_ids: Tensor) -> Tensor:
        """Last hidden states of each of `names` on the same rows, in one pass; see `use`.

        Args:
            input_ids: [B, T]; padding has to be on the right.

        Returns:
            [len(names), B, T, H].
        """
        backbone = getattr(self.lm, self.lm.base_model_prefix)
        with self.use(names):
            hidden = backbone(input_ids=input_ids.repeat(len(names), 1), use_cache=False).last_hidden_state
        return hidden.unflatten(0, (len(names), len(input_ids)))

    @torch.no_grad()
    def generate(self, name: str | None, **kwargs) -> Tensor:
        """transformers' `generate` as adapter `name`."""
        with self.use(name):
            return self.lm.generate(**kwargs)

    def _inputs(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> dict:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if self._takes_positions and attention_mask is not None:
            if position_ids is None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            inputs["position_ids"] = position_ids
        return inputs

    # -- PEFT ---------------------------------------------------------------------------------------------------------

    def _inject(self, name: str, config: LoraConfig) -> None:
        """Puts untrained LoRA layers of `config` into the base."""
        config.task_type = TaskType.CAUSAL_LM
        config.modules_to_save = [m for m in config.modules_to_save or () if m not in SCORE_MODULES] or None
        config.base_model_name_or_path = config.base_model_name_or_path or self.lm.name_or_path
        config.inference_mode = False  # PEFT would freeze; who trains is decided in add_adapter
        if config.target_modules == "all-linear" and any(isinstance(m, AuxiliaryTrainingWrapper) for m in self._layers):
            config.exclude_modules = r".*\.(original_module|modules_to_save)(\..*)?"  # another adapter's own layers
        if isinstance(self.peft_model, PeftModel):
            self.peft_model.add_adapter(name, config)
        else:
            self.peft_model = PeftModel(self.peft_model, config, adapter_name=name)
        self._layers = [m for m in self.lm.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]

    def _read(self, folder: str | Path) -> AdapterState:
        config = check_adapter(folder, self.lm.name_or_path or None)
        folder = adapter_folder(folder)
        weights, score = read_adapter(folder)
        return config, weights, score, -read_calibration(folder)

    def _state_of(self, name: str) -> AdapterState:
        weights = get_peft_model_state_dict(self.peft_model, adapter_name=name, save_embedding_layers=False)
        weights = {key: weight.detach().clone() for key, weight in weights.items()}
        score, bias = None, 0.0
        if name in self.heads:
            score, bias = self.heads[name].weight.detach().clone(), self.heads[name].bias.item()
        return self.peft_model.peft_config[name], weights, score, bias

    def _load(self, name: str, weights: dict[str, Tensor], source: str | Path) -> None:
        # Where the base has grown a row for its pad token, PEFT may have saved the embeddings with the adapter. They
        # are the frozen base's own.
        own = {key for key, _ in self.lm.named_parameters(remove_duplicate=False)}
        weights = {k: w for k, w in weights.items() if k.removeprefix("base_model.model.") not in own}
        try:
            result = set_peft_model_state_dict(self.peft_model, weights, adapter_name=name)
        except RuntimeError as error:  # shapes differ
            raise InputError(f"adapter {source} does not fit the base {self.lm.name_or_path}: {error}") from error
        missing = [key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")]
        if missing or result.unexpected_keys:
            key = (missing + result.unexpected_keys)[0]
            raise InputError(f"adapter {source} does not fit the base {self.lm.name_or_path}: see its weight {key}.")

    def _parameters_of(self, name: str) -> list[nn.Parameter]:
        found: list[nn.Parameter] = []
        for layer in self._layers:
            for container in map(attrgetter, layer.adapter_layer_names):
                entries = container(layer)
                if name in entries:
                    entry = entries[name]
                    found += [entry] if isinstance(entry, nn.Parameter) else list(entry.parameters())
        return found + (list(self.heads[name].parameters()) if name in self.heads else [])


class _Use:
    """The context of `SharedBase.use`. Unlike a generator's it may be entered again: a recomputation may run twice."""

    def __init__(self, shared: SharedBase, name: str | tuple[str, ...] | None) -> None:
        self.shared, self.name = shared, name
        self.before: list[str | tuple[str, ...] | None] = []

    def __enter__(self) -> None:
        self.before.append(self.shared._active)
        self.shared._select(self.name)

    def __exit__(self, *_) -> None:
        self.shared._select(self.before.pop())


class ScalarHead(nn.Linear):
    """Computes in float32 also where DeepSpeed and FSDP have put its weights into the precision of the base."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), self.bias.float())


def _scalar_head(hidden: int, weight: Tensor | None, bias: float) -> ScalarHead:
    head = ScalarHead(hidden, 1, dtype=torch.float32)
    with torch.no_grad():
        if weight is None:
            nn.init.normal_(head.weight, std=(hidden + 1) ** -0.5)
        else:
            head.weight.copy_(weight)
        head.bias.fill_(bias)
    return head
