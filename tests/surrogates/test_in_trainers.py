"""The losses under Hugging Face's Trainer: accumulated batches give the gradient of the whole batch."""

import pytest
import torch
from torch.nn import functional as F

from reloss import ClassificationReLoss, ReadingReLoss, TranslationReLoss

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
DROPOUT = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
READING, CLASSES = ReadingReLoss().freeze(), ClassificationReLoss().freeze()
TRANSLATION = TranslationReLoss(width=8).freeze()


def reading_loss(outputs, labels, num_items_in_batch=None):
    logits = torch.stack((outputs.start_logits, outputs.end_logits), 1)
    loss = READING(logits, labels.view(-1, 1, 2))
    return loss * labels.numel() / num_items_in_batch  # the Trainer counts labels, two for each example


def class_loss(outputs, labels, num_items_in_batch=None):
    return CLASSES(outputs.logits, labels) * len(labels) / num_items_in_batch


def token_loss(outputs, labels, num_items_in_batch=None):
    mask = labels != -100
    loss = TRANSLATION(outputs.logits.log_softmax(-1), labels, mask)
    return loss * mask.sum() / num_items_in_batch


def small_model(name):
    torch.manual_seed(0)
    if name == "reading":
        return transformers.BertForQuestionAnswering(transformers.BertConfig(num_labels=2, **SIZES, **DROPOUT))
    if name == "classes":
        return transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3, **SIZES, **DROPOUT))
    sizes = {
        f"{part}_{size}": 1 for part in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")
    }
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    return transformers.BartForConditionalGeneration(
        transformers.BartConfig(vocab_size=20, d_model=8, max_position_embeddings=16, dropout=0, **sizes, **special)
    )


def examples(name):
    generator = torch.Generator().manual_seed(0)
    for length in torch.randint(3, 8, (16,), generator=generator).tolist():
        words = torch.randint(4, 20, (8,), generator=generator)
        labels = {
            "reading": torch.randint(8, (2,), generator=generator),
            "classes": torch.randint(3, (), generator=generator),
            "tokens": F.pad(words[:length], (0, 8 - length), value=-100),
        }
        previous = {"decoder_input_ids": F.pad(words[:-1], (1, 0), value=2)} if name == "tokens" else {}
        yield {"input_ids": words, "labels": labels[name], **previous}


def gradient_of(name, loss, folder, accumulate):
    gradients = []

    class Gradient(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))

    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=16 // accumulate, gradient_accumulation_steps=accumulate, max_steps=1,
        max_grad_norm=0, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        label_names=["labels"], remove_unused_columns=False,
    )  # fmt: skip
    model = small_model(name)
    transformers.Trainer(
        model, arguments, train_dataset=list(examples(name)), compute_loss_func=loss, callbacks=[Gradient()]
    ).train()
    return gradients[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "loss"), [("reading", reading_loss), ("classes", class_loss), ("tokens", token_loss)])
def test_accumulated_batches_give_the_gradient_of_the_whole_batch(tmp_path, name, loss):
    whole, parts = (gradient_of(name, loss, tmp_path, accumulate) for accumulate in (1, 4))
    assert whole.norm() > 0
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)
