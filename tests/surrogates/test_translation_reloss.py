import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from reloss import TranslationReLoss
from reloss.learning import LearnOptions, PredictionBank, fit_surrogate
from reloss.learning.items import Items
from reloss.learning.objective import rank_objective
from reloss.metrics import token_bleu
from reloss.surrogates import build

SMALL = {
    "output": "absolute",
    "positions": "released",
    "average": "sentence",
    "width": 8,
    "feedforward": 16,
    "heads": 2,
    "length": 10,
}
KINDS = (
    {},
    {"positions": "counted"},
    {"output": "identity", "average": "token", "positions": "counted"},
    {"output": "monotone", "average": "token"},
    {"output": "monotone", "average": "sentence"},
    {"output": "absolute", "average": "token"},
)


def recorded(n=3, b=5, t=7, seed=0):
    """Return log-probabilities and targets of sentences with 1 to t tokens."""
    generator = torch.Generator().manual_seed(seed)
    outputs = -3 * torch.rand(n, b, t, generator=generator)
    targets = torch.randint(50, (n, b, t, 2), generator=generator)
    lengths = torch.randint(1, t + 1, (n, b, 1), generator=generator)
    padded = torch.arange(t) >= lengths
    return outputs.masked_fill(padded, -7.0), targets.masked_fill(padded[..., None], -1)


def surrogate_of_seed(seed=0, **options):
    torch.manual_seed(seed)
    return TranslationReLoss(**{**SMALL, **options}).eval()


def test_parameters_match_the_release():
    names = {name.removeprefix("block.0.") for name in TranslationReLoss(**SMALL).state_dict() if "block.1" not in name}
    projections = {f"self_attn.{name}_proj.{kind}" for name in ("k", "v", "q", "out") for kind in ("weight", "bias")}
    rest = ("logits_layer.0", "logits_layer.2", "loss_layer.0", "loss_layer.2", "fc1", "fc2")
    norms = ("self_attn_layer_norm", "final_layer_norm")
    layers = {f"{name}.{kind}" for name in (*rest, *norms) for kind in ("weight", "bias")}
    assert names == projections | layers | {"pe.weight"}


def test_sizes_are_read_from_weights(tmp_path):
    surrogate = surrogate_of_seed()
    save_file(surrogate.state_dict(), tmp_path / "nat.safetensors")
    loaded = TranslationReLoss.from_pretrained(tmp_path / "nat.safetensors", heads=2)
    assert loaded.options() == surrogate.options()
    assert_close(loaded.per_item(*recorded()), surrogate.per_item(*recorded()), rtol=0, atol=0)


@pytest.mark.parametrize("options", KINDS)
def test_padding_and_other_items_do_not_matter(options):
    outputs, targets = recorded()
    surrogate = surrogate_of_seed(**options)
    losses = surrogate.per_item(outputs, targets)
    padded = (
        torch.cat([outputs, torch.full((3, 5, 3), -1.0)], -1),
        torch.cat([targets, torch.full((3, 5, 3, 2), -1)], -2),
    )
    assert_close(surrogate.per_item(*padded), losses)
    assert_close(surrogate.per_item(outputs[1:2], targets[1:2]), losses[1:2])
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate.per_item(outputs, targets).sum(), outputs)
    assert gradient[targets[..., 0] == -1].abs().max() == 0
    if options.get("output") != "absolute":
        assert (gradient[targets[..., 0] >= 0] != 0).all()


@pytest.mark.parametrize("options", KINDS)
def test_batch_of_log_probabilities_equals_one_item(options):
    outputs, targets = recorded(1)
    surrogate = surrogate_of_seed(**options)
    log_probs = torch.randn(5, 7, 50)
    log_probs.scatter_(-1, targets[0, ..., :1].clamp(min=0), outputs[0, ..., None])
    expected = surrogate.per_item(outputs, targets)[0]
    assert_close(surrogate(log_probs, targets[0, ..., 0]), expected)
    mask = targets[0, ..., 0] >= 0
    assert_close(surrogate(log_probs, targets[0, ..., 0].where(mask, 1), mask), expected)
    assert_close(surrogate(outputs[0], targets[0]), expected)


