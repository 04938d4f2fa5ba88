import pytest

from dasnet_lightning.errors import ConfigError, UnknownNameError
from dasnet_lightning.registry import Registry


def test_registers_finds_and_lists():
    things = Registry("thing")

    @things.register("small")
    def build_small():
        return "small"

    things.register("large")(lambda: "large")
    assert things.get("small") is build_small
    assert things.names() == ("large", "small")
    assert "small" in things


def test_refuses_duplicates_and_suggests_the_nearest():
    things = Registry("thing")
    things.register("small")(str)
    with pytest.raises(ConfigError, match="'small' is already registered"):
        things.register("small")
    with pytest.raises(UnknownNameError, match=r"no thing is called 'smal', did you mean 'small'\? Known: small"):
        things.get("smal")
