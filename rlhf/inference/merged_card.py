"""What a merged model's folder says about it: how it agrees with its adapter, and its model card."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.generation.score_options import policy_options
from rlhf.models.adapter_files import CALIBRATION
from rlhf.models.stop_tokens import stop_token_texts
from rlhf.runs.markdown import render_template
from rlhf.runs.model_card import HUB_ID, portable, read_mapping

# Largest difference of two logits over the largest one.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Agreement:
    """How a merged model differs from its adapter on a few texts.

    Attributes:
        difference: largest absolute difference of logits, or of scores of a reward model.
        mean: root of the mean squared difference.
        effect: the same of the adapter and the bare base; 0 for a reward model, whose base has no head.
        scale: largest absolute logit, at least 1.
        dtype: of the merged weights.
    """

    difference: float
    mean: float
    effect: float
    scale: float
    dtype: torch.dtype

    @property
    def problem(self) -> str | None:
        """Returns why the merged model is not the adapter's; None if it is."""
        if not self.difference <= TOLERANCE[self.dtype] * self.scale:
            return f"differs by up to {self.difference:.2g}, of logits up to {self.scale:.2g}"
        if self.effect and self.mean > self.effect / 2:
            return f"differs by {self.mean:.2g} on average, and the adapter changes its base only by {self.effect:.2g}"
        return None


def bits(model_args: ModelConfig) -> str:
    """Returns words for a base that was quantized: " in 4 bits, dequantized"; "" for others."""
    count = 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else 0
    return f" in {count} bits, dequantized" if count else ""


def merged_card(
    output_dir: Path,
    folder: Path,
    model_args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    agreement: Agreement,
    is_reward: bool,
) -> str:
    """Returns the model card of a merged model; `folder` is the adapter's."""
    base = portable(model_args.model_name_or_path)
    data = ModelCardData(
        base_model=base if HUB_ID.fullmatch(base) else None,  # the Hub accepts only ids here
        library_name="transformers",
        pipeline_tag="text-classification" if is_reward else "text-generation",
        tags=["rlhf", "instruct-rlhf", *(["reward-model"] if is_reward else [])],
    )
    return render_template(
        Path(__file__).with_name("merged_card.md.j2"),
        front_matter=data.to_yaml(),
        title=output_dir.name,
        base=base,
        bits=bits(model_args),
        is_reward=is_reward,
        bias=read_mapping(folder / CALIBRATION).get("bias", 0.0),
        stop_tokens=" or ".join(f"`{token}`" for token in stop_token_texts(tokenizer)),
        temperature=policy_options(folder).temperature,
        dtype=dtype_name(agreement.dtype),
        difference=f"{agreement.difference:.2g}",
        scale=f"{agreement.scale:.2g}",
    )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
