"""A store behind a URL: what lies there counts, whatever this machine still holds."""

import json
import threading
import time
from pathlib import Path

import fsspec
import pytest

from replaycad.artifacts import remote
from replaycad.artifacts.store import Store
from replaycad.errors import ArtifactError, ConfigError


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    yield f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/far"
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{tmp_path.name}"):
        memory.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def machines(url, tmp_path, monkeypatch):
    """Opens the store as another machine would, with a mirror of its own."""

    def open_store(name: str) -> Store:
        monkeypatch.setenv(remote.CACHE, str(tmp_path / name))
        return Store(url)

    return open_store


def put(store: Store, kind: str, name: str, content: bytes) -> Path:
    path = store.path(kind, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    store.publish(kind, name)
    return path


def test_what_one_machine_publishes_another_reads(machines):
    one, two = machines("one"), machines("two")
    assert one.root != two.root

    put(one, "masks", "a", b"first")

    assert two.path("masks", "a").read_bytes() == b"first"
    assert two.list("masks") == ["a"]
    put(one, "masks", "a", b"other bytes")
    assert two.path("masks", "a").read_bytes() == b"other bytes"


def test_what_was_removed_there_is_not_there(machines):
    one, two = machines("one"), machines("two")
    put(one, "masks", "a", b"content")
    assert two.path("masks", "a").exists()

    one._remote._files.rm_file(one._remote._place("masks/a.safetensors"))

    assert not two.path("masks", "a").exists()
    assert not one.path("masks", "a").exists()
    assert one.list("masks") == []


def test_what_was_never_published_is_not_there(machines):
    one = machines("one")
    path = one.root / "masks" / "a.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a run was killed before it published this")

    assert not one.path("masks", "a").exists()


def test_shards_and_times_travel_with_an_artifact(machines):
    one, two = machines("one"), machines("two")
    main = one.path("replays", "a")
    for path, text in (
        (main.with_suffix(".shards") / "k-00000.safetensors", b"shard"),
        (one.root / ".timings" / "replays" / "a.json", b"{}"),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(text)
    put(one, "replays", "a", b"index")

    there = two.path("replays", "a")

    assert (there.with_suffix(".shards") / "k-00000.safetensors").read_bytes() == b"shard"
    assert (two.root / ".timings" / "replays" / "a.json").read_bytes() == b"{}"


def test_an_unchanged_file_is_fetched_once(machines, monkeypatch):
    one, two = machines("one"), machines("two")
    put(one, "masks", "a", b"content")
    two.path("masks", "a")

    monkeypatch.setattr(two._remote._files, "open", lambda *_: pytest.fail("fetched again"))

    assert two.path("masks", "a").read_bytes() == b"content"


def test_what_did_not_arrive_as_it_was_sent_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "mirror"))
    store = Store(f"file://{tmp_path}/far")
    original = store._remote._files.put_file

    def cut_off(source, target, **more):
        original(source, target, **more)
        Path(target).write_bytes(Path(target).read_bytes()[:3])

    monkeypatch.setattr(store._remote._files, "put_file", cut_off)

    with pytest.raises(ArtifactError, match="did not arrive as it was sent"):
        put(store, "masks", "a", b"content")

    assert not [path for path in (tmp_path / "far").rglob("*") if path.is_file()]


def test_one_machine_at_a_time_makes_an_artifact(machines):
    one, two = machines("one"), machines("two")
    waited, order = [], []

    def second():
        with two.alone_with("masks", "a", lambda: waited.append(True)):
            order.append("two")

    with one.alone_with("masks", "a", lambda: pytest.fail("nobody has it")):
        thread = threading.Thread(target=second)
        thread.start()
        while not waited:
            time.sleep(0.01)
        order.append("one")
    thread.join(30)

    assert order == ["one", "two"]
    with one.alone_with("masks", "a", lambda: pytest.fail("it was not given back")):
        pass


def test_a_dead_owner_loses_its_lease(machines):
    one = machines("one")
    place = one._remote._place(".locks/masks/a.json")
    one._remote._files.makedirs(place.rpartition("/")[0], exist_ok=True)
    for entry in ({"owner": "dead", "until": time.time() - 1}, {"owner": "?"}, 3):
        one._remote._files.pipe_file(place, json.dumps(entry).encode())
        with one.alone_with("masks", "a", lambda: pytest.fail("its lease has run out")):
            assert json.loads(one._remote._files.cat_file(place))["owner"] != "dead"


def test_a_lease_is_renewed_while_it_is_held(machines, monkeypatch):
    monkeypatch.setattr(remote, "LEASE_SECONDS", 0.4)
    one = machines("one")
    place = one._remote._place(".locks/masks/a.json")

    with one.alone_with("masks", "a", lambda: None):
        first = json.loads(one._remote._files.cat_file(place))
        end = time.monotonic() + 10
        while json.loads(one._remote._files.cat_file(place))["until"] == first["until"]:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_url_that_nothing_opens_says_what_is_missing():
    with pytest.raises(ConfigError, match="cannot open the store nowhere://"):
        Store("nowhere://bucket")


def test_a_store_that_cannot_be_reached_is_told_in_a_line(machines, monkeypatch):
    store = machines("one")

    def fail(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(store._remote._files, "info", fail)

    with pytest.raises(ArtifactError, match=r"cannot read .*masks/a.safetensors: no route to host"):
        store.path("masks", "a")
