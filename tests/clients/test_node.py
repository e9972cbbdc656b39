"""The lock file of the clients from npm."""

import json

from tests.clients.node import HERE


def test_lock_pins_every_package_and_names_no_registry() -> None:
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    packages.pop("")
    assert packages
    assert all("resolved" not in package and package["integrity"] for package in packages.values())
