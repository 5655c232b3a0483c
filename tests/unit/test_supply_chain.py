"""Nothing that a model, an adapter or a checkpoint of others holds is run; nothing is looked up; no secret is kept."""

import ast
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs.common.errors import JobError
from jobs.common.files import sha256
from jobs.plumbing.params import load
from tests import toy as models

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("jobs/**/*.py"), *ROOT.glob("docker/*.py")])
UNPICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}
LORA = load(ROOT / "params.yaml", ["sft.lora.rank=8", "sft.lora.alpha=16"]).sft.lora


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_unpickles_and_remote_code_is_off_wherever_a_model_is_loaded(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            assert not {name.split(".")[0] for name in names} & UNPICKLES, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "marshal.loads" and path.name == "stage.py":  # in the child, which has no rights left to misuse
            continue
        assert called not in (
            "torch.load",
            "torch.jit.load",
            "torch.hub.load",
            "numpy.load",
            "np.load",
            "yaml.load",
            "yaml.unsafe_load",
            "marshal.load",
            "marshal.loads",
        ), called
        assert given.get("trust_remote_code", "False") == "False"
        assert given.get("allow_pickle", "False") == "False"
        assert given.get("shell", "False") == "False"
        if called.endswith((".from_pretrained", "LLM")) and not called.startswith(("PeftModel", "PeftConfig")):
            assert given.get("trust_remote_code") == "False", f"line {node.lineno}"
            if "Model" in called and "Fast" not in called:
                assert given.get("use_safetensors") == "True", f"line {node.lineno}"
            if called == "LLM":
                assert given.get("load_format") == "'safetensors'", f"line {node.lineno}"


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def loaders():
    """Every way by which a job loads a model folder on a CPU."""
    from jobs import generate
    from jobs.gguf import check
    from jobs.inference import Sampling, hf
    from jobs.training import loop

    return {
        "training": lambda base, adapter: loop.load_model(base, LORA, adapter, 0),
        "evaluate": lambda base, adapter: hf.load(base, adapter=adapter),
        "generate": lambda base, adapter: list(generate.by_transformers(base, adapter, "x", Sampling(max_tokens=1))),
        "gguf": lambda base, adapter: check.load_reference(base, [adapter] if adapter else []),
    }


LOADERS = ("training", "evaluate", "generate", "gguf")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return models.make_model(tmp_path_factory.mktemp("base") / "base", hidden=64)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return models.make_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter", rank=8)


def pickled(path, marker):
    """A torch file of the old format, whose reading runs a command."""
    with open(path, "wb") as file:
        pickle.dump(Malicious(marker), file)


def test_the_malicious_pickle_works(tmp_path):
    pickled(tmp_path / "file", tmp_path / "marker")
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("honest", [True, False], ids=["honest", "malicious"])
def test_a_pickled_model_is_refused(base, tmp_path, loader, honest):
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if honest:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        pickled(folder / "pytorch_model.bin", tmp_path / "marker")
    with pytest.raises(JobError, match="safetensors"):
        loaders()[loader](folder, None)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pickled_adapter_is_refused(base, adapter, tmp_path, loader):
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (folder / "adapter_model.safetensors").unlink()
    pickled(folder / "adapter_model.bin", tmp_path / "marker")
    with pytest.raises(JobError, match="adapter: has no safetensors"):
        loaders()[loader](base, folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_models_own_code_is_not_run(base, tmp_path, loader):
    """Neither a class that config.json names nor one of tokenizer_config.json: a known type is loaded as itself."""
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'marker')!r}, 'w')\n"
        "from transformers import Qwen3Config as C, Qwen3ForCausalLM as M\n"
        "from transformers import PreTrainedTokenizerFast as T\n"
    )
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "evil.T"]}),
    ):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"auto_map": classes}))
    loaders()[loader](folder, None)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_a_model_of_no_known_type_is_refused_rather_than_its_code_run(base, tmp_path, loader):
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": auto}))
    with pytest.raises((JobError, ValueError), match=r"trust_remote_code|evil"):
        loaders()[loader](folder, None)
    assert not (tmp_path / "marker").exists()


def test_the_base_is_fetched_without_pickles_and_a_changed_file_is_refused(tmp_path, monkeypatch):
    import huggingface_hub

    from jobs import base as job

    class File:
        def __init__(self, rfilename, content, lfs=True):
            from types import SimpleNamespace

            self.rfilename, self.content, self.blob_id = rfilename, content, "0" * 40
            digest = hashlib.sha256(content).hexdigest()
            self.lfs = SimpleNamespace(sha256=digest) if lfs else None

    files = [File("model.safetensors", b"weights"), File("pytorch_model.bin", b"pickle"), File("evil.py", b"code"),
             File("sub/model.safetensors", b"other")]  # fmt: skip
    fetched = []

    class Hub:
        def model_info(self, repo, revision, files_metadata):
            return type("Info", (), {"siblings": files})

    def download(repo, name, revision, local_dir):
        fetched.append(name)
        path = Path(local_dir) / name
        path.write_bytes(content.get(name, b""))
        return str(path)

    content = {"model.safetensors": b"weights"}
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    settings = load(ROOT / "params.yaml").base
    job.fetch(settings, tmp_path)
    assert fetched == ["model.safetensors"]
    content["model.safetensors"] = b"others"
    with pytest.raises(JobError, match=r"model\.safetensors: its hash is .*, the Hub records"):
        job.fetch(settings, tmp_path)
    files.pop(0)
    with pytest.raises(JobError, match="has no safetensors files"):
        job.fetch(settings, tmp_path)


ENDS_AT_ONCE = """
import os, sys
from pathlib import Path
from jobs.common.files import process_folder
print(process_folder(Path(sys.argv[1]), "jobs-adapter"), end="", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="a room of processes of one's own wants root")
def test_a_program_that_sees_other_processes_leaves_their_folders_alone(tmp_path):
    """As in a container that shares the folder for temporary files with the machine."""
    from jobs.common.files import process_folder

    mine = process_folder(tmp_path, "jobs-adapter")
    apart = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", ENDS_AT_ONCE, tmp_path]
    for _ in range(2):
        subprocess.run(apart, cwd=ROOT, check=True, capture_output=True)
    assert mine.exists()


def test_rollouts_leave_no_adapter_in_shared_memory(tmp_path, monkeypatch):
    """Not after the job's end, and after a kill no longer than to the next start."""
    from types import ModuleType

    from jobs.common.files import process_folder
    from jobs.grpo.rollout import AdapterRollout

    package = ModuleType("vllm")
    package.LLM = lambda *words, **options: None
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    mine = process_folder(tmp_path, "jobs-adapter")
    left = Path(subprocess.run([sys.executable, "-c", ENDS_AT_ONCE, tmp_path], cwd=ROOT, capture_output=True, text=True,
                               check=True).stdout)  # fmt: skip
    assert left.exists()
    other = process_folder(tmp_path, "jobs-adapter")
    assert not left.exists()
    assert mine.exists() and other.exists(), "a living process keeps its own"
    rollout = AdapterRollout(load(ROOT / "params.yaml"), tmp_path, None)
    assert rollout.folder.parent == Path("/dev/shm")
    assert rollout.folder.exists()
    rollout.close()
    assert not rollout.folder.exists()


def test_a_hash_is_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 14, 30])
def test_a_hash_is_of_all_blocks(tmp_path, monkeypatch, size):
    monkeypatch.setattr("jobs.common.files.HASHED", 7)
    (tmp_path / "file").write_bytes(bytes(range(size)))
    assert sha256(tmp_path / "file") == hashlib.sha256(bytes(range(size))).hexdigest()
