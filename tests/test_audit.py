"""The audit's verdicts: what it says of ours, and that it can say otherwise."""

import os

import numpy as np
import pytest
from forks import with_forks
from launching import ROOT


@pytest.fixture
def audit(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import audit

    return audit


@pytest.mark.slow
def test_cases_of_ours_are_exact(audit, monkeypatch):
    for name, value in with_forks(dict(os.environ), "python").items():
        monkeypatch.setenv(name, value)
    chosen = [case for case in audit.cases(30, seed=0) if case.mesh in ((1, 2), (2, 1))][:3]
    found = list(audit.audit("ours", chosen, "python"))
    assert [case for case, _ in found] == chosen
    assert {verdict.kind for _, verdict in found} == {"exact"}, found


def test_what_is_wrong_is_called_so(audit):
    case = audit.cases(2, seed=0)[1]
    whole = audit.undivided(case)
    assert audit.judge(case, [(whole, [])] * 2).kind == "exact"
    assert audit.judge(case, [(whole, ["all 9 rows"])] * 2).kind == "not divided"
    double = whole | {"0.weight": whole["0.weight"] * 2}
    assert audit.judge(case, [(whole, []), (double, [])]) == ("wrong", 1.0, "× 2: 0.weight")
    for lost in ({"image": np.full_like(whole["image"], np.nan)}, {"output": whole["output"][..., 1:]}):
        assert audit.judge(case, [(whole | lost, [])]).error == np.inf
    refusal, failure = audit.Failure("refused", "ValueError: no"), audit.Failure("crashed", "RuntimeError: no")
    assert audit.judge(case, [refusal] * 2).kind == "refused"
    assert audit.judge(case, [failure] * 2).kind == audit.judge(case, [refusal, (whole, [])]).kind == "crashed"
