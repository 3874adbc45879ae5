"""What keeps a release from being made."""

import subprocess
from email.message import Message

import pytest

from tools import release


def metadata(**changed):
    """That of a release that can be made, but for what is changed."""
    said = Message()
    for key in release.ASKED:
        said[key] = changed.get(key, "something")
    said["Version"] = changed.get("version", "1.2")
    said["Description-Content-Type"] = "text/markdown"
    said.set_payload(changed.get("readme", "# It"))
    return said


def test_changes_that_are_not_committed_are_named(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    release.check_clean(tmp_path)
    (tmp_path / "new.py").touch()
    with pytest.raises(ValueError, match=r"commit or remove .*\n\?\? new.py"):
        release.check_clean(tmp_path)


def test_a_version_has_an_entry():
    text = "# Changelog\n\n## 1.2 (2026-01-01)\n- It is faster.\n\n## 1.1\n\n## 1.0\n- First.\n"
    for version in ("1.2", "1.0"):
        release.check_changelog(text, version)
    for version in ("1.1", "1.3", "1"):
        with pytest.raises(ValueError, match=f"nothing of {version}: add"):
            release.check_changelog(text, version)


def test_metadata_are_whole_and_of_this_version():
    release.check_metadata(metadata(), "1.2")
    with pytest.raises(ValueError, match="does not give Author, Keywords"):
        release.check_metadata(metadata(Author="", Keywords=""), "1.2")
    with pytest.raises(ValueError, match="the readme"):
        release.check_metadata(metadata(readme=" "), "1.2")
    with pytest.raises(ValueError, match=r"the wheel is of 1.1, tokensieve.__version__ is 1.2"):
        release.check_metadata(metadata(version="1.1"), "1.2")


def test_a_wheel_holds_the_package_alone():
    package = {"tokensieve/__init__.py", "tokensieve/catalog/systems.tsv"}
    release.check_contents(package | {"tokensieve-1.2.dist-info/METADATA"}, package)
    with pytest.raises(ValueError, match=r"lacks tokensieve/catalog/systems.tsv: see package-data"):
        release.check_contents({"tokensieve/__init__.py"}, package)
    with pytest.raises(ValueError, match=r"holds tests/models.py, which is no part"):
        release.check_contents(package | {"tests/models.py"}, package)