@pytest.mark.parametrize("options", KINDS)
def test_matrices_count_by_their_diagonal(options):
    outputs, targets = recorded()
    matrices = torch.randn(*outputs.shape, outputs.shape[-1])
    matrices.diagonal(dim1=-2, dim2=-1).copy_(outputs)
    surrogate = surrogate_of_seed(**options)
    surrogate.check(matrices, targets)
    assert torch.equal(surrogate.per_item(matrices, targets), surrogate.per_item(outputs, targets))
    assert torch.equal(surrogate.ordinary_loss(matrices, targets), surrogate.ordinary_loss(outputs, targets))
    assert torch.equal(surrogate(matrices[0], targets[0]), surrogate(outputs[0], targets[0]))
    assert torch.equal(token_bleu(matrices, targets), token_bleu(outputs, targets))
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, T, T\] and targets \[N, B, T, 2\]"):
        surrogate.per_item(matrices[..., :-1], targets)


@pytest.mark.parametrize("options", KINDS)
def test_sentences_with_no_token_or_one(options):
    surrogate = surrogate_of_seed(**options)
    outputs, targets = recorded()
    targets[0] = -1
    targets[1, :, 1:] = -1
    outputs.requires_grad_()
    losses = surrogate.per_item(outputs, targets)
    assert losses[0] == 0
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[0].abs().max() == 0
    assert outputs.grad[1, :, 0].abs().min() > 0


