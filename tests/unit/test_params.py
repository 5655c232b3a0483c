"""params.yaml is read strictly: whatever is in it, the answer is Params or one UsageError naming file and key."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.common.errors import UsageError
from jobs.plumbing.params import Params, load, merged, validate
from jobs.plumbing.yaml12 import dump, parse, read_yaml

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


OVERLAYS = [*ROOT.glob("data/*/params.yaml"), ROOT / "data/smoke/measured.yaml", *ROOT.glob("recipes/*.yaml")]


@pytest.mark.parametrize("overlay", ["", *sorted(p.relative_to(ROOT).as_posix() for p in OVERLAYS)])
def test_every_params_file_of_the_repository_loads(overlay):
    values = merged(VALUES, read_yaml(ROOT / overlay)) if overlay else VALUES
    assert validate(values, "params.yaml").seed == 3407


def test_what_makes_the_smoke_run_small_fits_any_handful_of_examples_and_tasks():
    """Others lay it under params of their own: it sets nothing aside, and asks for no tasks that were graded."""
    params = validate(merged(VALUES, read_yaml(ROOT / "data/smoke/params.yaml")), "params.yaml")
    assert (params.sft.validation, params.grade.samples, params.grade.validation) == (0, 0, 0)
    assert (params.grpo.difficulty, params.grpo.validate_every, params.grpo.keep) == (None, 0, "last")


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
        validate(removed(VALUES, path), "p.yaml")
    assert ".".join(path) in str(error.value) or path[0] in str(error.value)
    assert "p.yaml" in str(error.value)


@pytest.mark.parametrize("section", [(), *sorted({p[:-1] for p in PATHS if len(p) > 1})], ids=".".join)
def test_an_unknown_key_is_named(section):
    with pytest.raises(UsageError, match=r"\.".join((*section, "nonsense"))):
        validate(replaced(VALUES, (*section, "nonsense"), 1), "p.yaml")


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
        params = validate(replaced(VALUES, path, value), "p.yaml")
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
        (b"a: &a [*a]", "a: is unknown; its value is a list"),
        (b"!!python/object:os.system {}", "not valid YAML"),
        (b"[" * 20000, "not valid YAML"),
        (b"seed: 2020-99-99x\n? [a]\n: b", "is a key that is no text"),
        (b"seed: 1\nseed: 2", 'line 2.*duplicate key "seed"'),
        (b"seed: 1\n---\nseed: 2", "another document"),
        (b"seed: 2020-13-01", "not valid YAML"),
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
        validate(replaced(VALUES, ("base", "trust_remote_code"), True), "p.yaml")


@pytest.mark.parametrize("revision", ["main", "906bfd4", "", None, "906BFD4B4DC7F14EE4320094D8B41684ABFF8539"])
def test_a_revision_that_is_not_40_hex_digits_is_refused(revision):
    with pytest.raises(UsageError, match="40 hex digits"):
        validate(replaced(VALUES, ("base", "revision"), revision), "p.yaml")


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


def said(*assignments: str) -> str:
    with pytest.raises(UsageError) as error:
        load(ROOT / "params.yaml", assignments)
    return str(error.value)


@pytest.mark.parametrize(("text", "value"), [("2e-4", 2e-4), ("2E-4", 2e-4), ("1e-05", 1e-5), (".5", 0.5), ("1", 1)])
def test_a_number_is_one_however_it_is_spelt(text, value):
    assert load(ROOT / "params.yaml", [f"sft.learning_rate={text}"]).sft.learning_rate == value


def test_what_dvc_writes_is_what_a_job_reads(tmp_path):
    """`dvc exp run -S` and `dvc params diff` go through these two functions of DVC."""
    from dvc.utils.hydra import apply_overrides
    from dvc.utils.serialize import load_yaml

    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    assert load_yaml(str(path)) == read_yaml(path)
    apply_overrides(str(path), ["grpo.learning_rate=1e-7", "sft.lora.targets=[q_proj]", "base.toy=null", "seed=5"])
    params = load(path)
    assert (params.grpo.learning_rate, params.sft.lora.targets, params.seed) == (1e-7, ["q_proj"], 5)
    assert load_yaml(str(path)) == read_yaml(path)


def test_written_params_are_read_back():
    values = merged(
        VALUES, {"sft": {"learning_rate": 1e-7}, "distill": {"extra_body": {"a": ["yes", "2e-4", "", "01", None, 1.0]}}}
    )
    assert parse(dump(values)) == values
    assert list(parse(dump(values))) == list(VALUES)


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("sft.learning_rate=fast", ["--set: sft.learning_rate", '"fast"', "a number"]),
        ("sft.learning_rate=2", ["2", "at most 1"]),
        ("sft.learning_rate=.nan", [".nan", "finite"]),
        ("grpo.steps=1e3", ["1000.0", "a whole number: 1000"]),
        ("grpo.steps=true", ["true", "whole number"]),
        ("sft.gradient_checkpointing=yes", ['"yes"', "true or false"]),
        ("sft.optimizer=adamw", ['"adamw"', "adamw_8bit"]),
        ("sft.lora.targets=[]", ["sft.lora.targets", "[]", "1 or more"]),
        ("grpo.mix={}", ["grpo.mix", "a mapping of 1 or more"]),
        ("gguf.types=[F17]", ["params.yaml with --set gguf.types: gguf:", "F17"]),
        ("sft.lora.targets=[q_proj, q_proj]", ['names "q_proj" twice']),
        ("sft.lora.targets=q_proj", ['"q_proj"', "a list"]),
        ("sft.lora.targets=[1]", ["sft.lora.targets[0]", 'in quotes, "1"']),
        ("evaluate.benchmarks=[]", ["evaluate.benchmarks", "[]"]),
        ("gguf.types=[]", ["gguf.types", "[]"]),
        ("tasks.mbpp_plus.version=2024-01-01", ["2024-01-01", "date", "in quotes"]),
        ("tasks.mbpp_plus.version=latest", ['"latest"', "v0.1.10"]),
        ("tasks.timeout=0.5", ["tasks.timeout", "0.5"]),
        ("tasks.timeout.floor=0.01", ["0.01", "at least 0.1"]),
        ("tasks.timeout.factor=2", ["2", "at least 10"]),
        ("grpo.step=5", ["grpo.step", "did you mean steps?", "5"]),
        ("sft.lr=5", ["sft.lr", "did you mean learning_rate?"]),
        ("grpo.bs=5", ["grpo.bs", "did you mean batch_size?"]),
        ("grpo=5", ["grpo", "a section of keys"]),
        ("distill.reasoning_characters=[9, 2]", ["9", "2"]),
        ("distill.model=two words", ['"two words"']),
        ("distill.extra_body={a: 2024-01-01}", ["extra_body", "a is 2024-01-01", "quote"]),
        ("distill.extra_body={a: {b: [.inf]}}", ["a.b[0] is .inf", "finite"]),
        ("distill.extra_body={a: !!binary aGk=}", ["a is binary"]),
        ("distill.extra_body={a: !!set {x}}", ["a is a list"]),
        ("distill.extra_body={1: 2}", ["extra_body"]),
        ("distill.extra_body={a: {1: 2}}", ["a.1 is a key that is no text"]),
        ("distill.extra_body={a: &a [*a]}", ["nested too deeply"]),
        ('distill.extra_body={a: "\\ud800"}', ["a is", "cannot be sent"]),
        ("distill.extra_body={max_tokens: many}", ["max_tokens", '"many"', "above 0"]),
        ("distill.extra_body={max_completion_tokens: 0}", ["max_completion_tokens is 0"]),
        ("distill.extra_body={max_tokens: null}", ["max_completion_tokens must"]),
        ("distill.extra_body={n: 2}", ["cannot set n"]),
        ("distill.extra_body={a: 1, a: 2}", ["duplicate key"]),
        ("distill.base_url=api.deepseek.com", ['"api.deepseek.com"', "https://"]),
        ("distill.base_url=ftp://h", ["ftp://h"]),
        ("distill.base_url=http://", ["http://"]),
        ("distill.base_url=http://h:99999/v1", ["99999"]),
        ("distill.base_url=http://h/v1#top", ["fragment"]),
        ("distill.base_url=http://h/v1/chat/completions/", ["must end before /chat/completions"]),
        ('distill.base_url="http://h/v 1"', ["base_url"]),
    ],
)
def test_a_message_shows_key_value_and_what_would_do(assignment, parts):
    message = said(assignment)
    assert assignment.partition("=")[0] in message
    assert all(part in message for part in parts), message
    assert len(message.splitlines()) == 1


def test_keys_that_do_not_fit_one_another_are_named_with_both_values():
    assert "base: needs `repo` and a `revision` of 40 hex digits" in (message := said("base.revision=main"))
    assert 'revision: "main"' in message
    assert "bfloat16 only, and dtype is float16" in said("merge.rounding=stochastic")


@pytest.mark.parametrize(
    "assignment",
    [
        "distill.api_key_env=sk-0123456789SECRET",
        "distill.api_key=SECRET",
        "distill.base_url=https://user:SECRET@h/v1",
        "distill.base_url=https://h/v1?api-key=SECRET",
        "distill.extra_body={api_key: SECRET}",
        "distill.concurrency=hf_0123456789SECRET",
    ],
)
def test_a_message_shows_no_secret_that_stands_in_the_wrong_place(assignment):
    message = said(assignment)
    assert "distill" in message and "SECRET" not in message


def test_extra_body_may_be_what_json_is():
    body = {
        "thinking": {"type": "enabled"},
        "stop": ["a", None],
        "top_k": 5,
        "max_tokens": None,
        "max_completion_tokens": 9,
    }
    assert validate(merged(VALUES, {"distill": {"extra_body": body}}), "p").distill.extra_body.items() >= body.items()
    for url in ("http://localhost:8000/v1", "http://[::1]:8000/v1/", "https://h.example/openai/v1"):
        assert load(ROOT / "params.yaml", [f"distill.base_url={url}"]).distill.base_url == url


@pytest.mark.parametrize(("changes", "said"), [
    (["grpo.turns=2"], "turns is 2, which more than one process cannot do"),
    (["grpo.mix={toy: 1}", "grpo.equal_groups=refill"], "equal_groups is refill, which with a mix"),
])  # fmt: skip
def test_what_only_some_ranks_would_sample_anew_is_refused_for_several(changes, said):
    several = ["grpo.processes=2", "grpo.engine=transformers", "grpo.batch_size=32"]
    with pytest.raises(UsageError, match=said):
        load(ROOT / "params.yaml", [*several, *changes])
    load(ROOT / "params.yaml", ["grpo.engine=transformers", *changes])
