"""Settings: what a TOML file and a command line may say, and how they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest

from edgemux.multiplexer.errors import ConfigError
from edgemux.wire.settings import load_settings


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    port: int = 1
    wait_s: float = 0.5

    def __post_init__(self) -> None:
        if self.port < 0:
            raise ValueError("port must not be negative")


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bundle: Path
    inner: Inner = Inner(port=5)


def write(folder: Path, text: str) -> Path:
    path = folder / "some.toml"
    path.write_text(text)
    return path


def test_a_file_is_decoded_into_the_struct(tmp_path: Path) -> None:
    path = write(tmp_path, 'bundle = "here"\n[inner]\nport = 7\nwait_s = 2\n')
    assert load_settings(Outer, path, {}) == Outer(Path("here"), Inner(7, 2.0))


def test_the_command_line_wins_over_the_file_and_none_leaves_it(tmp_path: Path) -> None:
    path = write(tmp_path, 'bundle = "here"\n[inner]\nport = 7\n')
    settings = load_settings(Outer, path, {"bundle": Path("there"), "inner.port": None, "inner.wait_s": 1.5})
    assert settings == Outer(Path("there"), Inner(7, 1.5))


def test_a_table_given_in_part_keeps_the_other_defaults_of_its_place() -> None:
    assert load_settings(Outer, None, {"bundle": "x", "inner.wait_s": 3.0}).inner == Inner(port=5, wait_s=3.0)


def test_no_file_is_an_empty_one() -> None:
    assert load_settings(Outer, None, {"bundle": "x", "inner.port": 3}) == Outer(Path("x"), Inner(3))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('bundle = "a"\ntypo = 1\n', "typo: no such setting"),
        ('bundle = "a"\n[inner]\nprot = 1\n', "inner.prot: no such setting"),
        ("[inner]\nport = 1\n", "bundle: missing"),
        ('bundle = "a"\n[inner]\nport = "x"\n', "inner.port: expected `int`"),
        ('bundle = "a"\n[inner]\nport = -1\n', "inner: port must not be negative"),
        ("bundle = 3\n", "bundle: expected a path"),
        ('bundle = "a"\ninner = 3\n', "inner: expected `object`"),
        ("bundle = \n", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_settings(Outer, write(tmp_path, text), {})
    assert named in str(refusal.value)
    assert "some.toml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_wrong_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^inner\.port: expected `int`"):
        load_settings(Outer, write(tmp_path, 'bundle = "a"\n'), {"inner.port": "many"})


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inner: must be a table"):
        load_settings(Outer, write(tmp_path, 'bundle = "a"\ninner = 3\n'), {"inner.port": 1})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load_settings(Outer, tmp_path / "none.toml", {})


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_settings(Outer, path, {})


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    per: Literal["hour", "day"] | None = None


class Choosing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    each: tuple[Chosen, ...] = ()
    inner: Chosen = Chosen()


@pytest.mark.parametrize("text", ['[inner]\nper = "week"\n', '[[each]]\n[[each]]\nper = "week"\n'])
def test_where_a_setting_is_a_word_the_refusal_says_which_words_there_are(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"(inner|each\[1\])\.per: .*'week'; known are hour, day$"):
        load_settings(Choosing, write(tmp_path, text), {})
