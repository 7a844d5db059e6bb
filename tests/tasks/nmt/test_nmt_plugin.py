import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reloss_tasks.nmt.plugin  # noqa: F401  (lets the safe loader read fairseq's checkpoints)
from reloss import TranslationReLoss
from reloss.experiment.settings import override
from reloss.experiment.task import tasks
from reloss_tasks.nmt.preparation import prepare

PLUGIN = Path(__file__).parents[3] / "tasks" / "nmt" / "plugin"
MODEL = (
    *("--share-all-embeddings", "--encoder-layers", "1", "--decoder-layers", "1", "--dropout", "0"),
    *(f"--{part}-embed-dim=32" for part in ("encoder", "decoder")),
    *(f"--{part}-attention-heads=2" for part in ("encoder", "decoder")),
    *("--optimizer", "adam", "--lr", "0.005", "--max-tokens", "400", "--num-workers", "0", "--label-smoothing", "0.1"),
)
BLEU = (
    *("--eval-bleu", "--eval-bleu-remove-bpe", "sentencepiece", "--best-checkpoint-metric", "bleu"),
    *("--maximize-best-checkpoint-metric",),
)
TEST = ("--gen-subset", "test", "--required-batch-size-multiple", "1")  # with 8, sentences would be lost


@pytest.fixture
def toy_binary(toy, tmp_path, tiny_settings):
    """The toy language, binarised by fairseq-preprocess."""
    config = override(tasks()["nmt"].experiments["nmt/multi30k_de_en_nat"](), tiny_settings)
    return prepare(config.data, toy, tmp_path)


def fairseq(command, *words):
    """Run a command of fairseq with the plug-in, in its own process; return its output."""
    result = subprocess.run(
        [Path(sys.executable).with_name(f"fairseq-{command}"), *map(str, words), "--user-dir", PLUGIN],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_a_checkpoint_with_bleu_counts_resumes_and_generates(toy_binary, tmp_path):
    TranslationReLoss("identity", "counted", "token", width=8, feedforward=8, heads=2).save_pretrained(
        tmp_path / "surrogate"
    )
    criterion = ("--criterion", "reloss_at", "--surrogate", tmp_path / "surrogate", "--nll-weight", "1")
    words = ("--task", "translation", "--arch", "transformer", *criterion, *MODEL, *BLEU)
    save = tmp_path / "checkpoint"
    fairseq("train", toy_binary, *words, "--save-dir", save, "--max-epoch", "1")
    output = fairseq("train", toy_binary, *words, "--save-dir", save, "--max-epoch", "2")
    assert f"Loaded checkpoint {save / 'checkpoint_last.pt'} (epoch 2 @" in output
    metrics = torch.load(save / "checkpoint_last.pt", weights_only=True)["extra_state"]["metrics"]["valid"]
    (counts,) = [meter["sum"] for _, name, _, meter in metrics if name == "_bleu_counts"]
    assert counts.shape == (4,)
    output = fairseq("generate", toy_binary, "--path", save / "checkpoint_last.pt", *TEST)
    assert output.count("\nD-") == 11


@pytest.mark.slow
def test_a_non_autoregressive_model_trains_and_translates(toy_binary, tmp_path):
    words = ("--task", "translation_lev", "--noise", "full_mask", "--arch", "nonautoregressive_transformer")
    save = tmp_path / "checkpoint"
    options = ("--pred-length-offset", "--left-pad-source", "--ddp-backend", "legacy_ddp", "--max-epoch", "1")
    fairseq("train", toy_binary, *words, "--criterion", "bon_nat", *MODEL, *options, "--save-dir", save)
    generate = ("--task", "translation_lev", "--iter-decode-max-iter", "0", "--left-pad-source")
    output = fairseq("generate", toy_binary, *generate, "--path", save / "checkpoint_last.pt", *TEST)
    assert output.count("\nD-") == 11
