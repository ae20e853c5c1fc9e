import pytest

from replaycad.artifacts import atomic
from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.store import KINDS, MAX_NAME_BYTES, Store
from replaycad.errors import ConfigError
from tests.conftest import invoke


def test_an_artifact_lies_under_its_kind_and_name(tmp_path):
    store = Store(tmp_path)

    assert store.path("masks", "metal_nut") == tmp_path / "masks" / "metal_nut.safetensors"
    assert store.path("results", "run.1", ".json") == tmp_path / "results" / "run.1.json"
    assert store.path("masks", "Größe 2").name == "Größe 2.safetensors"


def test_a_url_is_no_store(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = invoke(["mask", "--class", "disc", "--data", data, "--store", "s3://line-3/store"])

    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --store takes a folder, not the URL s3://line-3/store")
    assert "aws s3 sync" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", "a\nb", ".hidden", " a", "a ",
     "c:", "a*", "a\udc80", "x" * (MAX_NAME_BYTES + 1), "ä" * MAX_NAME_BYTES],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    for ask in (Store(tmp_path).path, lambda kind, n: Store(tmp_path).partial(kind, n, "k")):
        with pytest.raises(ConfigError, match="the name"):
            ask("masks", name)


def test_an_unknown_kind_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Store(tmp_path).path("mask", "a")

    assert all(kind in caught.value.hint for kind in KINDS)


def test_the_list_holds_artifacts_only(tmp_path):
    store = Store(tmp_path)
    assert store.list("replays") == []
    for name in ("b.safetensors", "a.safetensors", ".c.safetensors.1.tmp", "a.json",
                 ".d.safetensors", "a.shards/0.safetensors"):  # fmt: skip
        path = tmp_path / "replays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    assert store.list("replays") == ["a", "b"]


def test_unfinished_work_is_kept_per_key_and_dropped_by_name(tmp_path):
    store = Store(tmp_path)
    for name, key in (("a", "1" * 64), ("a", "2" * 64), ("a.b", "1" * 64), ("b", "1" * 64)):
        Checkpoint(store.partial("detectors", name, key)).save(1, {})

    store.drop_partials("detectors", "a", keep="2" * 64)
    kept = sorted(path.name for path in (tmp_path / ".partial" / "detectors").iterdir())

    ones, twos = "1" * 16, "2" * 16
    assert kept == [f"{name}.safetensors" for name in (f"a.{twos}", f"a.b.{ones}", f"b.{ones}")]


def test_an_empty_folder_of_unfinished_work_goes_away(tmp_path):
    store = Store(tmp_path)
    Checkpoint(store.partial("detectors", "a", "1")).save(1, {})

    store.drop_partials("detectors", "a")
    store.drop_partials("detectors", "a")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_locks", [True, False])
def test_what_a_killed_run_left_is_removed_also_where_files_have_no_locks(
    tmp_path, monkeypatch, has_locks
):
    if not has_locks:
        monkeypatch.setattr(atomic, "fcntl", None)
    target = tmp_path / "bottle.safetensors"
    leftovers = [tmp_path / f".bottle.safetensors.{number}.tmp" for number in range(2)]
    for path in (*leftovers, other := tmp_path / ".grid.safetensors.0.tmp"):
        path.touch()

    assert atomic.remove_leftovers(target, "tmp", keep=leftovers[0]) == []

    assert [path.exists() for path in (*leftovers, other)] == [True, False, True]
