from argparse import Namespace
from collections import Counter

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from fairseq.data import Dictionary
from torch.nn import functional as F
from torch.testing import assert_close

from benchmarks.losses import bags
from reloss import ClassificationReLoss, TranslationReLoss
from reloss.runtime.errors import UsageError
from reloss.surrogates.expected.translation import ExpectedTranslation
from reloss_tasks.nmt.losses import BagOfNgramsNAT, ExpectedNAT, ReLossAT, ReLossNAT, bag_of_ngrams_l1
from reloss_tasks.nmt.watched_tasks import NO_TOKEN, SPECIAL, gold_tokens

PAD = 1
TARGETS = torch.tensor([[0, 5, 6, 5, 6, 2], [0, 7, 2, 1, 1, 1], [9, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
MASK = TARGETS != PAD


@pytest.fixture
def surrogate(tmp_path):
    torch.manual_seed(0)
    surrogate = TranslationReLoss("identity", "counted", "token", width=8, feedforward=8, heads=2, length=10).freeze()
    surrogate.save_pretrained(tmp_path / "surrogate")
    return surrogate


def logits(seed=0, dtype=torch.float32):
    return torch.randn(*TARGETS.shape, 11, generator=torch.Generator().manual_seed(seed)).to(dtype)


def task():
    return Namespace(target_dictionary=Dictionary())


def brute_force_bag(log_probs, targets, mask, order):
    """1 - (sum of the smaller counts over the reference's distinct n-grams) / number of n-grams, for each sentence."""
    distances = []
    for row, gold, real in zip(log_probs.exp(), targets.tolist(), mask.sum(-1).tolist(), strict=True):
        starts = real - order + 1
        if starts < 1:
            continue
        bag = Counter(tuple(gold[t : t + order]) for t in range(starts))
        matched = 0.0
        for gram, count in bag.items():
            expected = sum(
                torch.stack([row[t + place, token] for place, token in enumerate(gram)]).prod() for t in range(starts)
            )
            matched += min(expected, torch.tensor(float(count)))
        distances.append(1 - matched / starts)
    return torch.stack(distances).mean()


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 4.0])
def test_bag_of_ngrams_equals_a_count_by_hand(order, sharpness):
    log_probs = (sharpness * F.one_hot(TARGETS, 11) + logits()).log_softmax(-1)
    assert_close(bag_of_ngrams_l1(log_probs, TARGETS, MASK, order), brute_force_bag(log_probs, TARGETS, MASK, order))


def test_bag_of_ngrams_ignores_where_the_ngrams_stand():
    right = F.one_hot(TARGETS, 11).float().log()
    assert bag_of_ngrams_l1(right, TARGETS, MASK) == 0
    swapped = right.clone()
    swapped[0] = swapped[0, [0, 3, 4, 1, 2, 5]]  # 0 5 6 5 6 2 again
    assert bag_of_ngrams_l1(swapped, TARGETS, MASK) == 0
    assert bag_of_ngrams_l1(right.roll(1, 1), TARGETS, MASK, 1) > 0


def test_bag_of_ngrams_without_ngrams_is_zero():
    for targets in (TARGETS[3:], TARGETS[2:3, :1]):
        log_probs = torch.zeros(1, targets.shape[1], 11).log_softmax(-1).requires_grad_()
        loss = bag_of_ngrams_l1(log_probs, targets, targets != PAD)
        loss.backward()
        assert loss == 0
        assert log_probs.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nll_weight", [0.0, 0.5])
def test_reloss_nat_is_the_surrogate_and_the_likelihood(surrogate, tmp_path, nll_weight, dtype):
    criterion = ReLossNAT(task(), 0.1, str(tmp_path / "surrogate"), nll_weight)
    out = logits(dtype=dtype).requires_grad_()
    losses = criterion._compute_loss(out, TARGETS, MASK, 0.1, name="word_ins-loss")
    log_probs = out.float().log_softmax(-1)
    gold = log_probs.gather(-1, TARGETS[..., None])[..., 0]
    nll = -gold[MASK].mean()
    smooth = 0.9 * nll - 0.1 * log_probs[MASK].mean()
    expected = surrogate.of_gold(gold[None], MASK[None])[0] + nll_weight * smooth
    assert_close(losses["loss"].float(), expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-4)
    losses["loss"].backward()
    assert torch.isfinite(out.grad).all()
    assert out.grad[~MASK].abs().max() == 0
    assert out.grad[MASK].abs().amax(-1).min() > 0
    assert not list(criterion.parameters())


def test_learned_weights_are_the_criterions(tmp_path):
    folder = saved(ExpectedTranslation(metric="token_bleu"), tmp_path / "expected")
    criterion, fixed = (ReLossNAT(task(), 0.1, folder, weight) for weight in ("learned", "1"))
    learned, plain = (
        each._compute_loss(logits(), TARGETS, MASK, 0.1, name="word_ins-loss")["loss"] for each in (criterion, fixed)
    )
    assert learned != plain
    assert [name for name, _ in criterion.named_parameters()] == ["uncertainty.log_deviations"]
    other = ReLossNAT(task(), 0.1, folder, "learned")
    other.load_state_dict(criterion.state_dict(), strict=True)
    assert torch.equal(other.uncertainty.log_deviations, criterion.uncertainty.log_deviations)
    other.load_state_dict(None)  # of the baseline's checkpoint, which is fine-tuned
    with pytest.raises(UsageError, match="cannot be learned for TranslationReLoss"):
        ReLossNAT(task(), 0.1, saved(TranslationReLoss(), tmp_path / "likelihood"), "learned")


def saved(surrogate, folder):
    surrogate.freeze().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("metric", ["token_bleu", None])
def test_expected_nat_computes_the_loss_as_on_recorded_predictions(tmp_path, metric):
    torch.manual_seed(0)
    surrogate = ExpectedTranslation(metric)
    criterion = ExpectedNAT(task(), 0.1, saved(surrogate, tmp_path / "surrogate"), 0.0)
    out = logits().requires_grad_()
    loss = criterion._compute_loss(out, TARGETS, MASK, 0.1, name="word_ins-loss")["loss"]
    loss.backward()
    outputs, tokens = gold_tokens(out.detach().log_softmax(-1), TARGETS, Dictionary(), all_positions=True)
    assert_close(loss, surrogate.per_item(outputs[None], tokens[None])[0])
    assert out.grad[~MASK].abs().max() == 0
    assert out.grad[MASK].abs().amax(-1).min() > 0


def test_surrogates_that_do_not_fit_are_refused(tmp_path):
    expected = saved(ExpectedTranslation("token_bleu"), tmp_path / "expected")
    with pytest.raises(UsageError, match="an autoregressive model has seen the reference before each position"):
        ReLossAT(task(), False, 0.1, expected, 0.0)
    other = saved(ClassificationReLoss(), tmp_path / "classification")
    with pytest.raises(
        UsageError, match="is a ClassificationReLoss; translation needs a surrogate of kind translation"
    ):
        ReLossNAT(task(), 0.1, other, 0.0)


def test_the_length_loss_is_unchanged(surrogate, tmp_path):
    out, targets = torch.randn(4, 256), torch.tensor([3, 4, 5, 6])
    plain = BagOfNgramsNAT(task(), 0.1, 0.0, 2)
    for criterion in (plain, ReLossNAT(task(), 0.1, str(tmp_path / "surrogate"), 0.0)):
        losses = criterion._compute_loss(out, targets, name="length-loss", factor=0.1)
        assert_close(losses["loss"], 0.1 * F.cross_entropy(out, targets))


def test_a_batch_that_is_all_padding(surrogate, tmp_path):
    out = logits()[3:].requires_grad_()
    criterion = ReLossNAT(task(), 0.1, str(tmp_path / "surrogate"), 1.0)
    loss = criterion._compute_loss(out, TARGETS[3:], MASK[3:], 0.1, name="word_ins-loss")["loss"]
    assert loss == 0
    loss.backward()
    assert out.grad.abs().max() == 0


def test_reloss_at_is_a_sum_over_tokens(surrogate, tmp_path):
    criterion = ReLossAT(task(), False, 0.1, str(tmp_path / "surrogate"), 0.5)
    out = logits()
    model = Namespace(
        get_normalized_probs=lambda net, log_probs: net[0].log_softmax(-1), get_targets=lambda sample, net: TARGETS
    )
    loss, nll = criterion.compute_loss(model, (out, {}), {"target": TARGETS, "ntokens": int(MASK.sum())})
    log_probs = out.log_softmax(-1)
    gold = log_probs.gather(-1, TARGETS[..., None])[..., 0]
    smooth, plain = label_smoothed_nll_loss(log_probs.flatten(0, 1), TARGETS.flatten(), 0.1, ignore_index=PAD)
    assert_close(nll, plain)
    assert_close(loss, MASK.sum() * surrogate.of_gold(gold[None], MASK[None])[0] + 0.5 * smooth)


def test_the_ignored_prefix_does_not_count(surrogate, tmp_path):
    criterion = ReLossAT(task(), False, 0.1, str(tmp_path / "surrogate"), 0.0, ignore_prefix_size=2)
    out = logits()[:3].requires_grad_()
    model = Namespace(
        get_normalized_probs=lambda net, log_probs: net[0].log_softmax(-1), get_targets=lambda sample, net: TARGETS[:3]
    )
    tokens = int(MASK[:3].sum())
    loss, _ = criterion.compute_loss(model, (out, {}), {"target": TARGETS[:3], "ntokens": tokens})
    gold = out.log_softmax(-1).gather(-1, TARGETS[:3, :, None])[:, 2:, 0]
    assert_close(loss, tokens * surrogate.of_gold(gold[None], MASK[None, :3, 2:])[0])
    loss.backward()
    assert out.grad[:, :2].abs().max() == 0
    assert out.grad[0, 2:].abs().amax(-1).min() > 0


def test_an_infinite_likelihood_of_weight_0_does_not_affect_the_loss():
    out = logits()
    out[0, 1, 5] = -torch.inf  # a gold token
    for weight, finite in ((0.0, True), (0.5, False)):
        criterion = BagOfNgramsNAT(task(), 0.1, weight, 2)
        loss = criterion._compute_loss(out, TARGETS, MASK, 0.1, name="word_ins-loss")["loss"]
        assert torch.isfinite(loss) == finite


def test_invalid_arguments_are_refused(surrogate, tmp_path):
    folder = str(tmp_path / "surrogate")
    for make in (lambda: ReLossNAT(task(), 0.1, "", 0.0), lambda: ReLossAT(task(), False, 0.1, "", 0.0)):
        with pytest.raises(UsageError, match=r"^--surrogate is missing: a folder that `reloss learn`"):
            make()
    for make in (
        lambda: ReLossNAT(task(), 0.1, folder, -0.1),
        lambda: ReLossAT(task(), False, 0.1, folder, -0.1),
        lambda: BagOfNgramsNAT(task(), 0.1, -0.1, 2),
    ):
        with pytest.raises(UsageError, match=r"--nll-weight must be 0 or more, not -0\.1"):
            make()
    with pytest.raises(UsageError, match="--bon-order must be 1 or more, not 0"):
        BagOfNgramsNAT(task(), 0.1, 0.0, 0)


def test_soft_targets_are_refused(surrogate, tmp_path):
    soft = F.one_hot(TARGETS, 11).float()
    for criterion in (ReLossNAT(task(), 0.1, str(tmp_path / "surrogate"), 0.0), BagOfNgramsNAT(task(), 0.1, 0.0, 2)):
        with pytest.raises(UsageError, match="only --criterion nat_loss takes soft targets; the other criteria"):
            criterion._compute_loss(logits(), soft, MASK, 0.1, name="word_ins-loss")


def test_gold_tokens_of_a_batch():
    log_probs = logits().log_softmax(-1)
    gold, tokens = gold_tokens(log_probs, TARGETS, Dictionary())
    assert tokens[..., 0].tolist()[:2] == [[SPECIAL, 5, 6, 5, 6, SPECIAL], [SPECIAL, 7, SPECIAL, *[NO_TOKEN] * 3]]
    best = log_probs.argmax(-1)
    assert (tokens[..., 1][MASK & (best > 2)] == best[MASK & (best > 2)]).all()
    assert (tokens[..., 1][MASK & (best <= 2)] == SPECIAL).all()
    assert (tokens[~MASK] == NO_TOKEN).all()
    assert gold[0, 1] == log_probs[0, 1, 5]
    assert gold[~MASK].abs().max() == 0


def test_gold_tokens_of_all_positions():
    log_probs = logits().log_softmax(-1)
    gold, tokens = gold_tokens(log_probs, TARGETS, Dictionary())
    matrix, same_tokens = gold_tokens(log_probs, TARGETS, Dictionary(), all_positions=True)
    assert torch.equal(same_tokens, tokens)
    assert torch.equal(matrix.diagonal(dim1=1, dim2=2), gold)
    for position, place in ((0, 3), (4, 1)):
        assert matrix[0, position, place] == log_probs[0, position, TARGETS[0, place]]
    assert matrix[~MASK].abs().max() == 0
    assert matrix.mT[~MASK].abs().max() == 0


def test_both_bags_of_ngrams_are_the_same_loss():
    targets = torch.randint(5, (4, 9), generator=torch.Generator().manual_seed(0))
    log_probs = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    ours, formula = (loss(log_probs, targets) for loss in bags().values())
    assert_close(ours, formula)
