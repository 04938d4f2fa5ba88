"""Detectors from other packages, with fake distributions on the path as an installer leaves them."""

import sys

import pytest

from dasnet_lightning.detectors import DETECTORS, build_detector
from dasnet_lightning.detectors.plugins import Plugins
from dasnet_lightning.errors import ConfigError, UnknownNameError
from dasnet_lightning.registry import Registry

GROUP = "dasnet_lightning.detectors"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with one module on the path and unload its modules afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def add(package, source, **points):
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {package}:{attribute}" for name, attribute in points.items()]
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines) + "\n")

    yield add
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def registry():
    registry = Registry("detector", find_more=Plugins(GROUP))
    registry.register("own")(lambda num_classes: "own")
    return registry


GOOD = "def build(num_classes, width=3):\n    return (num_classes, width)\n"


REAL = """
from dasnet_lightning.detectors import DETECTORS, build_detector
{decorator}
def build(num_classes, width=3):
    return build_detector("ssd_tiny", num_classes, image_size=width)
"""


def test_a_plug_in_is_built_by_name_and_loaded_when_it_is_asked_for(install, registry):
    install("good_package", GOOD, good="build", better="build")
    assert registry.get("own")(num_classes=2) == "own"
    assert "good_package" not in sys.modules
    assert registry.get("good")(num_classes=4, width=5) == (4, 5)
    assert registry.names() == ("better", "good", "own")
    assert "better" in registry
    assert "worse" not in registry


def test_the_registry_of_detectors_finds_plug_ins(install, monkeypatch):
    monkeypatch.setattr(DETECTORS, "_entries", dict(DETECTORS._entries))
    install("good_package", REAL.format(decorator=""), good="build")
    assert build_detector("good", 4, width=96).image_size == (96, 96)
    assert {"good", "ssd_tiny"} <= set(DETECTORS.names())
    with pytest.raises(UnknownNameError, match=r"no detector is called 'goood', did you mean 'good'\?"):
        build_detector("goood", 4)


@pytest.mark.parametrize(
    ("source", "attribute", "reason"),
    [
        (
            "import a_module_that_nobody_has\n",
            "build",
            "ModuleNotFoundError: No module named 'a_module_that_nobody_has'",
        ),
        ("raise RuntimeError('no licence')\n", "build", "RuntimeError: no licence"),
        ("def build(:\n", "build", "SyntaxError"),
        (GOOD, "missing", "AttributeError"),
        ("build = 3\n", "build", "broken_package:build is not a builder but of type int"),
    ],
)
def test_a_broken_plug_in_is_named_and_breaks_no_other(install, registry, source, attribute, reason):
    install("broken_package", source, broken=attribute)
    install("good_package", GOOD, good="build")
    with pytest.warns(UserWarning, match="'broken' of the installed package 'broken_package'") as caught:
        assert registry.names() == ("good", "own")
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert registry.names() == ("good", "own")  # said once
    with pytest.raises(ConfigError, match=r"'broken_package' cannot be loaded \(.*fix, update or uninstall") as error:
        registry.get("broken")
    assert reason in str(error.value)
    assert not isinstance(error.value, UnknownNameError)


def test_a_broken_plug_in_does_not_hinder_a_good_one_that_is_asked_for(install, registry):
    install("broken_package", "raise RuntimeError\n", broken="build")
    install("good_package", GOOD, good="build")
    assert registry.get("good")(num_classes=1) == (1, 3)


def test_of_two_packages_with_one_name_one_serves_and_the_other_is_named(install, registry):
    install("first_package", GOOD, twice="build")
    install("second_package", GOOD, twice="build")
    with pytest.warns(UserWarning, match=r"'(first|second)_package' brings a detector 'twice', but that name is taken"):
        assert registry.get("twice")(num_classes=1) == (1, 3)
    assert registry.names() == ("own", "twice")


def test_what_is_registered_here_comes_first(install, registry):
    install("rival_package", GOOD, own="build")
    assert registry.get("own")(num_classes=2) == "own"
    with pytest.warns(UserWarning, match="'rival_package' brings a detector 'own', but that name is taken"):
        assert registry.names() == ("own",)
    assert registry.get("own")(num_classes=2) == "own"


def test_a_plug_in_may_register_itself_when_it_is_imported(install, monkeypatch):
    monkeypatch.setattr(DETECTORS, "_entries", dict(DETECTORS._entries))
    install("eager_package", REAL.format(decorator="@DETECTORS.register('eager')"), eager="build")
    assert build_detector("eager", 4, width=64).num_classes == 4
    assert "eager" in DETECTORS.names()
