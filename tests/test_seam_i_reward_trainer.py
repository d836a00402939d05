"""Arguments and columns of TRL's RewardTrainer that the K-wise trainer does not take."""

import pytest
from datasets import Dataset
from toys import classifier, word_tokenizer
from trl import RewardConfig

from rlhf.errors import InputError
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer

ROWS = [{"prompt": "w5 w6", "chosen": "w7", "rejected": "w8 w9"}] * 4


def test_seam_i7_what_the_reward_trainer_does_not_take_is_refused(tmp_path):
    options = dict(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")

    def build(dataset, config=KWiseRewardConfig, **kwargs):
        return KWiseRewardTrainer(
            classifier(), config(**options), train_dataset=dataset, processing_class=word_tokenizer(), **kwargs
        )

    rows = Dataset.from_list(ROWS)
    assert len(build(rows).train_dataset) == 4
    for column, value in {"margin": 0.5, "tools": "[]", "chat_template_kwargs": {"a": 1}}.items():
        with pytest.raises(InputError, match=f"the train comparisons have the column {column}, which"):
            build(Dataset.from_list([{**row, column: value} for row in ROWS]))
    with pytest.raises(InputError, match="args is a RewardConfig; pass a KWiseRewardConfig"):
        build(rows, RewardConfig)
    with pytest.raises(InputError, match="train_dataset is streamed; load it whole"):
        build(rows.to_iterable_dataset())
    with pytest.raises(InputError, match="eval_dataset is streamed"):
        build(rows, eval_dataset={"a": rows, "b": rows.to_iterable_dataset()})
