import io
import json
import stat
import time
from pathlib import Path

import pytest
from rich.console import Console

from batchdet.cluster import doctor as doctor_module
from batchdet.cluster.doctor import Check, doctor, render_doctor
from batchdet.cluster.requirements import Requirement
from batchdet.errors import SpecError
from batchdet.spec import JobSpec

SECRET = "value-that-nobody-may-see"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in doctor_module._S3_NAMES:
        monkeypatch.delenv(name, raising=False)
    # The import of onnxruntime in another process takes a second or more on a busy machine.
    monkeypatch.setattr(doctor_module, "run_limited", lambda command, limit: (0, "1.0 CPUExecutionProvider"))


def spec(tmp_path: Path, device: str = "auto", **changed: str) -> JobSpec:
    uris = {"source": "/images", "model": "builtin:sample", "output": f"{tmp_path}/out"} | changed
    compute = {"device": device, "address": changed.get("address")}
    document = {part: {"uri": uris[part]} for part in ("source", "model", "output")}
    return JobSpec.model_validate_json(json.dumps({"name": "j", **document, "compute": compute}))


def found(checks: list[Check], name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


def test_this_machine_is_well_and_soon_told() -> None:
    began = time.monotonic()
    checks = doctor()
    assert time.monotonic() - began < 5
    assert [check.to_dict() for check in checks if check.state == "fail"] == []
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert {"python", "batchdet", "ray", "duckdb", "runtimes", "cpus", "memory", "model cache"} <= set(names)


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "BASE", (Requirement("no-such-package", "1"), Requirement("pydantic", "999")))
    checks = doctor()
    assert found(checks, "no-such-package").advice == "pip install 'no-such-package>=1'"
    assert found(checks, "pydantic").found.endswith("999 is the floor")


def test_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "RUNTIMES", (Requirement("no-such-runtime", "1"),))
    assert found(doctor(), "runtimes").state == "fail"


def test_a_broken_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "run_limited", lambda command, limit: (1, "Traceback\nImportError: libx.so"))
    assert "ImportError: libx.so" in found(doctor(), "onnxruntime").found


def test_a_gpu_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module.shutil, "which", lambda name: None)
    checks = doctor(spec(tmp_path, device="gpu"))
    assert found(checks, "gpu").state == "fail"
    assert found(checks, "onnxruntime").state == "fail"
    assert found(doctor(spec(tmp_path)), "gpu").state == "ok"


def test_a_gpu_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor_module, "run_limited", lambda *_: (0, "NVIDIA H100, 81559 MiB, 580.1\n"))
    assert found(doctor(), "gpu").found == "NVIDIA H100, 81559 MiB, 580.1"
    monkeypatch.setattr(doctor_module, "run_limited", lambda *_: (9, "no driver"))
    assert found(doctor(), "gpu").state == "warn"


@pytest.mark.parametrize(("free", "state"), [(10, "ok"), (1.5, "warn"), (0.5, "fail")])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(doctor_module, "memory_bytes", lambda: (16 * 1024**3, int(free * 1024**3)))
    assert found(doctor(), "memory").state == state


def test_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "shared_memory_bytes", lambda: (64 * 1024**2, 64 * 1024**2))
    check = found(doctor(), "shared memory")
    assert check.state == "warn"
    assert "--shm-size=" in check.advice


@pytest.mark.parametrize(("free", "state"), [(100, "ok"), (4, "warn"), (0.5, "fail")])
def test_disk(monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(doctor_module, "free_bytes", lambda folder: (int(free * 1024**3), 200 * 1024**3))
    assert found(doctor(), "temporary folder").state == state


def test_the_cache_is_made_private(tmp_path: Path) -> None:
    assert found(doctor(), "model cache").state == "ok"
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    (tmp_path / "cache").chmod(0o755)
    assert found(doctor(), "model cache").advice == f"chmod 700 {tmp_path / 'cache'}"


def test_a_cache_that_is_a_link_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    assert found(doctor(), "model cache").state == "fail"
    (tmp_path / "cache").unlink()
    (tmp_path / "cache").write_text("")
    assert found(doctor(), "model cache").state == "fail"


def test_credentials_by_name_never_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = spec(tmp_path, source="s3://bucket/shards")
    assert found(doctor(job), "s3 credentials").state == "warn"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    assert found(doctor(job), "s3 credentials").state == "fail"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    checks = doctor(job)
    assert found(checks, "s3 credentials").state == "ok"
    assert "AWS_SECRET_ACCESS_KEY is set" in found(checks, "s3 credentials").found
    assert SECRET not in repr(checks)


def test_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def reachable(address: str) -> bool:
        asked.append(address)
        return address == "head:6379"

    monkeypatch.setattr(doctor_module, "reachable", reachable)
    monkeypatch.setattr(doctor_module, "_running_ray", lambda: "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert found(doctor(spec(tmp_path, address="head:6379")), "ray cluster").found == "head:6379 answers"
    assert doctor(spec(tmp_path, address="ray://nobody:10001"))[-1].state == "fail"
    assert "RAY_ADDRESS is not set" in doctor(spec(tmp_path, address="auto"))[-1].found
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert doctor(spec(tmp_path, address="auto"))[-1].state == "ok"
    assert asked == ["head:6379", "ray://nobody:10001", "head:6379"]


def test_a_look_that_hangs_or_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Check]:
        raise ValueError("odd")

    monkeypatch.setattr(doctor_module, "LIMIT_S", 0.3)
    monkeypatch.setattr(doctor_module, "_cpus", lambda: time.sleep(2) or [])
    monkeypatch.setattr(doctor_module, "_memory", broken)
    checks = doctor()
    assert found(checks, "cpus").found == "no answer within 0.3 s"
    assert found(checks, "memory").found == "could not be looked at: ValueError: odd"


def test_rendering_escapes_and_sums_up() -> None:
    out = io.StringIO()
    checks = [Check("a", "ok", "[bold]plain[/bold]"), Check("b", "warn", "x", "do y"), Check("c", "fail", "z")]
    render_doctor(checks, Console(file=out, width=80))
    assert "[bold]plain[/bold]" in out.getvalue()
    assert "→ do y" in out.getvalue()
    assert "1 wrong, 1 doubtful" in out.getvalue()


@pytest.mark.parametrize(
    ("headers", "loopback", "state", "words"),
    [
        ({"authorization": "Bearer x"}, False, "ok", "takes this user's token"),
        ({}, True, "ok", "without a token"),
        ({}, False, "warn", "takes jobs of anybody"),
    ],
)
def test_a_dashboard_is_asked(
    headers: dict[str, str], loopback: bool, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "greet", lambda address: headers)
    monkeypatch.setattr(doctor_module, "is_loopback", lambda address: loopback)
    check = found(doctor(None, "head:8265"), "ray dashboard")
    assert (check.state, words in check.found) == (state, True)


def test_a_dashboard_that_does_not_answer_fails() -> None:
    check = found(doctor(None, "http://127.0.0.1:1"), "ray dashboard")
    assert (check.state, check.exit_status) == ("fail", 5)
    assert "connection refused" in check.found
    with pytest.raises(SpecError) as error:
        doctor(None, "ray://head:10001")
    assert (error.value.code, error.value.exit_status) == ("cluster.address", 2)
