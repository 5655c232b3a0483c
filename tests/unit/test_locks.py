"""docker/images: complete, hashed locks on the design's pins, agreeing with one another, enough for what jobs import."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from jobs.plumbing import closure

ROOT = Path(__file__).parents[2]
IMAGES = ("train", "gguf", "cpu")
LOCKS = (*IMAGES, "tools")
TRAIN = {
    "torch": "2.11.0", "transformers": "5.17.0", "trl": "1.14.2", "peft": "0.21.2", "unsloth": "2026.10.7",
    "unsloth-zoo": "2026.10.7", "vllm": "0.25.1", "bitsandbytes": "0.50.2", "datasets": "4.8.5",
    "accelerate": "1.15.0", "evalplus": "0.3.1", "click": "8.5.1",
}  # fmt: skip
SHARED = ("transformers", "trl", "peft", "datasets", "accelerate", "evalplus", "click")
PINS = {
    "train": TRAIN,
    "gguf": {"llama-cpp-python": "0.3.36", "gguf": "0.19.0", "click": "8.5.1"},
    "cpu": {name: TRAIN[name] for name in SHARED}
    | {"torch": "2.13.0+cpu", "llama-cpp-python": "0.3.36", "gguf": "0.19.0", "dvc": "3.67.1"},
    "tools": {},
}


def lock_of(name: str) -> Path:
    return ROOT / "docker/images" / ("tools.lock" if name == "tools" else f"{name}/packages.lock")


def requirements(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Every requirement of a lock or .in file with its hashes."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text().replace("\\\n", " "), flags=re.MULTILINE)
    found = []
    for line in filter(str.strip, text.splitlines()):
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        found.append((Requirement(requirement), hashes))
    return found


def environment(python: str) -> dict[str, str]:
    """Markers' values for CPython on Linux x86-64."""
    return default_environment() | {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "os_name": "posix",
        "platform_machine": "x86_64", "platform_system": "Linux", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "extra": "",
    }  # fmt: skip


def holds(marker: Marker | None, python: str) -> bool:
    return marker is None or marker.evaluate(environment(python))


