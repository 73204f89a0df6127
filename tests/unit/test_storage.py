"""Places on the local disk, and what of object storage needs no server."""

import os
import pickle
import socket
import time
from pathlib import Path

import pytest

from timellama_dist.errors import DataError
from timellama_dist.storage import copy_tree, open_place

HERE = "?endpoint_override=127.0.0.1:9000&scheme=http&region=eu-west-1"


def test_a_local_place_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert open_place("a/b.csv").path == str(tmp_path / "a/b.csv")
    assert open_place(Path("a")) == open_place(str(tmp_path / "a"))
    assert open_place("~/a").path == "/home/ada/a"
    assert open_place("file:///tmp/a%20b").path == "/tmp/a b"
    assert open_place("/tmp/a?b#c%20").path == "/tmp/a?b#c%20"
    place = open_place("a") / "b c" / "d.csv.gz"
    assert (place.name, place.suffix, place.is_local) == ("d.csv.gz", ".gz", True)
    assert str(place) == place.uri == str(tmp_path / "a/b c/d.csv.gz")
    assert open_place(place) is place


def test_a_uri_keeps_its_options_where_it_is_joined() -> None:
    place = open_place("s3://bucket/runs/" + HERE) / "first run" / "100%?.csv"
    assert place.uri == "s3://bucket/runs/first run/100%25%3F.csv" + HERE
    assert place.path == "bucket/runs/first run/100%?.csv"
    assert (place.name, place.suffix, place.is_local) == ("100%?.csv", ".csv", False)
    top = open_place("s3://bucket" + HERE)
    assert (top.path, top.name) == ("bucket", "bucket")
    assert (top / "key").path == "bucket/key"


def test_a_place_shows_no_credentials() -> None:
    place = open_place("s3://me:secret@bucket/key" + HERE + "&token=hidden")
    assert str(place) == "s3://bucket/key" + HERE
    assert repr(place) == f"Place('{place}')"
    assert place.has_credentials
    assert not open_place("s3://bucket/a:b@c").has_credentials
    for plain in ("gs://anonymous@bucket/key", "abfs://box@me.dfs.core.windows.net/key"):
        assert not open_place(plain).has_credentials
        assert str(open_place(plain)) == plain
    with pytest.raises(DataError) as caught:
        open_place("foo://me:secret@bucket/key").exists()
    assert str(caught.value) == (
        "foo://bucket/key: cannot be reached: there is no file system of that name"
    )
    with pytest.raises(DataError) as caught:
        open_place("s3://me:secret@[bucket/key").exists()
    assert "secret" not in str(caught.value)


def test_a_place_pickles_as_its_uri_and_shares_the_file_system() -> None:
    place = open_place("s3://bucket/key" + HERE)
    text = pickle.dumps(place)
    assert len(text) < 250
    again = pickle.loads(text)
    assert again == place
    assert again.filesystem is place.filesystem is (place / "other").filesystem


