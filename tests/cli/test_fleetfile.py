"""fleet.toml: what it may say, and errors that name the line and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle import ConfigurationError, Fleet, Grade
from lifecycle.settings.schema import load

pytestmark = pytest.mark.usefixtures("bare_environment")

GOOD = """
[policy]
residual_threshold_gib = 0.25
pause_mode = "keep"
[policy.deadlines_s]
drain = 7
[policy.accept]
idle = "acknowledged"

[groups.prefill]
[groups.decode]
drain_after = ["prefill"]
[groups.reward]
offload = false

[[engines]]
url = "sglang://127.0.0.1:1"
name = "p"
group = "prefill"
[[engines]]
url = "sglang://127.0.0.1:2?checksum=true"
group = "decode"
[[engines]]
url = "sglang://127.0.0.1:3"
group = "reward"
"""


def test_a_file_makes_a_fleet(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(GOOD)
    file = load(path)
    fleet = Fleet.connect(file.urls, groups=file.groups, policy=file.policy)
    assert [engine.group for engine in fleet] == ["prefill", "decode", "reward"]
    assert next(engine.name for engine in fleet) == "p"
    assert [engine.offloads for engine in fleet] == [True, True, False]
    assert fleet.policy.deadline_s("drain") == 7
    assert fleet.policy.least_grade("idle") is Grade.ACKNOWLEDGED
    assert fleet.policy.pause_mode == "keep"


BAD = [
    ("policy = 3\n" + GOOD[GOOD.index("[groups.prefill]") :], 1, "policy=3: must be a table"),
    (GOOD.replace("0.25", '"3GB"'), 3, "residual_threshold_gib"),
    (GOOD.replace("0.25", "nan"), 3, "residual_threshold_gib"),
    (GOOD.replace("0.25", "-1"), 3, "policy.residual_threshold_gib=-1: must be a finite number > 0"),
    (GOOD.replace("0.25", "true"), 3, "residual_threshold_gib"),
    (
        GOOD.replace("[policy.deadlines_s]\ndrain = 7", "deadlines_s = 7"),
        5,
        "policy.deadlines_s=7: must be a table",
    ),
    (GOOD.replace('"keep"', '"gently"'), 4, "pause_mode"),
    (GOOD.replace("drain = 7", "drain = 0"), 6, "drain"),
    (GOOD.replace("drain = 7", "swim = 7"), 6, "swim"),
    (GOOD.replace("acknowledged", "sworn"), 8, "unknown grade 'sworn'"),
    (GOOD.replace("offload = false", "offload = 0"), 14, "groups.reward.offload"),
    (GOOD.replace("offload = false", "onload = false"), 14, "groups.reward.onload"),
    (GOOD.replace('group = "prefill"', 'group = "refill"'), 19, "'refill' is none of [groups]"),
    (GOOD.replace('url = "sglang://127.0.0.1:1"', "url = 1"), 17, "engines.0.url=1: Input should be a valid string"),
    (GOOD.replace('url = "sglang://127.0.0.1:1"\n', ""), 16, "has no url"),
    (GOOD.replace("[policy]", "[police]"), 2, "police"),
    ("[engines]\nurl = 1\n", 1, "must be written [[engines]]"),
    ("[policy]\n", None, "at least one [[engines]]"),
    ("[policy\n", None, "line 1"),
]


@pytest.mark.parametrize(("text", "line", "said"), BAD)
def test_errors_name_the_line_and_the_key(tmp_path: Path, text: str, line: int | None, said: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load(path)
    assert said in str(refused.value)
    if line is not None:
        assert f"fleet.toml:{line}:" in str(refused.value)