def locked(name: str, python: str) -> dict[str, Version]:
    """What a lock installs for one Python: canonical name to version."""
    found: dict[str, Version] = {}
    for requirement, _ in requirements(lock_of(name)):
        if holds(requirement.marker, python):
            key = canonicalize_name(requirement.name)
            assert key not in found, f"{name}.lock pins {key} twice for Python {python}"
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[key] = Version(specifier.version)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_an_exact_version_with_sha256_hashes(name):
    lines = requirements(lock_of(name))
    assert len(lines) > 5
    for requirement, hashes in lines:
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
        assert requirement.url is None, requirement
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_server(name):
    """Where packages come from is the machine's business; an index in a lock would follow whoever clones this."""
    text = (lock_of(name)).read_text()
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted", text)


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_holds_the_pins_and_all_that_its_input_asks_for(name, python):
    versions = locked(name, python)
    assert {pin: str(versions[pin]) for pin in PINS[name]} == PINS[name]
    for requirement, _ in requirements(ROOT / f"docker/images/{name}.in"):
        if holds(requirement.marker, python):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), f"{name}.in: {requirement}, not {version}"


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_images_agree_where_they_share_a_package(python):
    """Only what torch 2.11 and vLLM bound from above may differ between the GPU and the CPU images."""
    train, cpu, gguf = (locked(name, python) for name in ("train", "cpu", "gguf"))
    for name in (*SHARED, "tokenizers", "safetensors"):
        assert train[name] == cpu[name], name
    assert {name: version for name, version in gguf.items() if cpu.get(name) != version} == {}
    cuda = {name for name in cpu if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    assert cuda <= {"nvidia-ml-py"}  # Python alone, by which DVCLive and trackio ask for a card's load


def test_torch_comes_with_the_hash_of_both_pythons_cpu_wheels():
    (hashes,) = [h for r, h in requirements(lock_of("cpu")) if r.name == "torch"]
    assert sorted(hashes) == [
        "sha256:4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
        "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    ]


# What the packages that bound one another ask for, from the metadata of exactly these releases: the GPU's are not
# installed in .venv. A changed pin needs its new lines.
ADMITS = {
    "unsloth==2026.10.7": ["unsloth_zoo>=2026.10.7", "torch<2.15.0,>=2.4.0", "trl!=0.19.0,<=1.15.0,>=0.18.2",
                           "transformers!=4.53.0,!=4.54.0,!=4.55.0,!=4.55.1,!=4.57.0,!=4.57.4,!=4.57.5,!=5.0.0,!=5.1.0,"
                           "<=5.17.0,>=4.52.4", "peft!=0.11.0,>=0.18.0", "accelerate>=0.34.1",
                           "bitsandbytes!=0.46.0,!=0.48.0,>=0.45.5",
                           "datasets!=4.0.*,!=4.1.0,!=4.4.*,!=4.5.0,<5.0.0,>=3.4.1"],
    "unsloth_zoo==2026.10.7": ["torch<2.15.0,>=2.4.0", "trl!=0.19.0,<=1.15.0,>=0.18.2",
                               "transformers!=4.53.0,!=4.54.0,!=4.55.0,!=4.55.1,!=4.57.4,!=4.57.5,!=5.0.0,!=5.1.0,"
                               "<=5.17.0,>=4.52.4", "peft!=0.11.0,>=0.18.0", "accelerate>=0.34.1",
                               "datasets!=4.0.*,!=4.1.0,!=4.4.*,!=4.5.0,<5.0.0,>=3.4.1"],
    "trl==1.14.2": ["vllm<=0.30.0,>=0.20.0", "accelerate>=1.4.0", "datasets>=4.7.0", "transformers>=4.56.2"],
    "vllm==0.25.1": ["torch==2.11.0", "transformers>=5.5.3", "tokenizers>=0.21.1"],
}  # fmt: skip


def test_trl_unsloth_vllm_and_transformers_admit_one_another():
    versions = locked("train", "3.12")
    for release, wants in ADMITS.items():
        name, version = release.split("==")
        assert str(versions[canonicalize_name(name)]) == version, f"{name}'s bounds are written down for {version}"
        for want in map(Requirement, wants):
            assert want.specifier.contains(versions[canonicalize_name(want.name)]), f"{release} wants {want}"


def test_what_is_installed_here_at_the_same_version_admits_the_rest_of_train_lock():
    versions, checked = locked("train", "3.12"), 0
    for name, version in versions.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if Version(distribution.version) != version:
            continue
        for requirement in map(Requirement, distribution.requires or []):
            key = canonicalize_name(requirement.name)
            if key in versions and holds(requirement.marker, "3.12"):
                checked += 1
                assert requirement.specifier.contains(versions[key], prereleases=True), f"{name}: {requirement}"
    assert checked > 50


IMPORTS = {  # top-level module to distribution, where the names differ
    "yaml": "pyyaml", "llama_cpp": "llama-cpp-python", "huggingface_hub": "huggingface-hub",
    "unsloth_zoo": "unsloth-zoo", "ruamel": "ruamel-yaml", "conversion": "llama-cpp-python",
    "sklearn": "scikit-learn",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"jobs", ""}


def test_every_package_that_jobs_import_is_in_the_images_inputs():
    """A package that is there only because another one wants it is gone when that one changes its mind."""
    asked = {canonicalize_name(r.name) for image in IMAGES for r, _ in requirements(ROOT / f"docker/images/{image}.in")}
    files = sorted((ROOT / "jobs").rglob("*.py"))
    needed = {(IMPORTS.get(name, canonicalize_name(name)), path.name) for path in files for name in imported(path)}
    assert needed
    assert sorted((name, path) for name, path in needed if name not in asked) == []


# Imported where another image is at work, or where it is there: only the cpu image has both engines.
ELSEWHERE = {"train": {"llama-cpp-python", "dvclive"}, "gguf": {"evalplus"}}


@pytest.mark.parametrize("image", ["train", "gguf"])
def test_an_image_has_what_its_own_stages_import(image):
    asked = {canonicalize_name(r.name) for r, _ in requirements(ROOT / f"docker/images/{image}.in")} | ELSEWHERE[image]
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    commands = [stage["cmd"].split() for stage in stages if stage["cmd"].startswith(f"docker/run {image} ")]
    files = {file for words in commands for file in closure.code(words[2]) if file.suffix == ".py"}
    needed = {(IMPORTS.get(n, canonicalize_name(n)), file.name) for file in files for n in imported(file)}
    assert needed
    assert sorted((name, file) for name, file in needed if name not in asked) == []


def test_gpu_images_stand_on_one_base_by_tag_and_digest():
    bases = {}
    for image in IMAGES:
        text = (ROOT / f"docker/images/{image}/Dockerfile").read_text()
        (bases[image],) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
        assert re.fullmatch(r"[\w/.-]+:[\w.-]+@sha256:[0-9a-f]{64}", bases[image])
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}
    assert bases["train"] == bases["gguf"]


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_is_fetched_after_the_package_steps_or_without_hashes(image):
    text = (ROOT / f"docker/images/{image}/Dockerfile").read_text().replace("\\\n", " ")
    steps = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    fetching = [bool(re.search(r"\b(apt-get|pip|uv|curl|wget|git)\b", step)) for step in steps]
    assert fetching == sorted(fetching, reverse=True)
    assert not fetching[-1]  # the check
    for step in steps:
        for install in re.findall(r"\bpip install[^&]*", step):
            assert "--require-hashes" in install
            assert "-r " in install
    assert re.search(r"^USER 1000:1000$", text, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["python", "-m", "jobs"\]$', text, re.MULTILINE)
    assert "# syntax" not in text


def test_the_build_context_is_what_the_images_copy_each_file_by_its_name():
    """Docker 20.10 leaves out what only a pattern with a folder's * would let in: no image could be built with it."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    copied = set()
    for image in IMAGES:
        copied |= set(re.findall(r"docker/[\w./]+", "".join(re.findall(r"^COPY (?!--from).*$", (
            ROOT / f"docker/images/{image}/Dockerfile").read_text(), re.MULTILINE))))  # fmt: skip
    assert copied == {str(lock_of(name).relative_to(ROOT)) for name in LOCKS} | {"docker/images/llama.cmake"}
    assert rules[0] == "*"
    assert sorted(rules[1:]) == sorted(f"!{name}" for name in copied)


def test_a_bill_of_materials_lists_every_locked_package_with_its_hashes():
    run = [sys.executable, "docker/sbom.py", "gguf"]
    bill = json.loads(subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    listed = {canonicalize_name(part["name"]) for part in bill["components"]}
    assert listed == set(locked("gguf", "3.12")) | set(locked("gguf", "3.11")) | set(locked("tools", "3.12"))
    assert all(part["hashes"] for part in bill["components"])
    assert bill == json.loads(subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def test_a_stage_depends_on_the_image_it_runs_in_and_on_no_other():
    """So a changed lock or Dockerfile reruns exactly the stages of that image."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert stages
    for name, stage in stages.items():
        (image,) = re.findall(r"^docker/run (\w+) ", stage["cmd"])
        assert image in IMAGES, name
        images = {dep for dep in stage["deps"] if re.match(r"docker/images/(train|gguf|cpu)\b", dep)}
        assert images == {f"docker/images/{image}"}, name
        held = {path.name for path in (ROOT / "docker/images" / image).iterdir()}
        assert held == {"Dockerfile", "packages.lock"}, "what is no part of the image would rerun its stages"