def test_bytes_are_on_the_disk_before_their_name_and_new_folders_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def replaced(source: str, target: str) -> None:
        done.append(("name", target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    (open_place(tmp_path) / "run" / "model" / "weights").write_bytes(b"x")
    model = tmp_path / "run" / "model"
    draft = done[2][1]
    assert draft.startswith(f"{model}/.weights.")
    assert done == [
        ("sync", str(tmp_path)),
        ("sync", str(tmp_path / "run")),
        ("sync", draft),
        ("name", f"{model}/weights"),
        ("sync", str(model)),
    ]


def test_it_reads_what_was_written(tmp_path: Path) -> None:
    folder = open_place(tmp_path / "new")
    # A name that pyarrow would take for a compressed file's.
    (folder / "deep" / "a.csv.gz").write_text("grün")
    (folder / "b.bin").write_bytes(b"\x00\xff")
    assert (tmp_path / "new/deep/a.csv.gz").read_bytes() == "grün".encode()
    assert (folder / "deep/a.csv.gz").read_text() == "grün"
    assert (folder / "b.bin").read_bytes() == b"\x00\xff"
    assert (folder / "b.bin").size() == 2
    assert folder.sizes(["b.bin", "deep", "missing"]) == [2, None, None]
    with (folder / "b.bin").open_input_file() as file:
        file.seek(1)
        assert file.read() == b"\xff"
    assert [place.name for place in folder.children()] == ["b.bin", "deep"]
    assert [place.is_dir() for place in folder.children()] == [False, True]
    assert [place.is_file() for place in folder.children()] == [True, False]


def test_other_users_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    open_place(tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    place = open_place(tmp_path / "a")
    place.write_text("old")

    def fail() -> None:
        with place.open_output_stream() as stream:
            stream.write(b"half")
            raise KeyError("no fault of the storage")

    with pytest.raises(KeyError, match="no fault of the storage"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert place.read_text() == "old"


def test_a_changed_file_has_another_fingerprint(tmp_path: Path) -> None:
    place = open_place(tmp_path / "a")
    place.write_text("one")
    first = place.fingerprint()
    assert place.fingerprint() == first
    place.write_text("more")
    longer = place.fingerprint()
    os.utime(tmp_path / "a", ns=(0, 5))
    assert len({first, longer, place.fingerprint()}) == 3
    assert place.fingerprint() == "4-5"


def test_a_tree_is_copied_and_deleted(tmp_path: Path) -> None:
    source, target = open_place(tmp_path / "from"), open_place(tmp_path / "to")
    (source / "a/b/c.txt").write_text("c")
    (source / "d.txt").write_text("d")
    copy_tree(source, target)
    copied = {str(p.relative_to(tmp_path / "to")) for p in (tmp_path / "to").rglob("*.txt")}
    assert copied == {"a/b/c.txt", "d.txt"}
    assert (target / "a/b/c.txt").read_text() == "c"
    (target / "d.txt").delete()
    assert not (target / "d.txt").exists()
    target.delete()
    target.delete()
    assert not target.exists()
    target.make_dirs()
    assert target.is_dir()


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        (lambda f: (f / "x").read_bytes(), r"/x: cannot be read: No such file or directory$"),
        (lambda f: (f / "x").open_input_file(), r"/x: cannot be read: No such file or directory$"),
        (lambda f: (f / "x").size(), r"/x: no such file$"),
        (lambda f: f.size(), r": no such file$"),
        (lambda f: (f / "x").fingerprint(), r"/x: no such file$"),
        (lambda f: (f / "x").children(), r"/x: cannot be listed: No such file or directory$"),
        (lambda f: (f / "file").children(), r"/file: cannot be listed: Not a directory$"),
        (lambda f: f.read_bytes(), r": cannot be read: .* is a directory$"),
        (lambda f: f.write_text("x"), r": cannot be written: Is a directory$"),
        (lambda f: (f / "file/x").write_text("x"), r"/file/x: cannot be written: Not a directory$"),
        (lambda f: (f / "file/x").make_dirs(), r"/file/x: cannot be made: Not a directory$"),
        (lambda f: (f / "file").read_text(), r"/file: cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_a_failure_names_the_place_and_the_cause(deed, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff")
    with pytest.raises(DataError, match=rf"^{tmp_path}{message}"):
        deed(open_place(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match=r"/x: cannot be written: Permission denied$"):
        (open_place(tmp_path) / "x").write_text("x")


def test_an_unknown_option_is_refused() -> None:
    message = r"^s3://bucket/key: cannot be reached: .*'endpoint_overide'$"
    with pytest.raises(DataError, match=message):
        open_place("s3://bucket/key?endpoint_overide=127.0.0.1:9").read_bytes()


def test_an_endpoint_where_nothing_listens_fails_in_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = open_place(f"s3://bucket/key?endpoint_override=127.0.0.1:{port}&scheme=http")
    begin = time.monotonic()
    message = rf"cannot be read: nothing answers: .*127\.0\.0\.1:{port}.*connect to server$"
    with pytest.raises(DataError, match=message):
        place.exists()
    assert time.monotonic() - begin < 15
