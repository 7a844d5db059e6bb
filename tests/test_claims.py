"""docs/claims.md: its evidence agrees with the other commands, and its commands are commands of today."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from reloss.commands.subcommands import COMMANDS
from reloss.experiment.run_spec import RunSpec
from reloss.experiment.task import find_experiment
from reloss.report import comparison
from reloss.report.statistics import Side
from reloss.report.verdicts import Verdict
from tools.claims import CE, LEARNED, OURS, PAPER, SMALL, SQUAD, Claim
from tools.evidence import Measurement, Variant, compare, cost, cost_of_mistakes, paired, records

PAGE = (Path(__file__).parents[1] / "docs" / "claims.md").read_text(encoding="utf-8")


def test_a_difference_is_the_one_that_reloss_compare_prints():
    config = find_experiment(SMALL)[1]
    mixed = Variant("reloss", ("train.ordinary_weight=1.0",))
    own = [run for run in records("main") if run.experiment == SMALL]
    difference, (learned, ordinary) = compare(config, own, (mixed, CE), "accuracy", same_rate=False)
    names = [f"{SMALL}:{comparison.variant_label(runs[0].loss, runs[0].settings)}" for runs in (learned, ordinary)]
    assert comparison.compare(*names, records("main")).difference == difference
    assert difference.side is Side.ABOVE


def test_losses_at_the_same_rate_are_compared_at_one_that_both_were_run_with():
    config = find_experiment(SMALL)[1]
    own = [run for run in records("ablation") if run.experiment == SMALL]
    for same_rate, rate in ((False, "0.8"), (True, "0.05")):
        _, chosen = compare(config, own, (LEARNED, Variant("approx")), "accuracy", same_rate)
        assert [run.config()["train"]["lr"] for run in chosen[0]] == [float(rate)] * 3
        assert [run.config()["train"]["lr"] for run in chosen[1]] == [0.05] * 3


def test_what_was_not_run_is_no_evidence():
    assert paired("main", SQUAD, Variant("reloss", ("learn.steps=7",)), CE)() is None
    judgement, measured = Claim("It flies.", (lambda: None,), needs="wings").judged()
    assert (str(judgement), measured) == ("not tested: needs wings", [])


def test_a_cost_supports_a_claim_up_to_its_bound():
    def measure(most: float) -> Measurement:
        return cost("tracking", "{cost:.3f} %", "upper bound %", {}, None, most)()

    (bound,) = re.findall(r"(\d\.\d+) %$", measure(1).text)
    assert [measure(most).side for most in (float(bound), float(bound) - 1e-6)] == [Side.ABOVE, Side.BELOW]


def test_a_falling_cost_of_mistakes_supports_the_claim():
    measured = cost_of_mistakes()
    assert measured.side is Side.ABOVE
    assert "cost -0.0" in measured.text


def test_no_claim_of_the_paper_is_verified_or_contradicted_at_a_smaller_scale():
    assert not any(claim.at_scale for claim in PAPER)
    assert all(claim.at_scale for claim in OURS)
    verdicts = re.findall(r"^\| [^|]+ \| ([a-z ]+)[^|]* \| ", PAGE.partition("## Claims of the paper")[2], flags=re.M)
    assert len(verdicts) == len(PAPER) + len(OURS) + 2  # and two lines of headers
    assert set(verdicts[1 : len(PAPER) + 1]) <= {Verdict.REDUCED, Verdict.NOT_TESTED}


COMMANDS_SHOWN = dict.fromkeys(re.findall(r"`reloss ([a-z]+ [^`]+)`", PAGE))


@pytest.mark.parametrize("call", COMMANDS_SHOWN)
def test_a_command_is_accepted(call):
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="reloss", args=shlex.split(call))
    if call.startswith("sweep"):
        settings = [setting for group in command.set for setting in group]
        for loss in command.losses.split(","):
            RunSpec.resolve(command.name, loss, 0, settings)
