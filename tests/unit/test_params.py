"""params.yaml is read strictly: whatever is in it, the answer is Params or one UsageError naming file and key."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.common.errors import UsageError
from jobs.plumbing.params import Params, check, load, merged, read_yaml

ROOT = Path(__file__).parents[2]
VALUES = read_yaml(ROOT / "params.yaml")


def leaves(values, path=()):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def replaced(values, path, value):
    head, *tail = path
    return {**values, head: replaced(values[head], tail, value) if tail else value}


def removed(values, path):
    head, *tail = path
    if not tail:
        return {k: v for k, v in values.items() if k != head}
    return {**values, head: removed(values[head], tail)}


PATHS = [p for p in leaves(VALUES) if "limits" not in p and "extra_body" not in p]


@pytest.mark.parametrize(
    "overlay", ["", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("data/*/params.yaml"))]
)
def test_every_params_file_of_the_repository_loads(overlay):
    values = merged(VALUES, read_yaml(ROOT / overlay)) if overlay else VALUES
    assert check(values, "params.yaml").seed == 3407


def test_the_real_run_is_the_published_one():
    params = load(ROOT / "params.yaml")
    g = params.grpo
    assert g.batch_size * g.gradient_accumulation // g.generations == 4
    assert (g.steps, g.generations, g.temperature, g.top_p) == (188, 16, 0.9, 0.95)
    assert (g.learning_rate, g.warmup_ratio, g.weight_decay, g.optimizer) == (5e-6, 0.1, 0.1, "adamw_8bit")
    assert (g.rewards.format, g.rewards.reasoning, g.rewards.reasoning_characters, g.rewards.correctness) == (
        0.1,
        0.2,
        500,
        1,
    )
    s = params.sft
    assert (s.learning_rate, s.batch_size, s.epochs, s.lora.rank, s.lora.alpha) == (2e-4, 2, 3, 32, 16)
    assert params.base.revision == "906bfd4b4dc7f14ee4320094d8b41684abff8539"
    assert params.sandbox.timeout == 2.0


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_a_missing_key_is_named(path):
    with pytest.raises(UsageError) as error:
        check(removed(VALUES, path), "p.yaml")
    assert ".".join(path) in str(error.value) or path[0] in str(error.value)
    assert "p.yaml" in str(error.value)


@pytest.mark.parametrize("section", [(), *sorted({p[:-1] for p in PATHS if len(p) > 1})], ids=".".join)
def test_an_unknown_key_is_named(section):
    with pytest.raises(UsageError, match=r"\.".join((*section, "nonsense"))):
        check(replaced(VALUES, (*section, "nonsense"), 1), "p.yaml")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(PATHS),
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.text(max_size=30),
        st.binary(max_size=8),
        st.lists(st.integers(), max_size=3),
        st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
        st.dates(),
    ),
)
def test_any_value_anywhere_is_taken_or_refused_by_name(path, value):
    try:
        params = check(replaced(VALUES, path, value), "p.yaml")
    except UsageError as error:
        assert f"p.yaml: {path[0]}" in str(error)
    else:
        assert isinstance(params, Params)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_a_file_or_a_usage_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("p") / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"params\.yaml"):
        load(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"seed: [", "not valid YAML"),
        (b"- 1", "not a mapping"),
        (b"", "not a mapping"),
        (b"a: &a [*a]", "Extra inputs"),
        (b"!!python/object:os.system {}", "not valid YAML"),
        (b"[" * 20000, "not valid YAML"),
        (b"seed: 2020-99-99x\n? [a]\n: b", "YAML"),
    ],
)
def test_broken_files(tmp_path, text, said):
    path = tmp_path / "params.yaml"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=said):
        load(path)


def test_no_param_turns_remote_code_on():
    assert "remote_code" not in (ROOT / "jobs/plumbing/params.py").read_text()
    with pytest.raises(UsageError):
        check(replaced(VALUES, ("base", "trust_remote_code"), True), "p.yaml")


@pytest.mark.parametrize("revision", ["main", "906bfd4", "", None, "906BFD4B4DC7F14EE4320094D8B41684ABFF8539"])
def test_a_revision_that_is_not_40_hex_digits_is_refused(revision):
    with pytest.raises(UsageError, match="40 hex digits"):
        check(replaced(VALUES, ("base", "revision"), revision), "p.yaml")


def test_set_overrides_one_key_and_is_checked():
    assert load(ROOT / "params.yaml", ["grpo.learning_rate=1.0e-5", "base.toy=null"]).grpo.learning_rate == 1e-5
    for assignment, said in (
        ("grpo.nonsense=1", r"grpo\.nonsense"),
        ("nonsense.x=1", "no section"),
        ("seed", "not of the form"),
        ("grpo.steps=0", r"grpo\.steps"),
        ("seed=[", "not a YAML value"),
        ("grpo.steps=ten", r"grpo\.steps"),
    ):
        with pytest.raises(UsageError, match=said):
            load(ROOT / "params.yaml", [assignment])


@pytest.mark.parametrize(
    "arguments", [["--set", "grpo.steps=0"], ["--params", "absent.yaml"], ["--base", "absent"], ["--nonsense"]]
)
def test_a_job_ends_with_code_2_and_no_traceback(arguments):
    done = subprocess.run([sys.executable, "-m", "jobs", "sft", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert arguments[-1].split("=")[0].lstrip("-") in done.stderr


def test_print_params_shows_the_sections_the_job_reads():
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "sft", "--print-params", "--set", "seed=7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = yaml.safe_load(done.stdout)
    assert shown["seed"] == 7
    assert "sft" in shown and "grpo" not in shown
