import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import files
from pipeline.errors import InputError


def test_a_file_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "new" / "folder" / "a.tsv"
    files.write_text(target, "µ\n")
    assert target.read_bytes() == "µ\n".encode()
    assert [p.name for p in target.parent.iterdir()] == ["a.tsv"]


def test_a_failure_keeps_the_old_file_and_removes_the_half_written_one(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")

    def fail_half_way() -> None:
        with files.atomic(target) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_name_keeps_the_suffix_and_the_folder(tmp_path):
    with files.atomic(tmp_path / "x.h5") as temporary:
        temporary.write_bytes(b"")
        assert temporary.suffix == ".h5"
        assert temporary.parent == tmp_path
        assert not (tmp_path / "x.h5").exists()


def test_writers_of_the_same_file_never_mix(tmp_path):
    target = tmp_path / "a.txt"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: files.write_text(target, str(i) * 20_000), range(8)))
    text = target.read_text()
    assert len(text) == 20_000
    assert len(set(text)) == 1


def test_the_digest_is_that_of_the_bytes_across_block_borders(tmp_path):
    data = b"ab" * (1 << 20)
    (tmp_path / "x").write_bytes(data)
    assert files.sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_every_file_follows_the_umask_whatever_its_writer_does(tmp_path, umask, mode):
    """safetensors writes its files for nobody but their owner."""
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "text", "x")
        with files.atomic(tmp_path / "weights") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        with files.atomic(tmp_path / "open") as temporary:
            temporary.touch()
            temporary.chmod(0o666)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("pattern", ["/abs/*.svs", "", "a/**.svs"])
def test_a_pattern_that_is_none_is_told(tmp_path, pattern):
    with pytest.raises(InputError) as error:
        files.matching(tmp_path, pattern)
    assert str(error.value).startswith(f"{tmp_path}: is no pattern of files (")
    assert f"; found {pattern!r}, expected a pattern below the folder, such as **/*.svs. Name the folder in" in str(error.value)
