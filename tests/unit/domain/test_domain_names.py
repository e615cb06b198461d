"""Names of contexts."""

from __future__ import annotations

import pytest

from primordia.domain.names import Directory, Entry, Outcome, address_of_reverse, search_path

DIRECTORY = Directory(
    (
        Entry("default", "shop", "cache", "10.128.0.2", position=1),
        Entry("default", "shop", "web", "10.128.0.1", position=0),
        Entry("prod", "db", "main", "10.128.0.3"),
    )
)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("web", "10.128.0.1"),
        ("cache", "10.128.0.2"),
        ("CACHE.", "10.128.0.2"),
        ("shop.default.soup.internal", "10.128.0.1"),
        ("Shop.Default.Soup.Internal.", "10.128.0.1"),
        ("cache.shop.default.soup.internal", "10.128.0.2"),
        ("db.prod.soup.internal", "10.128.0.3"),
        ("main.db.prod.soup.internal", "10.128.0.3"),
    ],
)
def test_a_name_leads_to_its_context(name: str, address: str) -> None:
    found = DIRECTORY.resolve(name, namespace="default", lifeform="shop")
    assert (found.outcome, found.addresses) == (Outcome.FOUND, (address,))


@pytest.mark.parametrize(
    "name", ["main", "x.shop.default.soup.internal", "a.web.shop.default.soup.internal", "none.soup.internal", "", "localhost"]
)
def test_a_name_of_ours_that_does_not_exist_is_missing(name: str) -> None:
    assert DIRECTORY.resolve(name, namespace="default", lifeform="shop").outcome is Outcome.MISSING


@pytest.mark.parametrize("name", ["soup.internal", "default.soup.internal", "prod.soup.internal"])
def test_what_is_above_names_exists_without_an_address(name: str) -> None:
    found = DIRECTORY.resolve(name, namespace="default", lifeform="shop")
    assert (found.outcome, found.addresses) == (Outcome.FOUND, ())


@pytest.mark.parametrize("name", ["debian.org", "xsoup.internal", "internal.example", "shop.default"])
def test_the_worlds_names_are_foreign(name: str) -> None:
    assert DIRECTORY.resolve(name, namespace="default", lifeform="shop").outcome is Outcome.FOREIGN


def test_every_address_has_a_name_and_the_reverse_tree_leads_to_it() -> None:
    assert DIRECTORY.name_of("10.128.0.2") == "cache.shop.default.soup.internal"
    assert DIRECTORY.name_of("10.128.0.9") is None
    assert address_of_reverse("2.0.128.10.in-addr.arpa.") == "10.128.0.2"
    for other in ("2.0.128.in-addr.arpa", "x.0.128.10.in-addr.arpa", "web", "300.0.128.10.in-addr.arpa"):
        assert address_of_reverse(other) is None


def test_the_search_path_makes_short_names_long() -> None:
    assert search_path("default", "shop") == ("shop.default.soup.internal", "default.soup.internal", "soup.internal")
