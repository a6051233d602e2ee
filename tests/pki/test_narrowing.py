"""The URI of a narrowed certificate: what is built is read back, and nothing that differs by a character is."""

import uuid

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pki.errors import IdentityInvalid, InvalidNarrowing
from pki.identity import MOST_ANCESTORS, Named, narrowed_uri, read_uri, user_uri

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DOMAIN = "example.internal"
USER_ID = "123e4567-e89b-42d3-a456-426614174000"
FULL = f"spiffe://{DOMAIN}/user/{USER_ID}"
URI = f"{FULL}/from/0A1B.7F/only/list.stream-log"

serials = st.integers(1, 2**159 - 1).map(lambda number: number.to_bytes((number.bit_length() + 7) // 8).hex().upper())
rights = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
chains = st.lists(serials, min_size=1, max_size=MOST_ANCESTORS, unique=True)


@unhurried
@given(st.uuids(), chains, st.frozensets(rights, min_size=1, max_size=20))
def test_what_is_built_is_read_back(user_id: uuid.UUID, ancestors: list[str], some: frozenset[str]) -> None:
    uri = narrowed_uri(DOMAIN, str(user_id), ancestors, some)
    assert read_uri([uri], DOMAIN) == Named(str(user_id), some, tuple(ancestors))


def test_rights_stand_sorted_and_once() -> None:
    assert narrowed_uri(DOMAIN, USER_ID, ["0A1B", "7F"], ["stream-log", "list", "list"]) == URI


def test_full_certificate_has_no_rights_of_its_own() -> None:
    assert read_uri([FULL], DOMAIN) == Named(USER_ID, None, ())


@pytest.mark.parametrize(
    "tail",
    [
        "/from/0A1B",
        "/from/0A1B/",
        "/from/0A1B/only",
        "/from/0A1B/only/",
        "/only/list",
        "/only/list/from/0A1B",
        "/from//only/list",
        "/from/./only/list",
        "/from/0A1B./only/list",
        "/from/.0A1B/only/list",
        "/from/0A1B..7F/only/list",
        "/from/0A1B.0A1B/only/list",
        "/from/0a1b/only/list",
        "/from/A1B/only/list",
        "/from/000A1B/only/list",
        "/from/00/only/list",
        "/from/-0A1B/only/list",
        f"/from/{'7F' * 21}/only/list",
        f"/from/{'.'.join(f'{n:02X}' for n in range(1, MOST_ANCESTORS + 2))}/only/list",
        "/from/0A1B/only/list.list",
        "/from/0A1B/only/stream-log.list",
        "/from/0A1B/only/list.",
        "/from/0A1B/only/.list",
        "/from/0A1B/only/List",
        "/from/0A1B/only/-list",
        "/from/0A1B/only/1list",
        "/from/0A1B/only/list,stop",
        "/from/0A1B/only/l%69st",
        "/from/0A1B/only/*",
        "/from/0A1B/only/list\n",
        "/from/0A1B/only/list\0",
        "/from/0A1B/only/list/",
        "/from/0A1B/only/list?",
        "/from/0A1B/only/list#",
        "/from/0A1B/only/list/only/stop",
        "/from/0A1B/only/list/from/7F/only/list",
        "/from/\N{FULLWIDTH DIGIT ONE}1/only/list",
        "/from/\N{ARABIC-INDIC DIGIT ONE}\N{ARABIC-INDIC DIGIT ONE}/only/list",
        "/from/0A1B/only/lis\N{LATIN SMALL LETTER LONG S}",
        "//from/0A1B/only/list",
        "/from/0A1B//only/list",
        f"/from/0A1B/only/{'.'.join(f'right-{n:06}' for n in range(200))}",
    ],
)
def test_tail_that_is_not_written_as_issued_names_nobody(tail: str) -> None:
    with pytest.raises(IdentityInvalid, match="names no user of this daemon"):
        read_uri([FULL + tail], DOMAIN)


@pytest.mark.parametrize("user_id", [USER_ID.upper(), USER_ID[:-1], "", "..", USER_ID.replace("-", "")])
def test_user_of_a_narrowed_certificate_has_one_spelling(user_id: str) -> None:
    with pytest.raises(IdentityInvalid):
        read_uri([f"spiffe://{DOMAIN}/user/{user_id}/from/0A1B/only/list"], DOMAIN)


@unhurried
@given(st.integers(0, len(URI)), st.integers(0, 4), st.text("0123456789ABCDEFabcf/.-lonyrm%", max_size=4))
@example(len(URI), 0, ".zz")
def test_altered_uri_means_just_what_stands_in_it_or_nothing(at: int, dropped: int, put: str) -> None:
    uri = URI[:at] + put + URI[at + dropped :]
    try:
        named = read_uri([uri], DOMAIN)
    except IdentityInvalid:
        return
    if named.rights is None:
        assert uri == user_uri(DOMAIN, named.user_id)
    else:
        assert uri == narrowed_uri(DOMAIN, named.user_id, named.ancestors, named.rights)


@pytest.mark.parametrize(
    ("ancestors", "some", "problem"),
    [
        ([], ["list"], "0 steps"),
        ([f"{n:02X}" for n in range(1, MOST_ANCESTORS + 2)], ["list"], f"{MOST_ANCESTORS + 1} steps"),
        (["0A1B"], [], "good for nothing"),
        (["0A1B"], ["list", "Stop"], "'Stop' is no right"),
        (["0A1B"], ["list.stop"], "no right"),
        (["0A1B"], [""], "no right"),
        (["0A1B"], ["list\n"], "no right"),
        (["a1b"], ["list"], "no serial number"),
        (["0A1B/only/stop"], ["list"], "no serial number"),
        (["7F", "7F"], ["list"], "twice"),
        (["0A1B"], [f"right-{n:06}" for n in range(200)], "give fewer"),
    ],
)
def test_what_no_certificate_could_say_is_not_built(ancestors: list[str], some: list[str], problem: str) -> None:
    with pytest.raises(InvalidNarrowing, match=problem):
        narrowed_uri(DOMAIN, USER_ID, ancestors, some)
