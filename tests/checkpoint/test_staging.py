"""A folder of ours is whole, on disk and alone in being written; damage to any of its files is named."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sla_jax.checkpoint import exporter, import_checkpoint, info, load, staging, store
from sla_jax.checkpoint.channel_file import read_channel, save_channel
from sla_jax.checkpoint.staging import SUMS, check, damage, partial_path, staged, write_sums
from sla_jax.errors import UserError
from sla_jax.locks import LOCK
from tests.damage import edit, flip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder with sums."""
    with staged(tmp_path / "ours") as part:
        (part / "inner").mkdir()
        for name in ("a.json", "inner/b c.bin", "inner/empty"):
            (part / name).write_bytes(name.encode() * ("empty" not in name))
    return tmp_path / "ours"


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of a model with a channel, to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def digests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files of which the SHA-256 is taken from now on."""
    taken: list[str] = []
    real = staging._digest

    def noted(path: Path) -> str:
        taken.append(path.relative_to(folder).as_posix())
        return real(path)

    monkeypatch.setattr(staging, "_digest", noted)
    return taken


# ---- sums ----


def test_sha256sum_reads_the_list(folder: Path) -> None:
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--strict", "--quiet", "-c", SUMS], cwd=folder, check=True)
    assert damage(folder) is None and names(folder) == ["a.json", "inner/b c.bin", "inner/empty", SUMS]
    listed = [line[66:] for line in (folder / SUMS).read_text().splitlines()]
    assert listed == ["a.json", "inner/b c.bin", "inner/empty"]


def test_every_flipped_bit_of_a_file_and_of_the_list_is_named(folder: Path) -> None:
    for name in ("a.json", "inner/b c.bin", SUMS):
        whole = (folder / name).read_bytes()
        for at in range(8 * len(whole)):
            (folder / name).write_bytes(whole[: at // 8] + bytes([whole[at // 8] ^ 1 << at % 8]) + whole[at // 8 + 1 :])
            assert (damage(folder) or "").startswith(str(folder)), (name, at)
        (folder / name).write_bytes(whole)
    check(folder)


def test_what_is_gone_cut_or_emptied_is_named(folder: Path) -> None:
    (folder / "inner" / "b c.bin").write_bytes(b"inner/b c")
    assert damage(folder) == f"{folder}/inner/b c.bin is damaged or truncated: its SHA-256 is not that of {SUMS}."
    assert damage(folder, most=2) is None, "too large to be read"
    assert damage(folder, lambda name: name == "a.json") is None
    (folder / "inner" / "b c.bin").unlink()
    assert damage(folder, most=2) == f"{folder}/inner/b c.bin is missing, and {SUMS} lists it."
    (folder / SUMS).write_bytes(b"")
    assert f"{SUMS}, line 1 is damaged" in (damage(folder) or "")


def test_what_others_put_there_or_changed_on_purpose_is_taken(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    check(folder)
    (folder / "a.json").write_text("damaged")
    with pytest.raises(UserError, match=r"a\.json is damaged .* If you changed it yourself, delete its line in"):
        check(folder)
    edit(folder, "a.json", "mine")
    check(folder)
    (folder / "inner" / "b c.bin").write_text("mine")
    (folder / SUMS).unlink()
    check(folder)


def test_a_list_is_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is listed is not read again: states are listed twice, and they are large."""
    (folder / "late").write_text("")
    read = digests(folder, monkeypatch)
    write_sums(folder)
    assert read == ["late"] and damage(folder) is None


# ---- appearing ----


def test_all_is_on_disk_before_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.rename

    def noted(file: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{file}"))
        sync(file)

    def renamed(old: Path, new: Path) -> None:
        done.append(f"{old} → {new}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", renamed)
    with staged(tmp_path / "ours") as part:
        (part / "inner").mkdir()
        for name in ("a", "inner/b"):
            (part / name).write_text("")
    moved = done.index(f"{part} → {tmp_path / 'ours'}")
    scratch = part / f".{SUMS}.partial"
    assert {str(part / "a"), str(part / "inner/b"), str(part / "inner"), str(scratch), str(part)} <= {*done[:moved]}
    assert str(tmp_path) in done[moved:]


def test_a_second_program_does_not_take_what_the_first_has_begun(tmp_path: Path) -> None:
    with staged(tmp_path / "ours") as part:
        (part / "a").write_text("")
        said = rf"process {os.getpid()} on .* is writing {tmp_path}/ours, and"
        with pytest.raises(UserError, match=said), staged(tmp_path / "ours"):
            pass
    assert names(tmp_path) == ["ours/a", f"ours/{SUMS}"]


def test_what_a_kill_has_left_of_an_attempt_goes_and_of_a_replacement_comes_back(tmp_path: Path) -> None:
    part = partial_path(tmp_path / "ours")
    (part / "inner").mkdir(parents=True)
    (part / LOCK).write_text("process 1 on nowhere")
    (tmp_path / ".ours.old").mkdir()  # killed between its two renames
    (tmp_path / ".ours.old" / "a").write_text("")
    with pytest.raises(KeyError), staged(tmp_path / "ours") as again:
        assert again == part and os.listdir(part) == [LOCK]
        raise KeyError
    assert names(tmp_path) == ["ours/a"]


# ---- what we write ----


def test_damage_to_any_file_of_a_checkpoint_is_named(copied: Path) -> None:
    found = names(copied)
    assert damage(copied) is None
    assert {"sla_jax.json", "config.json", "tokenizer.json", "chat_template.jinja", "params/embed/_METADATA"} < {*found}
    for name in found:
        whole = (copied / name).read_bytes()
        flip(copied / name)
        assert name in (damage(copied) or ""), name
        (copied / name).write_bytes(whole)


def test_loading_looks_at_every_file(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = digests(copied, monkeypatch)
    load(copied)
    assert sorted(looked) == [name for name in names(copied) if name != SUMS]
    looked.clear()
    store.read_param(info(copied), "embed")
    assert {name.split("/")[1] for name in looked if name.startswith("params/")} == {"embed"}
    (array,) = [path for path in (copied / "params" / "norm").rglob("*") if path.name == "0"]
    flip(array)
    with pytest.raises(UserError, match=r"params/norm/.*0 is damaged|'norm' cannot be restored"):
        load(copied)
    flip(copied / "tokenizer_config.json")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged"):
        info(copied)


def test_an_export_is_checked_when_it_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    exporter.export_checkpoint(checkpoint, tmp_path / "theirs")
    flip(tmp_path / "theirs" / "model.safetensors", -5)
    with pytest.raises(UserError, match=rf"model\.safetensors is damaged .* its SHA-256 is not that of {SUMS}"):
        import_checkpoint(str(tmp_path / "theirs"), tmp_path / "ours")
    assert names(tmp_path) == sorted(f"theirs/{name}" for name in names(tmp_path / "theirs"))


def test_damage_to_a_channel_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    found, path = load(checkpoint), tmp_path / "channel.safetensors"
    assert found.policy.channel is not None
    save_channel(path, found.policy.channel, found.config, {"trained_by": "us"})
    whole = path.read_bytes()
    read_channel(path, found.config)
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [*range(header), *range(header, len(whole), 97)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"channel\.safetensors"):
            read_channel(path, found.config)
