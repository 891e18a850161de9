"""Where the dashboard cannot listen is said in one line, before a server starts."""

import pytest

from moe_core.__main__ import main


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "99999999"], "argument --port: must be between 1 and 65535, got 99999999"),
        (["--port", "0"], "argument --port: must be between 1 and 65535, got 0"),
        (["--address", "no such place"], "argument --address: must be an address of this machine, such as 127.0.0.1"),
        (["--address", "192.0.2.1"], "argument --address: must be an address of this machine, such as 127.0.0.1"),
    ],
)
def test_a_port_or_address_that_cannot_be(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dashboard", *flags])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