@pytest.mark.parametrize("options", KINDS)
def test_half_precision_is_computed_in_float32(options):
    outputs, targets = recorded()
    surrogate = surrogate_of_seed(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = surrogate.per_item(outputs.half(), targets)
    assert losses.dtype == torch.float32
    assert_close(losses, surrogate.per_item(outputs.half().float(), targets), rtol=0, atol=0)
    extreme = torch.full_like(outputs, -65504).half()
    assert torch.isfinite(surrogate.per_item(extreme, targets)).all()


def test_averages_over_sentences_and_tokens():
    outputs, targets = recorded()
    counts = (targets[..., 0] >= 0).sum(-1)
    one_by_one = surrogate_of_seed(output="identity")
    sentences = torch.stack([one_by_one.per_item(outputs[:, [i]], targets[:, [i]]) for i in range(5)], -1)
    assert_close(one_by_one.per_item(outputs, targets), sentences.mean(-1))
    by_token = surrogate_of_seed(output="identity", average="token")
    assert_close(by_token.per_item(outputs, targets), (sentences * counts).sum(-1) / counts.sum(-1))
    folded = surrogate_of_seed()
    assert_close(folded.per_item(outputs, targets), sentences.abs().mean(-1))


def test_released_positions_are_the_same_for_all_tokens():
    mask = torch.tensor([[True, True, True, False, False]])
    assert surrogate_of_seed().pe.places(mask).tolist() == [[1, 1, 1, 2, 3]]
    assert surrogate_of_seed(positions="counted").pe.places(mask).tolist() == [[2, 3, 4, 1, 1]]
    assert surrogate_of_seed(positions="counted", length=2).pe.places(mask).tolist() == [[2, 3, 3, 1, 1]]


@pytest.mark.parametrize("window", [1, 4])
def test_monotone_falls_with_every_gold_token(window):
    outputs, targets = recorded(20, 1, 9)
    outputs.requires_grad_()
    for seed in range(5):
        surrogate = surrogate_of_seed(seed, output="monotone", average="token", window=window)
        (gradient,) = torch.autograd.grad(surrogate.per_item(outputs, targets).sum(), outputs)
        assert (gradient[targets[..., 0] >= 0] < 0).all()


def test_monotone_sees_the_window_that_ends_at_a_token():
    surrogate = surrogate_of_seed(output="monotone", average="sentence")
    outputs, targets = torch.zeros(1, 1, 9, requires_grad=True), torch.zeros(1, 1, 9, 2, dtype=torch.long)
    losses = surrogate.network(surrogate.features(outputs, targets))
    (gradient,) = torch.autograd.grad(losses[0, 0, 5], outputs)
    assert gradient[0, 0].nonzero().flatten().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("options", KINDS)
def test_gradient_penalty_is_differentiable(options):
    surrogate = surrogate_of_seed(**options)
    objective = rank_objective(surrogate, Items(*recorded()), torch.arange(3.0), LearnOptions())
    objective.total.backward()
    for name, parameter in surrogate.named_parameters():
        if name not in ("loss_layer.2.bias", "pe.weight") and "k_proj.bias" not in name:
            assert parameter.grad.abs().max() > 0, name


def test_ordinary_loss_is_the_negative_log_likelihood_of_tokens():
    outputs, targets = recorded()
    expected = [-outputs[i][targets[i, ..., 0] >= 0].mean() for i in range(3)]
    assert_close(TranslationReLoss.ordinary_loss(outputs, targets), torch.stack(expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "none"}, "output must be one of absolute, identity, monotone, not none"),
        ({"positions": "none"}, "positions must be one of released, counted, not none"),
        ({"average": "none"}, "average must be one of sentence, token, not none"),
        ({"heads": 3}, "width 8 is not a multiple of 3 heads"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        surrogate_of_seed(**options)


def improving_translations(path, items=60, b=8, t=9):
    """Record sentences whose gold tokens get more probable, and are more often predicted, with every step."""
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(path, item_size=b)
    for step in range(items):
        skill = 4 * step / items - 2 + torch.randn(b, t, generator=generator)
        gold = torch.randint(100, (b, t), generator=generator)
        right = torch.rand(b, t, generator=generator) < skill.sigmoid()
        guess = gold.where(right, torch.randint(100, (b, t), generator=generator))
        padded = torch.arange(t) >= torch.randint(4, t + 1, (b, 1), generator=generator)
        log_probs = torch.nn.functional.logsigmoid(skill).masked_fill(padded, 0)
        bank.append(log_probs, torch.stack([gold, guess], -1).masked_fill(padded[..., None], -1).int(), step)
    bank.finish()
    return bank


@pytest.mark.parametrize("output", ["monotone", "identity"])
def test_learns_to_rank_as_bleu(tmp_path, output):
    bank = improving_translations(tmp_path / "bank")
    options = LearnOptions(steps=40, items=32, mixture="checkpoints", validate_every=10)
    surrogate = build("translation", bank.output_shape(), output=output, width=16, feedforward=16)
    fit = fit_surrogate(surrogate, bank, token_bleu, options=options)
    assert fit.spearman > 0.9
    assert fit.spearman_synthetic > 0.7
    outputs, targets = bank.items(torch.arange(3))
    fit.surrogate.save_pretrained(tmp_path / "saved")
    loaded = TranslationReLoss.from_pretrained(tmp_path / "saved")
    assert_close(loaded.per_item(outputs, targets), fit.surrogate.per_item(outputs, targets), rtol=0, atol=0)


def test_learn_command(tmp_path, cli):
    improving_translations(tmp_path / "bank")
    words = ("learn", "--bank", tmp_path / "bank", "--metric", "token_bleu", "--out", tmp_path / "surrogate")
    fast = ("--kind", "translation", "--set", "steps=2", "items=8", "mixture=checkpoints")
    code, _, err = cli(*words, *fast)
    assert code == 0, err
    assert TranslationReLoss.from_pretrained(tmp_path / "surrogate").output == "monotone"
    code, _, err = cli(*words[:-1], tmp_path / "other", "--kind", "classification", *fast[2:])
    assert code == 1


@pytest.mark.parametrize("features", ["likelihood", "expected"])
def test_a_token_beyond_the_vocabulary_is_named(features):
    loss, log_probs = build("translation", (3, 3), features=features), torch.randn(2, 3, 5).log_softmax(-1)
    with pytest.raises(ValueError, match="whole numbers from 0 to 4, not 7"):
        loss(log_probs, torch.tensor([[0, 1, 7], [1, 2, 3]]))
